"""The examples of published claims in a short form: their exact figures, and what they measure
against those.
"""

import math
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.test_examples import example

KS = (2, 8, 32)
ESTIMATORS = ("IWAE", "DReG", "STL", "RWS", "RWS-DReG")


@cache
def tucker() -> tuple[ModuleType, Any]:
    """The example, and both models measured: 20,000 gradients of one datum, 100 of the toy's 64
    data, at each K.
    """
    module = example("papers/tucker_2019")
    return module, module.study(
        module.measure_one(400, 50, KS, seed=0), module.measure_toy(64, 100, KS, seed=0)
    )


@cache
def roeder() -> tuple[ModuleType, Any]:
    """The example, and 20,000 gradients of one datum at a quarter, half, three quarters and the
    whole posterior variance.
    """
    module = example("papers/roeder_2017")
    return module, module.measure(
        500, 40, [module.VARIANCE * times for times in (0.25, 0.5, 0.75, 1.0)], seed=0
    )


def deviation(claim: Any) -> float:
    """How many standard errors a figure lies from the derived one."""
    return (claim.measured - claim.derived) / ((claim.high - claim.low) / 2 / 1.96)


def of_two_draws() -> dict[str, tuple[float, float]]:
    """Mean and variance of each gradient of Tucker's model at K = 2 by a sum over a grid of both
    draws.
    """
    v = 2 / 3
    z = torch.linspace(-4.5, 6.1, 401, dtype=torch.float64)
    density = torch.exp(-((z - 0.8) ** 2) / (2 * v)) / math.sqrt(2 * math.pi * v) * (z[1] - z[0])
    weight = torch.exp(-(z**2) / 2 - (1 - z) ** 2 / 2 + (z - 0.8) ** 2 / (2 * v))
    score = (z - 0.8) / v
    path = -z + (1 - z) + score
    share = weight[:, None] / (
        weight[:, None] + weight
    )  # of the first draw; the second has the rest, in the transpose
    coefficients: dict[str, tuple[Tensor, Tensor]] = {
        "IWAE": (share, path - score),
        "DReG": (share**2, path),
        "STL": (share, path),
        "RWS": (share, score),
        "RWS-DReG": (share - share**2, path),
    }
    found = {}
    for name, (coefficient, part) in coefficients.items():
        gradient = coefficient * part[:, None] + (coefficient * part[:, None]).T
        mean = density @ gradient @ density
        found[name] = mean.item(), (density @ (gradient - mean).square() @ density).item()
    return found


def test_exact_moments_at_two_draws() -> None:
    known, grid = example("papers/tucker_2019").exact((2,)), of_two_draws()
    for name in ESTIMATORS:
        mean, variance = known[name]
        assert (mean.item(), variance.item()) == pytest.approx(grid[name], rel=1e-6), name


def test_exact_moments_are_those_known() -> None:
    """REFERENCES, item 6; the limits for large K: −.45 for STL, slopes −1/2 and +1/2 of the SNR,
    and 2 of the variances.
    """
    ks = (2, 8, 64, 128, 256)
    known = example("papers/tucker_2019").exact(ks)
    assert known["DReG"][0][0].item() == pytest.approx(-0.256, abs=5e-4)
    assert known["STL"][0][[0, 2]].tolist() == pytest.approx([-0.514, -0.452], abs=5e-4)
    torch.testing.assert_close(known["DReG"][0], known["IWAE"][0])
    torch.testing.assert_close(known["RWS-DReG"][0], known["RWS"][0])
    snr = {name: mean.abs() / variance.sqrt() for name, (mean, variance) in known.items()}
    assert snr["IWAE"][1].item() == pytest.approx(0.106, abs=5e-4)
    assert snr["DReG"][[1, 2]].tolist() == pytest.approx([2.88, 8.22], rel=0.01)
    assert known["STL"][0][-1].item() == pytest.approx(-0.45, abs=1e-3)
    for name, slope in (("IWAE", -0.5), ("DReG", 0.5)):
        assert (snr[name][-1] / snr[name][-2]).log2().item() == pytest.approx(slope, abs=0.01)
    ratio = known["IWAE"][1] / known["DReG"][1]
    assert (ratio[-1] / ratio[-2]).log2().item() == pytest.approx(2, abs=0.02)


@pytest.mark.slow
def test_tucker_in_one_dimension() -> None:
    """20,000 gradients at each of K = 2, 8, 32: every figure within 4 standard errors of its exact
    value.

    Of the 18 means and SNRs about one lies outside its 95 % interval, and, were they independent,
    more than 4 with a probability of .0015.
    """
    _, found = tucker()
    one = {name: claim for name, claim in found.claims.items() if not name.startswith("toy")}
    assert len(one) == 13
    assert len(found.moments) == 18
    for claim in (*one.values(), *found.moments.values()):
        assert abs(deviation(claim)) < 4, claim
    assert sum(abs(deviation(claim)) > 1.96 for claim in found.moments.values()) <= 4
    unbiased, ratio = one["bias, DReG − IWAE, K = 2"], found.moments["SNR, DReG, K = 32"]
    assert unbiased.high - unbiased.low < 0.03  # of a mean of .26
    assert ratio.high - ratio.low < 0.15  # of 5.78
    assert one["SNR, IWAE, slope in K"].high < 0 < one["SNR, DReG, slope in K"].low
    for place in ("K = 2", "K = 32"):
        bias = one[f"bias, STL − IWAE, {place}"]
        assert bias.measured < -0.25
        assert bias.high < -0.2  # it grows, towards −.45, while the gradient vanishes
        assert one[f"variance, RWS / RWS-DReG, {place}"].low > 5
    assert one["variance, IWAE / DReG, K = 2"].low > 40
    assert one["variance, IWAE / DReG, K = 32"].low > 10_000


def test_tucker_on_the_toy() -> None:
    """100 gradients at each K.

    Five elements: without bias, ‖bias‖ is 1 root mean square and below 2 of its errors.
    """
    module, found = tucker()
    assert found.claims["toy: SNR, IWAE, slope in K"].high < -0.25
    assert found.claims["toy: SNR, DReG, slope in K"].low > 0.25
    for i in range(len(KS)):
        size = found.toy["DReG"].statistics[i].mean.norm().item()
        assert found.toy["DReG"].statistics[i].bias < 2 * found.toy["DReG"].statistics[i].bias_se
        assert (
            found.toy["RWS-DReG"].statistics[i].bias
            < 2 * found.toy["RWS-DReG"].statistics[i].bias_se
        )
        assert found.toy["STL"].statistics[i].bias > 5 * found.toy["STL"].statistics[i].bias_se
        assert found.toy["STL"].statistics[i].bias > 0.5 * size
    assert found.claims["toy: ‖bias‖ / ‖mean‖, STL, K = 2"].high < 1
    assert found.claims["toy: ‖bias‖ / ‖mean‖, STL, K = 32"].low > 10
    left, right = module.draw(found).axes
    assert left.get_xscale() == left.get_yscale() == right.get_yscale() == "log"
    assert left.lines[1].get_ydata().tolist() == found.toy["DReG"].snr


def test_tucker_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = [
        "--replicates",
        "20",
        "--num-data",
        "20",
        "--ks",
        "2",
        "64",
        "--out",
        str(tmp_path / "t.png"),
    ]
    found = example("papers/tucker_2019").main(settings)
    assert (tmp_path / "t.png").read_bytes().startswith(b"\x89PNG")
    printed = capsys.readouterr().out
    assert all(f"{name} " in printed for name in (*found.claims, *found.moments))
    assert found.claims["variance, IWAE / DReG, K = 64"].derived == pytest.approx(49_510, rel=1e-3)


@pytest.mark.parametrize("parameter", ["mean", "log_scale"])
def test_roeder_variances(parameter: str) -> None:
    """20,000 gradients at each v: within 4.5 standard errors, 1 % of a Gaussian's variance, 2.7 %
    of one in ε².
    """
    module, found = roeder()
    for v in found:
        for name in module.ESTIMATORS:
            measured = module.variances(found, name, parameter, v).mean().item()
            expected = module.derived(name, parameter, v)
            if name == "STL" and v == module.VARIANCE:
                assert measured < 1e-28
            else:
                error = (2 / 20_000) ** 0.5 if parameter == "mean" else (14 / 20_000) ** 0.5
                assert measured == pytest.approx(expected, rel=4.5 * error), (name, v)
        ratio = module.variances(found, "STL", parameter, v) / module.variances(
            found, "Monte-Carlo KL", parameter, v
        )
        u = (
            v / module.VARIANCE
        )  # both gradients are one function of ε times a constant: the noise cancels
        torch.testing.assert_close(
            ratio, torch.full_like(ratio, (1 - 1 / u) ** 2), rtol=1e-8, atol=1e-28
        )
    half, whole = 0.5 * module.VARIANCE, module.VARIANCE
    assert module.derived("STL", parameter, half) == pytest.approx(
        module.derived("Monte-Carlo KL", parameter, half)
    )
    assert module.variances(found, "analytic KL", parameter, whole).mean() > 0.4
    assert module.variances(found, "Monte-Carlo KL", parameter, whole).mean() > 1.8


def test_roeder_is_unbiased() -> None:
    """20,000 paired differences: in m STL less the total derivative is ε/σ, in log σ ε² − 1: errors
    of 1/(141 σ) and .01.
    """
    module, found = roeder()
    claims = {claim.name: claim for claim in module.claims_of_gradients(found)}
    for times in (0.25, 1.0):
        sigma = (times * module.VARIANCE) ** 0.5
        for symbol, spread in (("m", 1 / sigma), ("log σ", 2**0.5)):
            one = claims[f"mean in {symbol}, STL − Monte-Carlo KL, {times:.2f}"]
            assert abs(deviation(one)) < 3.5, one
            assert (one.high - one.low) / 3.92 == pytest.approx(spread / 20_000**0.5, rel=0.15)


def test_roeder_settles() -> None:
    """200 runs of 400 steps, the last 133 looked at: mean squares known to about 6 %, and exact to
    first order in η.
    """
    module = example("papers/roeder_2017")
    errors = {
        name: module.train(objective, 200, 400, seed=0)
        for name, objective in module.ESTIMATORS.items()
    }
    found = {claim.name: claim for claim in module.claims_of_training(errors)}
    for name, error in errors.items():
        assert error[0, :, 0].tolist() == pytest.approx(
            [0.4034] * 200, abs=1e-4
        )  # ½ (2 + .5 − 1 − log 2) at the prior
        if name == "STL":
            assert error[-1, :, 0].max() < 1e-8
            continue
        square = found[f"(m − μ)² after SGD, {name}"]
        assert square.derived == pytest.approx(
            {"Monte-Carlo KL": 0.0102, "analytic KL": 0.00255}[name], rel=0.01
        )
        assert square.measured == pytest.approx(square.derived, rel=0.2)
        early, late = error[200:300, :, 0].mean().item(), error[300:, :, 0].mean().item()
        assert late == pytest.approx(early, rel=0.25)  # no longer falling
        assert late > 0.004
    assert found["KL(q ‖ posterior) after SGD, STL"].high < 1e-8


def test_roeder_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = ["--num-data", "20", "--replicates", "20", "--runs", "20", "--steps", "60"]
    module = example("papers/roeder_2017")
    found = module.main([*settings, "--out", str(tmp_path / "r.png")])
    assert (tmp_path / "r.png").read_bytes().startswith(b"\x89PNG")
    printed = capsys.readouterr().out
    assert all(name in printed for name in found.claims)
    left, right = module.draw(found).axes
    assert left.lines[1].get_xdata().tolist() == pytest.approx(
        [v / module.VARIANCE for v in module.SWEEP]
    )
    assert left.lines[5].get_ydata().tolist() == pytest.approx(
        [module.variances(found.gradients, "STL", "mean", v).mean().item() for v in module.SWEEP]
    )
    assert right.get_yscale() == "log"
    assert len(right.lines[0].get_ydata()) == 60
