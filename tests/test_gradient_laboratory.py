"""The gradient laboratory against stored replicates, closed-form variances and known biases and rates."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from pyroae.errors import ConfigError, ProgramError
from pyroae.evaluation.gradients import BATCHES, GradientStatistics, measure_gradients, measure_slopes, slope
from pyroae.objectives import ELBO, AnalyticKL, Objective, ObjectiveBase
from pyroae.objectives.named import dreg, iwae, iwae_stl, stl
from tests.test_examples import example

pytestmark = pytest.mark.usefixtures("float64")


def toy(
    num_data: int, *, mean: float = 0.8, variance: float = 2 / 3, weight: float = 1.0, noise: float = 1.0
) -> tuple[Any, Any, Tensor, dict[str, Tensor]]:
    """z ~ N(θ, 1), x|z ~ N(w z, s²), x = 1, q = N(φ_n, v): REFERENCES, item 3; θ and φ one for each datum."""
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
    torch.testing.assert_close(torch.as_tensor(found), torch.as_tensor(expected), rtol=1e-10, atol=1e-10, check_dtype=False)


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
        model, guide, x, objectives, parameters=parameters, groups=groups, replicates=replicates, seed=5, reference="dreg"
    )
    assert list(found) == ["iwae", "dreg"]
    every = {name: stored(objective, system, replicates, 5) for name, objective in objectives.items()}
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
    (found,) = measure_gradients(model, guide, x, {"iwae": iwae(3)}, parameters=phi, replicates=40)["iwae"].values()
    gradients = stored(iwae(3), system, 40, 0)["phi"]
    close(found.directional_snr, ratios(gradients[20:], direction(gradients[:20])).mean())
    assert math.isnan(found.bias)
    assert math.isnan(found.bias_se)


def test_directional_snr_of_one_known_gradient() -> None:
    """Noise-free but for its length: Δ = (3, 4)(1 + ε) lies along its mean; against the direction of (1, 0), 3 : 4."""
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
    found = measure_gradients(nothing, nothing, torch.zeros(1), lines, parameters={"a": leaf}, replicates=40, reference="axis")
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
    found = measure_gradients(model, guide, x, objectives, parameters=phi, replicates=replicates, **settings)
    return {name: statistics["all"] for name, statistics in found.items()}


@pytest.mark.parametrize("variance", [0.08, 0.9])  # below half the posterior's, 1 / (1 + λ), and above it
def test_variances_in_closed_form(variance: float) -> None:
    """REFERENCES, item 5, λ = w²/s²: MC-KL (1+λ)² v; analytic KL λ² v; STL (1/√v − (1+λ)√v)²."""
    weight, noise, num_data = 1.5, 0.8, 100
    precision = weight**2 / noise**2
    system = toy(num_data, variance=variance, weight=weight, noise=noise)
    objectives = {"mc": Objective(ELBO()), "analytic": AnalyticKL(), "stl": stl()}
    found = of_phi(objectives, 300, system)
    expected = {
        "mc": (1 + precision) ** 2 * variance,
        "analytic": precision**2 * variance,
        "stl": (variance**-0.5 - (1 + precision) * variance**0.5) ** 2,
    }
    for name, value in expected.items():  # 30,000 draws: a relative SE of √(2 / 30,000)
        assert found[name].variance.mean().item() * num_data**2 == pytest.approx(value, rel=4.5 * math.sqrt(2 / 30_000)), name
    assert (expected["stl"] > expected["mc"]) == (variance < 0.5 / (1 + precision))


def test_differences_are_paired() -> None:
    """STL less pathwise is ε/√v draw by draw; apart, each has the variance of all the rest too."""
    num_data, replicates, variance = 50, 200, 2.0
    system = toy(num_data, variance=variance, weight=1.5, noise=0.8)
    objectives = {"pathwise": Objective(ELBO()), "stl": stl(), "dreg": dreg(1)}
    found = of_phi(objectives, replicates, system, reference="pathwise")
    paired = math.sqrt(1 / variance / replicates / num_data)
    assert found["stl"].bias_se == pytest.approx(paired, rel=0.15)
    unpaired = ((found["stl"].variance + found["pathwise"].variance).sum() / replicates).sqrt().item()
    assert found["stl"].bias_se < 0.15 * unpaired
    assert found["dreg"].bias == pytest.approx(found["stl"].bias, rel=1e-9)  # the same estimator at K = 1
    assert found["pathwise"].bias == found["pathwise"].bias_se == 0


def test_bias_is_found_where_there_is_one() -> None:
    """REFERENCES, item 6: at K=2 the mean is −.257 for IWAE and DReG, −.514 for IWAE-STL."""
    num_data = 50
    objectives = {"stl": iwae_stl(2), "dreg": dreg(2), "iwae": iwae(2)}
    found = of_phi(objectives, 400, toy(num_data), reference="iwae")
    assert found["stl"].bias > 3 * found["stl"].bias_se
    biased = (found["stl"].mean - found["iwae"].mean).mean().item() * num_data
    assert biased == pytest.approx(-0.257, abs=0.03)
    assert found["dreg"].bias < 1.5 * found["dreg"].bias_se  # about 1 where there is none


def test_signal_to_noise_and_its_interval() -> None:
    """REFERENCES, item 6: .106 (IWAE) and 2.88 (DReG) at K=8. Intervals of other seeds agree on where the ratio lies."""
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
    found = measure_slopes(model, guide, x, {"dreg": dreg}, ks=(8, 64), parameters=phi, replicates=200)["dreg"]["all"]
    assert found.ks == (8, 64)
    assert found.slope.slope == pytest.approx(math.log(8.22 / 2.88) / math.log(8), abs=0.05)
    assert found.slope.low < found.slope.slope < found.slope.high
    assert found.slope.slope == pytest.approx(math.log(found.snr[1] / found.snr[0]) / math.log(8))
    assert [low < ratio < high for ratio, (low, high) in zip(found.snr, found.intervals, strict=True)] == [True, True]


def test_rainforth_in_small() -> None:
    module = example("papers/rainforth_2018")
    curves = module.measure(64, 200, falling=(4, 32), rising=(16, 128))
    signs = {name: (curve.slope.low > 0) - (curve.slope.high < 0) for name, curve in curves.items()}
    assert signs == {"IWAE φ": -1, "IWAE θ": 1, "DReG φ": 1}
    axes = module.draw(curves).axes[0]
    assert axes.get_xscale() == axes.get_yscale() == "log"
    assert axes.lines[2].get_ydata().tolist() == curves["DReG φ"].snr


@pytest.mark.slow
def test_rainforth(tmp_path: Path) -> None:
    """The published slopes, D = 20, N = 1024: intervals inside the bands."""
    curves = example("papers/rainforth_2018").main(["--out", str(tmp_path / "rainforth.png")])
    for name, low, high in (("IWAE φ", -0.6, -0.4), ("IWAE θ", 0.35, 0.6), ("DReG φ", 0.35, 0.6)):
        assert low < curves[name].slope.low < curves[name].slope.high < high, name


def test_rainforth_is_near_its_optimum() -> None:
    module = example("papers/rainforth_2018")
    x = torch.randn(2000, 20) + 1
    system = module.Toy(x)
    offsets = torch.cat([system.mu - x.mean(0), system.b - x.mean(0) / 2, (system.a - torch.eye(20) / 2).flatten()])
    assert offsets.std().item() == pytest.approx(0.01, rel=0.15)
    trace = pyro.poutine.trace(system.guide).get_trace(x)
    assert trace.nodes["z"]["fn"].variance.unique().item() == pytest.approx(2 / 3)


def test_wrong_settings() -> None:
    model, guide, x, parameters = toy(2)

    def measure(**changes: Any) -> Any:
        settings = {"objectives": {"stl": stl()}, "parameters": parameters, "replicates": 20, **changes}
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
        measure_slopes(model, guide, x, {"iwae": iwae}, ks=[4, 4], parameters=parameters)
    for parameter in parameters.values():
        parameter.requires_grad_(False)
    other = {"other": torch.zeros(1, requires_grad=True)}
    with pytest.raises(ProgramError, match="Objective hangs on no parameter"):
        measure(parameters=other)


def test_unreached_parameters_have_no_gradient() -> None:
    model, guide, x, parameters = toy(2)
    parameters["other"] = torch.zeros(3, requires_grad=True)
    found = measure_gradients(model, guide, x, {"stl": stl()}, parameters=parameters, replicates=20)["stl"]["all"]
    assert found.mean.shape == (7,)
    assert (found.mean[4:] == 0).all()
    assert found.snr == pytest.approx((found.mean[:4].abs() / found.variance[:4].sqrt()).mean().item())
