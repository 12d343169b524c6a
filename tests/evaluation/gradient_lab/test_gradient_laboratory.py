"""The gradient laboratory against stored replicates, closed-form variances and known biases and
rates.
"""

import gc
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor
from torch._subclasses import FakeTensor

from pyroae import zoo
from pyroae.errors import ConfigError, DataError, ProgramError
from pyroae.evaluation.gradient_lab import measure as gradients
from pyroae.evaluation.gradient_lab.groups import parameter_groups
from pyroae.evaluation.gradient_lab.measure import measure_gradients, measure_slopes
from pyroae.evaluation.gradient_lab.slopes import SNRCurve, slope
from pyroae.evaluation.gradient_lab.statistics import BATCHES, Bias, GradientStatistics, bias_of
from pyroae.inference_data import gradients_to_datatree
from pyroae.nn import MLP
from pyroae.objectives import ELBO, AnalyticKL, Bound, Objective, ObjectiveBase, parse_objective
from pyroae.objectives.named import dreg, iwae, iwae_stl, rws_dreg, stl, vimco
from pyroae.plots.gradients import gradient_curves
from tests.systems import system_and_data

pytestmark = pytest.mark.usefixtures("float64")


def toy(
    num_data: int,
    *,
    mean: float = 0.8,
    variance: float = 2 / 3,
    weight: float = 1.0,
    noise: float = 1.0,
) -> tuple[Any, Any, Tensor, dict[str, Tensor]]:
    """z ~ N(θ, 1), x|z ~ N(w z, s²), x = 1, q = N(φ_n, v): REFERENCES, item 3; θ and φ one for each
    datum.
    """
    theta = torch.zeros(num_data, requires_grad=True)
    phi = torch.full((num_data,), mean, requires_grad=True)

    def model(x: Tensor) -> None:
        with pyro.plate("data", num_data):
            z = pyro.sample("z", dist.Normal(theta, 1.0))
            pyro.sample("x", dist.Normal(weight * z, noise), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", num_data):
            pyro.sample("z", dist.Normal(phi, variance**0.5))

    return model, guide, torch.ones(num_data), {"theta": theta, "phi": phi}


def stored(objective: ObjectiveBase, system: Any, replicates: int, seed: int) -> dict[str, Tensor]:
    """Every replicate, `[R, P]`, by parameter, from the gradient that training follows."""
    model, guide, x, parameters = system
    rows: dict[str, list[Tensor]] = {name: [] for name in parameters}
    for r in range(replicates):
        torch.manual_seed(seed * 1_000_003 + r)
        for parameter in parameters.values():
            parameter.grad = None
        objective.loss_and_grads(model, guide, x)
        for name, parameter in parameters.items():
            assert parameter.grad is not None
            rows[name].append(-parameter.grad / len(x))
    return {name: torch.stack(row) for name, row in rows.items()}


def close(found: Any, expected: Any) -> None:
    torch.testing.assert_close(
        torch.as_tensor(found), torch.as_tensor(expected), rtol=1e-10, atol=1e-10, check_dtype=False
    )


def direction(gradients: Tensor) -> Tensor:
    return gradients.mean(0) / gradients.mean(0).norm()


def ratios(gradients: Tensor, along: Tensor) -> Tensor:
    """|parallel| / |orthogonal|: the cotangent of the angle, from the lengths by Pythagoras."""
    parallel = gradients @ along
    return parallel.abs() / (gradients.square().sum(1) - parallel.square()).sqrt()


@pytest.mark.parametrize("replicates", [60, 53])  # batches of equal and of unequal size
def test_streamed_is_stored(replicates: int) -> None:
    system = toy(3)
    model, guide, x, parameters = system
    groups = {"θ": ("theta",), "φ": ("phi",), "all": ("phi", "theta")}
    objectives = {"iwae": iwae(3), "dreg": dreg(3)}
    found = measure_gradients(
        model,
        guide,
        x,
        objectives,
        parameters=parameters,
        groups=groups,
        replicates=replicates,
        seed=5,
        reference="dreg",
    )
    assert list(found) == ["iwae", "dreg"]
    every = {
        name: stored(objective, system, replicates, 5) for name, objective in objectives.items()
    }
    batch = torch.tensor([r * 20 // replicates for r in range(replicates)])
    second = batch >= 10
    drawn = torch.randint(20, (1000, 20), generator=torch.Generator().manual_seed(5))
    for name in objectives:
        for group, names in groups.items():
            one = found[name][group]
            gradients = torch.cat([every[name][n] for n in names], 1)
            of_reference = torch.cat([every["dreg"][n] for n in names], 1)
            close(one.mean, gradients.mean(0))
            close(one.variance, gradients.var(0))
            close(one.snr, (gradients.mean(0).abs() / gradients.std(0)).mean())
            for s in range(30):
                again = torch.cat([gradients[batch == b] for b in drawn[s]])
                close(one.resampled[s], (again.mean(0).abs() / again.std(0)).mean())
            # the direction comes from the reference's first half, the ratios from the second half
            projected = ratios(gradients[second], direction(of_reference[~second]))
            close(one.directional_snr, projected.mean())
            close(one.directional_snr_se, projected.std() / math.sqrt(len(projected)))
            difference = gradients - of_reference
            close(one.bias, difference.mean(0).norm())
            means = torch.stack([difference[batch == b].mean(0) for b in range(BATCHES)])
            if replicates % BATCHES == 0:
                close(one.bias_se, (means.var(0) / BATCHES).sum().sqrt())
            assert one.replicates == replicates
            assert one.seconds > 0


def test_direction_is_its_own_without_a_reference() -> None:
    system = toy(4)
    model, guide, x, parameters = system
    phi = {"phi": parameters["phi"]}
    (found,) = measure_gradients(model, guide, x, {"iwae": iwae(3)}, parameters=phi, replicates=40)[
        "iwae"
    ].values()
    gradients = stored(iwae(3), system, 40, 0)["phi"]
    close(found.directional_snr, ratios(gradients[20:], direction(gradients[:20])).mean())
    assert math.isnan(found.bias)
    assert math.isnan(found.bias_se)


def test_directional_snr_of_one_known_gradient() -> None:
    """Noise-free but for its length: Δ = (3, 4)(1 + ε) lies along its mean; against the direction
    of (1, 0), 3 : 4.
    """
    leaf = torch.zeros(2, requires_grad=True)

    class Line(ObjectiveBase):
        def __init__(self, *slopes: float) -> None:
            super().__init__(1)
            self.slopes = torch.tensor(slopes)

        def estimate(self, traces: Any) -> Any:
            raise NotImplementedError

        def bound(self, *_: Any, **__: Any) -> Any:
            value = (1 + 0.1 * torch.randn(())) * (self.slopes * leaf).sum()
            return type("Both", (), {"surrogate": value})

    lines = {"line": Line(3.0, 4.0), "axis": Line(1.0, 0.0)}
    nothing: Callable[..., None] = lambda x: None  # noqa: E731
    found = measure_gradients(
        nothing,
        nothing,
        torch.zeros(1),
        lines,
        parameters={"a": leaf},
        replicates=40,
        reference="axis",
    )
    assert found["line"]["all"].directional_snr == pytest.approx(3 / 4, rel=1e-12)
    assert found["line"]["all"].snr == pytest.approx(10, rel=0.4)
    assert found["axis"]["all"].directional_snr == math.inf
    # the second parameter of the axis has no gradient, ever, and is left out of the mean
    assert found["axis"]["all"].snr == pytest.approx(found["line"]["all"].snr, rel=1e-9)
    assert bool(found["axis"]["all"].resampled.isfinite().all())


def of_phi(
    objectives: dict[str, ObjectiveBase], replicates: int, system: Any, **settings: Any
) -> dict[str, GradientStatistics]:
    model, guide, x, parameters = system
    phi = {"phi": parameters["phi"]}
    found = measure_gradients(
        model, guide, x, objectives, parameters=phi, replicates=replicates, **settings
    )
    return {name: statistics["all"] for name, statistics in found.items()}


@pytest.mark.parametrize(
    "variance", [0.08, 0.9]
)  # below half the posterior's, 1 / (1 + λ), and above it
def test_variances_in_closed_form(variance: float) -> None:
    """REFERENCES, item 5, λ = w²/s²: MC-KL (1+λ)² v; analytic KL λ² v; STL (1/√v − (1+λ)√v)²."""
    weight, noise, num_data = 1.5, 0.8, 300
    precision = weight**2 / noise**2
    system = toy(num_data, variance=variance, weight=weight, noise=noise)
    objectives = {"mc": Objective(ELBO()), "analytic": AnalyticKL(), "stl": stl()}
    found = of_phi(objectives, 100, system)
    expected = {
        "mc": (1 + precision) ** 2 * variance,
        "analytic": precision**2 * variance,
        "stl": (variance**-0.5 - (1 + precision) * variance**0.5) ** 2,
    }
    for name, value in expected.items():  # 30,000 draws: a relative SE of √(2 / 30,000)
        assert found[name].variance.mean().item() * num_data**2 == pytest.approx(
            value, rel=4.5 * math.sqrt(2 / 30_000)
        ), name
    assert (expected["stl"] > expected["mc"]) == (variance < 0.5 / (1 + precision))


def test_differences_are_paired() -> None:
    """STL less pathwise is ε/√v draw by draw; apart, each has the variance of all the rest too."""
    num_data, replicates, variance = 50, 200, 2.0
    system = toy(num_data, variance=variance, weight=1.5, noise=0.8)
    objectives = {"pathwise": Objective(ELBO()), "stl": stl(), "dreg": dreg(1)}
    found = of_phi(objectives, replicates, system, reference="pathwise")
    paired = math.sqrt(1 / variance / replicates / num_data)
    assert found["stl"].bias_se == pytest.approx(paired, rel=0.15)
    unpaired = (
        ((found["stl"].variance + found["pathwise"].variance).sum() / replicates).sqrt().item()
    )
    assert found["stl"].bias_se < 0.15 * unpaired
    assert found["dreg"].bias == pytest.approx(
        found["stl"].bias, rel=1e-9
    )  # the same estimator at K = 1
    assert found["pathwise"].bias == found["pathwise"].bias_se == 0


def test_bias_is_found_where_there_is_one() -> None:
    """REFERENCES, item 6: at K=2 the mean is −.257 for IWAE and DReG, −.514 for IWAE-STL."""
    num_data = 200
    objectives = {"stl": iwae_stl(2), "dreg": dreg(2), "iwae": iwae(2)}
    found = of_phi(objectives, 100, toy(num_data), reference="iwae")
    assert found["stl"].bias > 3 * found["stl"].bias_se
    biased = (found["stl"].mean - found["iwae"].mean).mean().item() * num_data
    assert biased == pytest.approx(-0.257, abs=0.03)
    assert found["dreg"].bias < 1.5 * found["dreg"].bias_se  # about 1 where there is none


def test_signal_to_noise_and_its_interval() -> None:
    """REFERENCES, item 6: .106 (IWAE) and 2.88 (DReG) at K=8.

    Intervals of other seeds agree on where the ratio lies.
    """
    system = toy(8)
    covered = 0
    for seed in range(6):
        found = of_phi({"dreg": dreg(8)}, 100, system, seed=seed)["dreg"]
        low, high = found.snr_interval
        covered += low < 2.88 < high
        assert 0.02 < (high - low) / found.snr < 0.25  # an SE of √((1/R)(1/snr² + ½)/8) ≈ .028
    assert covered >= 4
    found = of_phi({"iwae": iwae(8)}, 300, toy(100))["iwae"]
    plain = (found.mean.mean().abs() / found.variance.mean().sqrt()).item()
    assert plain == pytest.approx(0.106, abs=0.026)  # 30,000 draws


def test_generators_and_modes_are_left_alone() -> None:
    before = torch.get_rng_state()
    objectives = {"iwae": iwae(4), "dreg": dreg(4)}
    one = of_phi(objectives, 20, toy(3), seed=1)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.distributions.Distribution._validate_args
    torch.manual_seed(99)
    other = of_phi(dict(reversed(objectives.items())), 20, toy(3), seed=1)
    for name in objectives:  # neither the caller's seed nor the order of objectives matters
        assert torch.equal(one[name].mean, other[name].mean)
        assert torch.equal(one[name].resampled, other[name].resampled)
    assert not torch.equal(one["iwae"].mean, of_phi(objectives, 20, toy(3), seed=2)["iwae"].mean)


def test_gradients_of_the_leaves_are_left_alone() -> None:
    model, guide, x, parameters = toy(3)
    parameters["phi"].grad = torch.ones(3)
    measure_gradients(model, guide, x, {"stl": stl()}, parameters=parameters, replicates=20)
    assert torch.equal(parameters["phi"].grad, torch.ones(3))
    assert parameters["theta"].grad is None


def test_slopes_of_known_powers() -> None:
    ks = (4, 16, 64, 256)
    log_k = torch.tensor(ks).log()
    values = (3 * torch.tensor(ks) ** 0.5).tolist()
    powers = torch.linspace(0.3, 0.8, 1001)
    found = slope(ks, values, (powers[:, None] * log_k).exp())
    assert found.slope == pytest.approx(0.5, abs=1e-12)
    # basic: the bootstrap's quantiles, .3125 and .7875, mirrored at the estimate
    assert (found.low, found.high) == pytest.approx((0.2125, 0.6875), abs=1e-9)
    noisy = torch.tensor(values).log() + 0.02 * torch.randn(4)
    again = slope(ks, noisy.exp().tolist(), (noisy + 0.02 * torch.randn(4000, 4)).exp())
    se = 0.02 / (log_k - log_k.mean()).norm().item()
    assert again.high - again.low == pytest.approx(2 * 1.96 * se, rel=0.1)
    assert again.slope == pytest.approx(0.5, abs=4 * se)


def test_slopes_of_the_toy() -> None:
    """REFERENCES, item 6: SNR from K=8 to 64: DReG 2.88 → 8.22, a slope of .504."""
    model, guide, x, parameters = toy(20)
    phi = {"phi": parameters["phi"]}
    found = measure_slopes(
        model, guide, x, {"dreg": dreg}, ks=(8, 64), parameters=phi, replicates=200
    )["dreg"]["all"]
    assert found.ks == (8, 64)
    assert found.slope.slope == pytest.approx(math.log(8.22 / 2.88) / math.log(8), abs=0.05)
    assert found.slope.low < found.slope.slope < found.slope.high
    assert found.slope.slope == pytest.approx(math.log(found.snr[1] / found.snr[0]) / math.log(8))
    assert [
        low < ratio < high for ratio, (low, high) in zip(found.snr, found.intervals, strict=True)
    ] == [True, True]


def test_wrong_settings() -> None:
    model, guide, x, parameters = toy(2)

    def measure(**changes: Any) -> Any:
        settings = {
            "objectives": {"stl": stl()},
            "parameters": parameters,
            "replicates": 20,
            **changes,
        }
        return measure_gradients(model, guide, x, settings.pop("objectives"), **settings)

    with pytest.raises(ConfigError, match="at least 20, not 19"):
        measure(replicates=19)
    with pytest.raises(ConfigError, match="unknown reference 'stil': did you mean 'stl'"):
        measure(reference="stil")
    with pytest.raises(ConfigError, match="unknown parameter 'fhi': did you mean 'phi'"):
        measure(groups={"φ": ["fhi"]})
    with pytest.raises(ConfigError, match="group 'φ' has no parameters"):
        measure(groups={"φ": []})
    with pytest.raises(ConfigError, match="'twice' must be a leaf"):
        measure(parameters={"twice": 2 * parameters["phi"]})
    with pytest.raises(ConfigError, match=r"at least two different values of K, not \[4, 4\]"):
        slope([4, 4], [1.0, 1.0], torch.ones(5, 2))
    for ks in ([4, 4], [0, 4], []):
        with pytest.raises(ConfigError, match="K takes different whole numbers of at least 1"):
            measure_slopes(model, guide, x, {"iwae": iwae}, ks=ks, parameters=parameters)
    with pytest.raises(ConfigError, match="unknown reference 'dregg': did you mean 'dreg'"):
        measure_slopes(
            model, guide, x, {"dreg": dreg}, ks=[1, 2], parameters=parameters, reference="dregg"
        )
    with pytest.raises(
        ConfigError,
        match=r"'vimco' is defined at none of K = 1: .* needs num_particles of at least 2, not 1",
    ):
        measure_slopes(
            model, guide, x, {"iwae": iwae, "vimco": vimco}, ks=[1], parameters=parameters
        )
    for parameter in parameters.values():
        parameter.requires_grad_(False)
    other = {"other": torch.zeros(1, requires_grad=True)}
    with pytest.raises(ProgramError, match="Objective depends on no parameter"):
        measure(parameters=other)


def test_unreached_parameters_have_no_gradient() -> None:
    model, guide, x, parameters = toy(2)
    parameters["other"] = torch.zeros(3, requires_grad=True)
    found = measure_gradients(
        model, guide, x, {"stl": stl()}, parameters=parameters, replicates=20
    )["stl"]["all"]
    assert found.mean.shape == (7,)
    assert (found.mean[4:] == 0).all()
    assert found.snr == pytest.approx(
        (found.mean[:4].abs() / found.variance[:4].sqrt()).mean().item()
    )


# Bias.


def test_bias_of_batches() -> None:
    """Norm, noise and debiased square from the definition, by sums over pairs; the last batch half
    as large.
    """
    differences, reference = torch.randn(20, 7) + 0.3, torch.randn(20, 7) + 1
    weights = torch.ones(20)
    weights[-1] = 0.5
    weights = weights / weights.sum()
    found = bias_of(differences, reference, weights)
    mean = weights @ differences
    close(found.norm, mean.norm())

    def square(values: Tensor, left_out: int = -1) -> float:
        of = [b for b in range(20) if b != left_out]
        pairs = [
            ((weights[a] * weights[b]).item(), (values[a] @ values[b]).item())
            for a in of
            for b in of
            if a != b
        ]
        return sum(w * v for w, v in pairs) / sum(w for w, _ in pairs)

    close(found.reference_norm, math.sqrt(square(reference)))
    without = torch.tensor([square(differences, b) for b in range(20)])
    reach = 2.093 * math.sqrt(19 / 20 * (without - without.mean()).square().sum().item())
    close(found.low, math.sqrt(max(square(differences) - reach, 0)))
    along = 2.093 * (differences @ mean / mean.norm()).std().item() / math.sqrt(20)
    close(
        found.high,
        max(math.sqrt(square(differences) + reach), math.sqrt(square(differences)) + along),
    )
    close(found.relative(2.0), 2 / math.sqrt(square(reference)))
    assert math.isnan(Bias().relative(1.0))
    assert math.isnan(bias_of(differences, torch.zeros(20, 7), weights).relative(1.0))


@pytest.mark.parametrize(("size", "true"), [(1, 0.0), (1, 3.0), (40, 0.0), (40, 1.0), (40, 10.0)])
def test_bias_interval_covers(size: int, true: float) -> None:
    """`true` is in units of the noise of ‖mean D‖: a share of at least 88 % of intervals, and the
    noise is known.
    """
    noise = math.sqrt(size / BATCHES)
    covered = squares = 0.0
    for _ in range(400):
        offset = torch.zeros(size)
        offset[0] = true * noise
        found = bias_of(
            offset + torch.randn(BATCHES, size),
            torch.ones(BATCHES, size),
            torch.full((BATCHES,), 1 / BATCHES),
        )
        covered += found.low <= true * noise <= found.high
        squares += found.norm**2 - found.expected**2
    assert covered / 400 > 0.88
    assert squares / 400 == pytest.approx((true * noise) ** 2, abs=0.25 * noise**2 * (1 + true))


def of_toy(num_data: int, **settings: Any) -> dict[str, SNRCurve]:
    model, guide, x, parameters = toy(num_data)
    found = measure_slopes(model, guide, x, parameters={"phi": parameters["phi"]}, **settings)
    return {name: curves["all"] for name, curves in found.items()}


def test_bias_at_each_k() -> None:
    """REFERENCES, item 6: from IWAE's mean gradient STL is −.257 away at K=2 and −.445 at K=64,
    DReG not at all.
    """
    num_data = 50
    found = of_toy(
        num_data,
        make={"stl": iwae_stl, "dreg": dreg, "iwae": iwae},
        ks=(64, 2),
        replicates=120,
        reference="iwae",
    )
    for i, known in enumerate((0.445, 0.257)):  # the order of K is the caller's
        biased, unbiased, none = (found[name].statistics[i] for name in ("stl", "dreg", "iwae"))
        low, high = biased.bias_interval
        assert 0 < low < known / math.sqrt(num_data) < high
        assert biased.bias > 3 * biased.bias_se
        assert unbiased.bias_interval[0] == 0
        assert unbiased.bias < 1.5 * unbiased.bias_se
        assert none.bias == none.bias_se == none.bias_interval[1] == 0
    norm = found["stl"].statistics[1].offset.reference_norm  # .257 a datum too, to three figures
    assert norm == pytest.approx(0.257 / math.sqrt(num_data), rel=0.15)
    assert found["stl"].statistics[1].relative_bias == pytest.approx(
        found["stl"].statistics[1].bias / norm
    )


# Over K.


def test_an_objective_is_left_out_where_it_is_not_defined() -> None:
    make = {"iwae": iwae, "vimco": vimco, "jvi": partial(parse_objective, "jvi:order=2")}
    found = of_toy(2, make=make, ks=(1, 2, 4), replicates=20, reference="vimco")
    assert {name: curve.ks for name, curve in found.items()} == {
        "iwae": (1, 2, 4),
        "vimco": (2, 4),
        "jvi": (4,),
    }
    assert all(math.isnan(end) for end in found["jvi"].slope)
    assert all(math.isfinite(end) for end in found["vimco"].slope)
    of_iwae = [one.bias for one in found["iwae"].statistics]
    assert math.isnan(of_iwae[0])  # there is no reference at K = 1
    assert of_iwae[1] > 0
    alone = of_toy(2, make={"iwae": iwae}, ks=(4,), replicates=20)["iwae"]
    assert torch.equal(alone.statistics[0].mean, found["iwae"].statistics[2].mean)
    assert math.isnan(alone.slope.slope)


def test_slopes_leave_out_a_gradient_that_is_always_zero() -> None:
    """RWS-DReG at K = 1: (ŵ − ŵ²) P = 0."""
    found = of_toy(3, make={"rws-dreg": rws_dreg}, ks=(1, 4, 16), replicates=20)["rws-dreg"]
    assert found.statistics[0].variance.max() == 0
    assert math.isnan(found.snr[0])
    assert found.slope.slope == pytest.approx(math.log(found.snr[2] / found.snr[1]) / math.log(4))


def test_progress_is_over_the_whole_work(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[Any] = []

    class Recorder:
        def __init__(self, title: str, total: int, shown: bool) -> None:
            told.append((total, shown))

        def __enter__(self) -> "Recorder":
            return self

        def __exit__(self, *_: object) -> None:
            pass

        def update(self, done: int, text: str) -> None:
            told.append((done, text))

    monkeypatch.setattr(gradients, "Progress", Recorder)
    of_toy(2, make={"iwae": iwae, "vimco": vimco}, ks=(1, 2), replicates=20, progress=True)
    assert told[0] == (60, True)
    assert [done for done, _ in told[1:]] == list(range(1, 61))
    assert [text for _, text in told[1::20]] == ["iwae, K = 2", "vimco, K = 2", "iwae, K = 1"]


# Memory.


def numbers() -> int:
    """How many bytes all living tensors hold."""
    gc.collect()
    tensors = [
        one
        for one in gc.get_objects()
        if issubclass(type(one), Tensor) and type(one) is not FakeTensor
    ]
    storages = [one.untyped_storage() for one in tensors if not one.is_sparse and not one.is_meta]
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())


def test_memory_does_not_grow_with_replicates() -> None:
    """Tensors alive at the last replicate: 40 numbers to a parameter and objective, no more for ten
    times the draws.
    """
    size = 5000
    leaf = torch.zeros(size, requires_grad=True)

    class Counting(ObjectiveBase):
        calls = last = living = 0

        def estimate(self, traces: Any) -> Any:
            raise NotImplementedError

        def bound(self, *_: Any, **__: Any) -> Any:
            self.calls += 1
            if self.calls == self.last:
                self.living = numbers()
            return type("Both", (), {"surrogate": (torch.randn(size) * leaf).sum()})

    def living(replicates: int) -> float:
        first, second = Counting(), Counting()
        second.last = replicates + 2  # a look before all work, one before its own
        nothing: Callable[..., None] = lambda x: None  # noqa: E731
        settings: dict[str, Any] = {
            "parameters": {"a": leaf},
            "groups": {"a": ("a",), "again": ("a",)},
            "reference": "first",
        }
        before = numbers()
        objectives = {"first": first, "second": second}
        measure_gradients(
            nothing, nothing, torch.zeros(1), objectives, replicates=replicates, **settings
        )
        return (second.living - before) / (8 * size)

    few, many = living(40), living(400)
    assert many == pytest.approx(few, abs=0.1)
    assert (
        80 < few < 90
    )  # 40 of each objective, means, variances and directions: not twice for two groups


# Groups.


def test_groups_of_a_vae() -> None:
    vae = zoo.vae(6, 2, encoder=MLP((3,)))
    groups = parameter_groups(vae.model, vae.guide, torch.zeros(4, 6), dict(vae.named_parameters()))
    names = [name for name, _ in vae.named_parameters()]
    assert list(groups) == ["θ", "φ", "encoder.0", "encoder.2", "decoder.0", "decoder.2"]
    assert groups["θ"] == tuple(name for name in names if name.startswith("decoder"))
    assert groups["φ"] == tuple(name for name in names if name.startswith("encoder"))
    assert groups["decoder.2"] == ("decoder.2.weight", "decoder.2.bias")


def test_groups_of_tied_weights() -> None:
    """The encoder's weights are the decoder's: shared. Each side has its own biases."""
    vae = zoo.vae(6, 2, encoder=MLP((3,)), tied=True)
    parameters = dict(vae.named_parameters())
    groups = parameter_groups(vae.model, vae.guide, torch.zeros(4, 6), parameters)
    assert groups["θ"] == ("decoder.biases.0", "decoder.biases.1")
    assert groups["φ"] == ("encoder.0.bias", "encoder.2.bias")
    assert groups["shared"] == ("encoder.0.weight", "encoder.2.weight")
    assert groups["encoder.0"] == ("encoder.0.weight", "encoder.0.bias")
    assert groups["decoder.biases"] == groups["θ"]
    found = measure_gradients(
        vae.model,
        vae.guide,
        torch.zeros(4, 6),
        {"iwae": iwae(2)},
        parameters=parameters,
        groups=groups,
        replicates=20,
    )["iwae"]
    whole = measure_gradients(
        vae.model,
        vae.guide,
        torch.zeros(4, 6),
        {"iwae": iwae(2)},
        parameters=parameters,
        replicates=20,
    )
    assert sum(len(found[group].mean) for group in ("θ", "φ", "shared")) == len(
        whole["iwae"]["all"].mean
    )
    # of parameters that do not lie side by side, in the order of the group
    split = whole["iwae"]["all"].mean.split([p.numel() for p in parameters.values()])
    of_names = dict(zip(parameters, split, strict=True))
    close(found["shared"].mean, torch.cat([of_names[name] for name in groups["shared"]]))


@pytest.mark.parametrize("name", ["ppca-exact", "ae", "discrete-vae", "vae-normal"])
def test_groups_of_other_systems(name: str) -> None:
    system, x = system_and_data(name)
    before = torch.get_rng_state()
    parameters = dict(system.named_parameters())
    groups = parameter_groups(system.model, system.guide, x, parameters)
    assert torch.equal(torch.get_rng_state(), before)
    whole = set(parameters)
    if name == "ppca-exact":  # its posterior is made of the model's own parameters
        assert (set(groups["shared"]), "θ" in groups, "φ" in groups) == (whole, False, False)
        return
    encoder = {n for n in whole if n.startswith("encoder")}
    assert set(groups["φ"]) == encoder  # a Delta's too, which has no density of its own
    assert set(groups["θ"]) == whole - encoder  # the learned scale of the likelihood among them
    assert "shared" not in groups


def test_groups_of_a_program() -> None:
    model, guide, x, parameters = toy(2)
    parameters["idle"] = torch.zeros(1, requires_grad=True)
    assert parameter_groups(model, guide, x, parameters) == {
        "θ": ("theta",),
        "φ": ("phi",),
        "theta": ("theta",),
        "phi": ("phi",),
    }
    renamed = {"θ": parameters["phi"], "b.θ": parameters["theta"]}
    groups = parameter_groups(model, guide, x, renamed)
    assert groups == {"θ": ("b.θ",), "φ": ("θ",), "module θ": ("θ",), "b": ("b.θ",)}
    with pytest.raises(ProgramError, match="depend on none of the parameters idle"):
        parameter_groups(model, guide, x, {"idle": parameters["idle"]})
    with pytest.raises(ConfigError, match="'twice' must be a leaf"):
        parameter_groups(model, guide, x, {"twice": 2 * parameters["phi"]})


# What is made of curves.


def small_curves() -> dict[str, dict[str, SNRCurve]]:
    model, guide, x, parameters = toy(3)
    make = {"iwae": iwae, "vimco": vimco, "rws-dreg": rws_dreg}
    groups = parameter_groups(model, guide, x, parameters)
    settings: dict[str, Any] = {
        "parameters": parameters,
        "groups": groups,
        "replicates": 20,
        "reference": "iwae",
    }
    return measure_slopes(model, guide, x, make, ks=(1, 2, 8), **settings)


def test_datatree_holds_the_curves() -> None:
    curves = small_curves()
    tree = gradients_to_datatree(curves, num_data=3, reference="iwae", seed=5)
    data = tree["gradients"].to_dataset()
    assert data["snr"].dims == ("objective", "particles", "group")
    assert data["objective"].values.tolist() == ["iwae", "vimco", "rws-dreg"]
    assert data["group"].values.tolist() == ["θ", "φ", "theta", "phi"]
    assert data["num_parameters"].values.tolist() == [3, 3, 3, 3]
    assert data["evaluations"].sel(objective="iwae").values.tolist() == [3, 6, 24]
    for name, of_groups in curves.items():
        for group, one in of_groups.items():
            at = data.sel(objective=name, group=group)
            assert (
                float(at["slope"]),
                float(at["slope_low"]),
                float(at["slope_high"]),
            ) == pytest.approx(one.slope, nan_ok=True)
            for k, found in zip(one.ks, one.statistics, strict=True):
                cell = at.sel(particles=k)
                known = {
                    "snr": found.snr,
                    "snr_low": found.snr_interval[0],
                    "snr_high": found.snr_interval[1],
                    "directional_snr": found.directional_snr,
                    "directional_snr_se": found.directional_snr_se,
                    "variance": found.variance.mean().item(),
                    "bias": found.bias,
                    "bias_se": found.bias_se,
                    "bias_low": found.bias_interval[0],
                    "bias_high": found.bias_interval[1],
                    "reference_norm": found.offset.reference_norm,
                    "relative_bias": found.relative_bias,
                    "relative_bias_se": found.offset.relative(found.bias_se),
                    "relative_bias_low": found.offset.relative(found.bias_interval[0]),
                    "relative_bias_high": found.offset.relative(found.bias_interval[1]),
                    "seconds": found.seconds,
                }
                assert {n: float(cell[n]) for n in known} == pytest.approx(known, nan_ok=True)
    undefined = data.sel(objective="vimco", particles=1)
    assert undefined[["snr", "bias", "variance", "seconds"]].to_array().isnull().all()
    assert all("units" in array.attrs for array in data.data_vars.values())
    for attributes in (tree.attrs, data.attrs):
        given = {"replicates": 20, "num_data": 3, "reference": "iwae", "seed": 5}
        assert {name: attributes[name] for name in given} == given
        assert "nats per datum" in attributes["units"]
    assert gradients_to_datatree(curves, num_data=3).attrs["reference"] == ""


def test_figure_holds_the_curves() -> None:
    curves = small_curves()
    shown = {name: {g: of_groups[g] for g in ("θ", "φ")} for name, of_groups in curves.items()}
    figure = gradient_curves(shown)
    panels = figure.axes
    assert len(panels) == 6
    assert [axes.get_title() for axes in panels[:2]] == [
        "θ, model: 3 parameters",
        "φ, guide: 3 parameters",
    ]
    for column, group in enumerate(("θ", "φ")):
        for row, axes in enumerate(panels[column::2]):
            assert (axes.get_xscale(), axes.get_yscale()) == ("log", "log")
            assert len(axes.lines) == len(shown) + (row != 1)
            for line, (name, of_groups) in zip(axes.lines, shown.items(), strict=False):
                one = of_groups[group]
                across = (
                    [1000 * found.seconds for found in one.statistics] if row == 2 else list(one.ks)
                )
                up = (
                    [found.variance.mean().item() or math.nan for found in one.statistics]
                    if row == 1
                    else one.snr
                )
                assert line.get_xdata() == pytest.approx(across), (name, row)
                assert line.get_ydata() == pytest.approx(up, nan_ok=True), (name, row)
            if row != 1:
                assert axes.lines[-1].get_ydata() == pytest.approx([0.8 / math.sqrt(20)] * 2)
        for band, of_groups in zip(panels[column].collections, shown.values(), strict=True):
            ends = {round(y, 9) for y in np.asarray(band.get_paths()[0].vertices)[:, 1].tolist()}
            assert {
                round(y, 9) for pair in of_groups[group].intervals for y in pair if math.isfinite(y)
            } <= ends
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == [*shown, "estimate of a ratio of 0"]
    with pytest.raises(DataError, match="no curves"):
        gradient_curves({})


def test_figure_tells_many_estimators_apart() -> None:
    (one,) = of_toy(2, make={"iwae": iwae}, ks=(1, 2), replicates=20).values()
    figure = gradient_curves({f"estimator {i}": {"φ": one} for i in range(12)})
    looks = {
        (line.get_color(), line.get_linestyle(), line.get_marker())
        for line in figure.axes[0].lines[:12]
    }
    assert len(looks) == 12
    widths = [line.get_linewidth() for line in figure.axes[0].lines[:12]]
    assert widths == sorted(widths, reverse=True)
    assert len(set(widths)) == 12


def test_an_exact_reference_makes_the_bias_known() -> None:
    """Against `enumerate`, evaluated twice, only the estimator itself has noise."""
    torch.manual_seed(0)
    system = zoo.discrete_vae(6, latent=3, decoder=MLP((4,)))
    x = (torch.rand(8, 6) < 0.3).to(torch.get_default_dtype())
    exact, calls = parse_objective("enumerate"), list[int]()
    bound = exact.bound

    def counted(*args: Any) -> Bound:
        calls.append(1)
        return bound(*args)

    exact.bound = counted  # type: ignore[method-assign, assignment]
    objectives = {"score": parse_objective("elbo+score", 4), "enumerate": exact}
    found = measure_gradients(
        system.model,
        system.guide,
        x,
        objectives,
        parameters=dict(system.named_parameters()),
        replicates=100,
        reference="enumerate",
    )
    assert len(calls) == 4  # two trial runs, and two that are compared
    of_exact, score = found["enumerate"]["all"], found["score"]["all"]
    assert of_exact.snr == math.inf
    assert of_exact.bias == 0.0
    assert of_exact.evaluations == 8 * len(x)
    noise = (score.variance.sum() / 100).sqrt().item()
    assert score.bias_se == pytest.approx(noise, rel=0.3)
    assert score.bias_interval[0] == 0.0
    assert score.bias < 3 * score.bias_se
