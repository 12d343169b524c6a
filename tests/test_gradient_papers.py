"""The papers on gradients in a small form: exact values, what is measured against them, and broken
estimators, which flip the verdict.
"""

import math
from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import pytest
import torch
from torch import Tensor

from pyroae.evaluation.gradient_lab.measure import Results
from pyroae.evaluation.gradient_lab.slopes import SNRCurve
from pyroae.objectives.bounds import IWAE
from pyroae.objectives.named import iwae, iwae_stl, score, stl, vimco
from pyroae.papers import dong_2020 as dong
from pyroae.papers import goda_2019 as goda
from pyroae.papers import lievin_2020 as lievin
from pyroae.papers import lievin_gradients, nowozin_2018, roeder_gradients, tucker_gradients
from pyroae.papers import rainforth_2018_snr as rainforth
from pyroae.papers import roeder_2017 as roeder
from pyroae.papers import tucker_2019 as tucker
from pyroae.papers.estimates import jackknife_of, mean_of, measured_parts
from pyroae.papers.paper import PAPERS, Paper, Work
from pyroae.papers.rainforth_toy import RainforthToy
from pyroae.papers.result_files import read_result
from pyroae.papers.results import Claim, PaperRow
from pyroae.papers.tucker_moments import exact_moments

RESULTS = Path(__file__).parents[1] / "benchmarks" / "results" / "papers"
KS = (2, 8, 32)
ESTIMATORS = ("IWAE", "DReG", "STL", "RWS", "RWS-DReG")
NAMES = (
    *("rainforth-2018-snr", "tucker-2019", "roeder-2017"),
    *("nowozin-2018", "dong-2020", "goda-2019", "lievin-2020"),
)


def measured(name: str, values: Mapping[str, Any]) -> dict[str, PaperRow | Claim]:
    """The rows and claims of a paper with these values, by label and text."""
    paper, work = PAPERS[name](), Work("short", Path("nowhere"))
    parts = measured_parts(work, paper.rows, paper.claims, values)
    return {part.label if isinstance(part, PaperRow) else part.text: part for part in parts}


def deviation(part: PaperRow | Claim) -> float:
    """How many standard errors an estimate lies from the derived value."""
    return (part.estimate - part.derived) / ((part.high - part.low) / 2 / 1.96)


@pytest.mark.parametrize("name", NAMES)
def test_specifications(name: str) -> None:
    """Labels are unique, every row can be compared, and nothing derived is called printed."""
    paper: Paper = PAPERS[name]()
    assert paper.name == name
    assert set(paper.scales) == {"short", "full"}
    labels = [row.label for row in paper.rows]
    texts = [claim.text for claim in paper.claims]
    assert len({*labels, *texts}) == len(labels) + len(texts)
    quantities = [part.quantity for part in paper.unmeasured("short").parts]
    assert not [text for text in (*labels, *texts, *quantities) if "|" in text]  # cells of a table
    for row in paper.rows:
        assert row.tolerance >= 0
        assert math.isnan(row.printed) != math.isnan(row.derived), row.label
        assert math.isnan(row.printed) or name == "rainforth-2018-snr"
    assert all(row.verdict == "not measured" for row in paper.rows)
    assert all(claim.verdict == "not measured" for claim in paper.claims)


MEASURED = (*((name, "short") for name in NAMES), ("tucker-2019", "full"), ("roeder-2017", "full"))


@pytest.mark.parametrize(("name", "scale"), MEASURED)
def test_results_in_the_repository(name: str, scale: str) -> None:
    """All rows agree, all claims hold, all intervals are finite."""
    result, record = read_result(RESULTS / f"{name}-{scale}.json", PAPERS[name](), scale)
    assert record["commit"]
    for part in result.parts:
        assert part.verdict in ("agrees", "holds"), part
        assert math.isfinite(part.low)
        assert math.isfinite(part.high)


def test_intervals_of_the_jackknife_are_those_of_a_mean() -> None:
    values = torch.randn(50).double()
    left_out = (values.sum() - values) / 49
    assert jackknife_of(values.mean().item(), left_out) == pytest.approx(mean_of(values))


# Rainforth.


@cache
def rainforth_curves() -> dict[str, SNRCurve]:
    return rainforth.measure(rainforth.Sizes(200, 20, (4, 32), (16, 128), num_data=64))


def test_rainforth_in_small() -> None:
    values = rainforth.values_of(rainforth_curves())
    parts = measured("rainforth-2018-snr", values)
    assert len(parts) == 6
    assert {parts[text].verdict for text in rainforth.TEXTS.values()} == {"holds"}
    axes = rainforth.draw(values).axes[0]
    assert axes.get_xscale() == axes.get_yscale() == "log"
    assert np.asarray(axes.lines[2].get_ydata()).tolist() == rainforth_curves()["DReG φ"].snr


@pytest.mark.slow
def test_rainforth_with_iwae_for_dreg() -> None:
    sizes = rainforth.Sizes(20, 200, (4, 8), (4, 32), num_data=64)
    values = rainforth.values_of(rainforth.measure(sizes, rising=iwae))
    parts = measured("rainforth-2018-snr", values)
    assert parts[rainforth.TEXTS["DReG φ"]].verdict == "contradicted"
    assert parts["DReG φ"].verdict == "differs"


@pytest.mark.slow
def test_rainforth() -> None:
    """The slopes at the full scale, D = 20, N = 1024: intervals inside the bands."""
    curves = rainforth.measure(rainforth.SIZES["full"])
    for name, low, high in (("IWAE φ", -0.6, -0.4), ("IWAE θ", 0.35, 0.6), ("DReG φ", 0.35, 0.6)):
        assert low < curves[name].slope.low < curves[name].slope.high < high, name


def test_rainforth_is_near_its_optimum() -> None:
    x = torch.randn(2000, 20) + 1
    system = RainforthToy.near_optimum(x, rainforth.OFFSET)
    offsets = torch.cat(
        [system.mu - x.mean(0), system.b - x.mean(0) / 2, (system.a - torch.eye(20) / 2).flatten()]
    )
    assert offsets.std().item() == pytest.approx(0.01, rel=0.15)
    trace = pyro.poutine.trace(system.guide).get_trace(x)
    assert trace.nodes["z"]["fn"].variance.unique().item() == pytest.approx(2 / 3)


# Tucker.


SMALL = tucker_gradients.Sizes(400, 50, 100, KS)
"""20,000 gradients of one datum, 100 of the toy's 64 data, at each K."""


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
    known, grid = exact_moments((2,)), of_two_draws()
    for name in ESTIMATORS:
        mean, variance = known[name]
        assert (mean.item(), variance.item()) == pytest.approx(grid[name], rel=1e-6), name


def test_exact_moments_are_those_known() -> None:
    """REFERENCES, item 6; the limits for large K: −.45 for STL, slopes −1/2 and +1/2 of the SNR,
    and 2 of the variances.
    """
    ks = (2, 8, 64, 128, 256)
    known = exact_moments(ks)
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
    rows = {row.label: row.derived for row in PAPERS["tucker-2019"]().rows}
    assert rows["variance, IWAE / DReG, K = 64"] == pytest.approx(49_510, rel=1e-3)


@pytest.mark.slow
def test_tucker_in_one_dimension() -> None:
    """20,000 gradients at each of K = 2, 8, 32: every figure within 4 standard errors of its exact
    value.

    Of the 18 means and SNRs about one lies outside its 95 % interval, and, were they independent,
    more than 4 with a probability of .0015.
    """
    values, known = tucker.values_of_one(tucker_gradients.measure_one(SMALL)), tucker.exact(KS)
    off = {}
    for label, expected in known.items():
        value, low, high = values[label]
        off[label] = (value - expected) / ((high - low) / 2 / 1.96)
        assert abs(off[label]) < 4, (label, value, expected)
    moments = [one for label, one in off.items() if label[:3] in ("mea", "SNR") and "K =" in label]
    assert len(moments) == 18
    assert sum(abs(one) > 1.96 for one in moments) <= 4
    unbiased, ratio = values["bias, DReG − IWAE, K = 2"], values["SNR, DReG, K = 32"]
    assert unbiased[2] - unbiased[1] < 0.03  # of a mean of .26
    assert ratio[2] - ratio[1] < 0.15  # of 5.78
    assert values["SNR, IWAE, slope"][2] < 0 < values["SNR, DReG, slope"][1]
    for k in (2, 32):
        bias = values[f"bias, STL − IWAE, K = {k}"]
        assert bias[0] < -0.25
        assert bias[2] < -0.2  # it grows, towards −.45, while the gradient vanishes
        assert values[f"variance, RWS / RWS-DReG, K = {k}"][1] > 5
    assert values["variance, IWAE / DReG, K = 2"][1] > 40
    assert values["variance, IWAE / DReG, K = 32"][1] > 10_000


def test_tucker_on_the_toy() -> None:
    """50 gradients at each of K = 2 and 32.

    Five elements: without bias, ‖bias‖ is 1 root mean square and below 2 of its errors.
    """
    sizes = tucker_gradients.Sizes(20, 20, 50, (2, 32))
    toy = tucker_gradients.measure_toy(sizes)
    values = tucker.values_of_toy(toy)
    parts = measured("tucker-2019", values)
    assert parts[f"toy: {tucker.FALLS}"].low > 0.25
    assert parts[f"toy: {tucker.RISES}"].low > 0.25
    assert parts[f"toy: {tucker.BIASED}, K = 2"].verdict == "holds"
    assert parts["toy: bias of DReG, K = 2"].verdict == "agrees"
    for i in range(2):
        found = {name: curve.statistics[i] for name, curve in toy.items()}
        assert found["DReG"].bias < 2 * found["DReG"].bias_se
        assert found["RWS-DReG"].bias < 2 * found["RWS-DReG"].bias_se
        assert found["STL"].bias > 5 * found["STL"].bias_se
        assert found["STL"].bias > 0.5 * found["DReG"].mean.norm().item()
    assert values[f"toy: {tucker.BIASED}, K = 2"][2] < 1
    assert values[f"toy: {tucker.BIASED}, K = 32"][1] > 10
    one = tucker.values_of_one(tucker_gradients.measure_one(sizes))
    left, right = tucker.draw(one, values).axes
    assert left.get_xscale() == left.get_yscale() == right.get_yscale() == "log"
    assert np.asarray(left.lines[1].get_ydata()).tolist() == toy["DReG"].snr


def test_tucker_with_a_biased_dreg() -> None:
    """STL under DReG's name: its bias is found."""
    families = ({"IWAE": iwae, "DReG": iwae_stl, "STL": iwae_stl}, tucker_gradients.FAMILIES[1])
    sizes = tucker_gradients.Sizes(400, 20, 20, (2, 64))
    values = tucker.values_of_one(tucker_gradients.measure_one(sizes, families))
    parts = measured("tucker-2019", values)
    assert parts["bias, DReG − IWAE, K = 64"].verdict == "differs"
    assert parts["mean, DReG, K = 64"].verdict == "differs"
    assert parts["bias, RWS-DReG − RWS, K = 64"].verdict == "agrees"
    assert parts[f"{tucker.BIASED}, K = 64"].verdict == "holds"


# Roeder.


@cache
def roeder_results() -> dict[float, Results]:
    """20,000 gradients of one datum at a quarter, half, three quarters and the whole posterior
    variance.
    """
    return roeder_gradients.measure(roeder_gradients.Sizes(500, 40, 1, 1, roeder.TIMES))


@pytest.mark.parametrize("parameter", ["mean", "log_scale"])
def test_roeder_variances(parameter: str) -> None:
    """20,000 gradients at each v: within 4.5 standard errors, 1 % of a Gaussian's variance, 2.7 %
    of one in ε².
    """
    exact, variances = roeder_gradients.exact_variance, roeder_gradients.variances
    results = roeder_results()
    for times in results:
        for name in roeder_gradients.ESTIMATORS:
            value = variances(results, name, parameter, times).mean().item()
            if name == "STL" and times == 1:
                assert value < 1e-28
            else:
                error = (2 / 20_000) ** 0.5 if parameter == "mean" else (14 / 20_000) ** 0.5
                expected = exact(name, parameter, times)
                assert value == pytest.approx(expected, rel=4.5 * error), (name, times)
        ratio = variances(results, "STL", parameter, times) / variances(
            results, "Monte-Carlo KL", parameter, times
        )  # both gradients are one function of ε times a constant: the noise cancels
        expected_ratio = torch.full_like(ratio, (1 - 1 / times) ** 2)
        torch.testing.assert_close(ratio, expected_ratio, rtol=1e-8, atol=1e-28)
    half = [exact(name, parameter, 0.5) for name in ("STL", "Monte-Carlo KL")]
    assert half[0] == pytest.approx(half[1])
    assert variances(results, "analytic KL", parameter, 1.0).mean() > 0.4
    assert variances(results, "Monte-Carlo KL", parameter, 1.0).mean() > 1.8


def test_roeder_is_unbiased() -> None:
    """20,000 paired differences: in m STL less the total derivative is ε/σ, in log σ ε² − 1: errors
    of 1/(141 σ) and .01.
    """
    parts = measured("roeder-2017", roeder.values_of_gradients(roeder_results()))
    for times in (0.25, 1.0):
        sigma = (times * roeder_gradients.VARIANCE) ** 0.5
        for symbol, spread in (("m", 1 / sigma), ("log σ", 2**0.5)):
            one = parts[f"mean in {symbol}, STL − Monte-Carlo KL, v = {times:g}"]
            assert abs(deviation(one)) < 3.5, one
            assert (one.high - one.low) / 3.92 == pytest.approx(spread / 20_000**0.5, rel=0.15)
    for claim in roeder.VARIANCE_CLAIMS:
        assert parts[claim.text].verdict == "holds"
        assert abs(deviation(parts[claim.text])) < 4


@pytest.mark.slow
def test_roeder_settles() -> None:
    """200 runs of 400 steps, the last 133 looked at: mean squares known to about 6 %, and exact to
    first order in η.
    """
    sizes = roeder_gradients.Sizes(1, 20, 200, 400)
    errors = {
        name: roeder_gradients.train(objective, sizes)
        for name, objective in roeder_gradients.ESTIMATORS.items()
    }
    values = roeder.values_of_training(errors)
    parts = measured("roeder-2017", values)
    for name, error in errors.items():
        assert error[0, :, 0].tolist() == pytest.approx(
            [0.4034] * 200, abs=1e-4
        )  # ½ (2 + .5 − 1 − log 2) at the prior
        if name == "STL":
            assert error[-1, :, 0].max() < 1e-8
            continue
        square = parts[f"(m − 1/2)², {name}"]
        assert square.derived == pytest.approx(
            {"Monte-Carlo KL": 0.0102, "analytic KL": 0.00255}[name], rel=0.01
        )
        assert square.estimate == pytest.approx(square.derived, rel=0.2)
        early, late = error[200:300, :, 0].mean().item(), error[300:, :, 0].mean().item()
        assert late == pytest.approx(early, rel=0.25)  # no longer falling
        assert late > 0.004
        assert parts[f"SGD with STL ends nearer to the posterior than with the {name}"].low > 0
    gradients = roeder.values_of_gradients(roeder_results())
    left, right = roeder.draw(gradients, values).axes
    assert np.asarray(left.lines[1].get_xdata()).tolist() == list(roeder.TIMES)
    variances = [
        roeder_gradients.variances(roeder_results(), "STL", "mean", t) for t in roeder.TIMES
    ]
    assert np.asarray(left.lines[5].get_ydata()).tolist() == pytest.approx(
        [v.mean().item() for v in variances]
    )
    assert right.get_yscale() == "log"
    assert len(np.asarray(right.lines[0].get_ydata())) == 80


@pytest.mark.slow
def test_roeder_with_the_score() -> None:
    """Two estimators under each other's name: the claims are contradicted, the variances differ."""
    normal = roeder_gradients.ESTIMATORS
    swapped = {**normal, "Monte-Carlo KL": stl(), "STL": normal["Monte-Carlo KL"]}
    sizes = roeder_gradients.Sizes(200, 20, 1, 1, roeder.TIMES)
    values = roeder.values_of_gradients(roeder_gradients.measure(sizes, swapped))
    parts = measured("roeder-2017", values)
    assert {parts[claim.text].verdict for claim in roeder.VARIANCE_CLAIMS} == {"contradicted"}
    assert parts["variance in m, STL, v = 1"].verdict == "differs"


def test_a_measurement_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows and claims of the whole paper, files and figure; the second time nothing is measured."""
    sizes = roeder_gradients.Sizes(20, 20, 20, 60, roeder.TIMES)
    monkeypatch.setitem(roeder.SIZES, "short", sizes)
    paper = PAPERS["roeder-2017"]()
    work = Work("short", tmp_path, progress=False)
    first = list(paper.measure(work))
    assert len(first) == len(paper.rows) + len(paper.claims)
    result = paper.unmeasured("short")
    for part in first:
        result = result.updated(part, 1.0)
    assert not [row for row in result.rows if row.verdict == "not measured"]
    assert (tmp_path / "roeder_2017.png").read_bytes().startswith(b"\x89PNG")
    monkeypatch.setattr(roeder, "measure", None)
    monkeypatch.setattr(roeder, "train", None)
    assert list(paper.measure(work)) == first
    only = list(paper.measure(replace(work, only="analytic KL, v = 0.5")))
    assert [part.label for part in only if isinstance(part, PaperRow)] == [
        "variance in m, analytic KL, v = 0.5",
        "variance in log σ, analytic KL, v = 0.5",
    ]


# Nowozin.


def test_biases_of_the_jackknife_are_those_known() -> None:
    """REFERENCES §4, item 1."""
    known = {1: (-0.577216, None), 2: (-0.270363, 0.036490), 5: (-0.103320, 0.004106)}
    for k, (of_iwae, of_jvi) in {**known, 10: (-0.050833, 0.000923)}.items():
        assert nowozin_2018.exact_bias(k, 0) == pytest.approx(of_iwae, abs=5e-7)
        if of_jvi is not None:
            assert nowozin_2018.exact_bias(k, 1) == pytest.approx(of_jvi, abs=5e-7)


def test_nowozin_in_small() -> None:
    sizes = nowozin_2018.Sizes(50_000, chunk=20_000)
    values: dict[str, Any] = {}
    for k in nowozin_2018.ORDERS:
        estimates = nowozin_2018.measure(k, sizes)
        assert len(estimates[1]) == 50_000
        values |= nowozin_2018.values_of(k, estimates)
    parts = measured("nowozin-2018", values)
    assert len(parts) == 11
    assert max(abs(deviation(part)) for part in parts.values()) < 4
    texts = [claim.text for claim in nowozin_2018.CLAIMS if "than IWAE" in claim.text]
    assert [parts[text].verdict for text in texts] == ["holds"] * 3


def test_a_difference_of_sizes_does_not_trust_an_unknown_sign() -> None:
    """Two means of .01 and .002 with errors of .01: the noise of one is that of the other."""
    torch.manual_seed(1)
    noise = torch.randn(10_000).double()
    noise = noise - noise.mean()
    one, other = noise - 0.01, noise + 0.002
    value, low, high = nowozin_2018.size_difference(one, other)
    assert value == pytest.approx(0.008)
    assert low == pytest.approx(-0.008 - 1.96 * 0.02, abs=1e-3)
    assert high == pytest.approx(0.008 + 1.96 * 0.02, abs=1e-3)


def test_nowozin_without_the_jackknife() -> None:
    estimates = nowozin_2018.measure(5, nowozin_2018.Sizes(20_000), lambda k, _: IWAE(k))
    parts = measured("nowozin-2018", nowozin_2018.values_of(5, estimates))
    claims = [part for part in parts.values() if isinstance(part, Claim)]
    assert [claim.verdict for claim in claims] == ["within noise"] * 2
    assert parts["bias of JVI-1, K = 5"].verdict == "differs"


# Dong.


@pytest.mark.parametrize("logit", dong.LOGITS)
def test_exact_variances_are_sums_over_uniforms(logit: float) -> None:
    """The three gradients as functions of one or two uniform numbers, on a grid."""
    u = (torch.arange(2000, dtype=torch.float64) + 0.5) / 2000
    bar, change = 1 / (1 + math.exp(logit)), 1 - logit
    one, other = (u > bar).double(), (1 - u > bar).double()
    first, second = one[:, None], one[None, :]
    p = 1 - bar
    gradients = {
        "DisARM": change * (one - other) ** 2 * max(p, bar) / 2,
        "ARM": change * (one - other) * (u - 0.5),
        "leave-one-out": change * (first - second) * ((first - p) - (second - p)) / 2,
    }
    for name, gradient in gradients.items():
        mean, variance = dong.exact_moments(name, logit)
        assert gradient.mean().item() == pytest.approx(mean, rel=2e-3, abs=1e-9)
        assert gradient.var(correction=0).item() == pytest.approx(variance, rel=4e-3, abs=1e-9)


def test_dong_in_small() -> None:
    values = dong.values_of(0.0, dong.measure(0.0, dong.Sizes(500, 20)))
    parts = measured("dong-2020", values)
    assert len(parts) == 8
    assert {part.verdict for part in parts.values()} == {"agrees", "holds"}
    other = parts["variance of leave-one-out, logit 0"]
    assert other.derived == 1 / 16
    assert abs(deviation(other)) < 4


def test_dong_with_the_estimators_swapped() -> None:
    swapped = {**dong.ESTIMATORS, "DisARM": score(2), "leave-one-out": dong.ESTIMATORS["DisARM"]}
    parts = measured(
        "dong-2020", dong.values_of(0.0, dong.measure(0.0, dong.Sizes(500, 20), swapped))
    )
    text = "DisARM has less variance than {}, logit 0"
    assert {parts[text.format(other)].verdict for other in dong.OTHERS} == {"contradicted"}
    assert parts["variance of DisARM, logit 0"].verdict == "differs"


# Goda.


def test_levels_sum_to_the_evidence() -> None:
    """From ψ(1), the mean of one draw's logarithm, the levels lead to log p = 0."""
    start = torch.digamma(torch.tensor(1.0, dtype=torch.float64)).item()
    total = start + sum(goda.exact_level(level)[0] for level in range(1, 21))
    assert total == pytest.approx(0.0, abs=1e-6)
    ratio = goda.exact_level(19)[1] / goda.exact_level(20)[1]
    assert ratio == pytest.approx(4, abs=1e-3)


def test_goda_in_small() -> None:
    sizes = goda.Sizes(2000, 2000)
    values = goda.values_of(goda.measure_levels(sizes))
    values["mean of the estimate"] = mean_of(goda.measure_roulette(sizes))
    parts = measured("goda-2019", values)
    assert len(parts) == len(goda.ROWS) + 2
    assert max(abs(deviation(part)) for part in parts.values()) < 4
    assert [parts[claim.text].verdict for claim in goda.CLAIMS] == ["holds", "holds"]


def first_half(num_particles: int) -> Any:
    """The IWAE bound of the first half alone."""

    class Half:
        def value(self, log_weight: Tensor) -> Tensor:
            return IWAE(num_particles // 2).value(log_weight[: num_particles // 2])

    return Half()


def test_goda_without_the_second_half() -> None:
    parts = measured(
        "goda-2019", goda.values_of(goda.measure_levels(goda.Sizes(2000, 1), first_half))
    )
    assert parts[goda.BETTER].verdict != "holds"
    assert parts["decay of E Δ², both halves"].verdict == "differs"
    assert parts["E Δ², level 8"].verdict == "differs"


# Liévin.


def test_exact_moments_of_bits_are_those_known() -> None:
    """REFERENCES §5: SNRs of OVIS and VIMCO; sums over both bits by hand at K = 2."""
    known = lievin.exact()
    for k, of_ovis, of_vimco in ((8, 4.0, 0.40), (64, 16.0, 0.146)):
        assert known[f"Bernoulli: SNR, OVIS, K = {k}"] == pytest.approx(of_ovis, rel=0.01)
        assert known[f"Bernoulli: SNR, VIMCO, K = {k}"] == pytest.approx(of_vimco, rel=0.01)
    assert known["Gaussian: mean, OVIS, K = 8"] == pytest.approx(-0.0543, abs=2e-4)
    assert known["Gaussian: mean, OVIS, K = 64"] == pytest.approx(-0.00651, abs=1e-5)
    assert known["Gaussian: mean, OVIS, γ = 1, K = 8"] == pytest.approx(-0.463, abs=1e-3)
    logit = torch.zeros((), dtype=torch.float64, requires_grad=True)
    bits = torch.tensor([0.0, 1.0], dtype=torch.float64)
    log_q = torch.distributions.Bernoulli(logits=logit).log_prob(bits)
    log_w = torch.tensor([-2.0, 0.0], dtype=torch.float64) + math.log(0.5) - log_q
    pairs = torch.cartesian_prod(torch.arange(2), torch.arange(2))
    bound = (log_q[pairs].sum(1).exp() * log_w[pairs].logsumexp(1)).sum()
    (expected,) = torch.autograd.grad(bound, logit)
    for name in ("OVIS", "VIMCO"):
        mean, _ = lievin_gradients.exact_bernoulli((2,))[name]
        assert mean.item() == pytest.approx(expected.item(), rel=1e-9)


def test_lievin_in_small() -> None:
    sizes = lievin_gradients.Sizes(100, 20)
    values: dict[str, Any] = {}
    for toy, measure in lievin.TOYS.items():
        values |= lievin.values_of(toy, measure(sizes))
    parts = measured("lievin-2020", values)
    assert len(parts) == 24
    known = [part for part in parts.values() if math.isfinite(part.derived)]
    assert len(known) == 21
    assert max(abs(deviation(part)) for part in known) < 4
    assert {parts[claim.text].verdict for claim in lievin.claims()} == {"holds"}
    rise = values["Gaussian: SNR, OVIS, K = 64"][0] / values["Gaussian: SNR, OVIS, K = 8"][0]
    assert rise == pytest.approx(5.61 / 1.75, rel=0.15)


@pytest.mark.slow
def test_lievin_with_vimco_for_ovis() -> None:
    swapped = {
        **lievin_gradients.ESTIMATORS,
        "OVIS": vimco,
        "VIMCO": lievin_gradients.ESTIMATORS["OVIS"],
    }
    sizes = lievin_gradients.Sizes(100, 40)
    values = lievin.values_of("Bernoulli", lievin_gradients.measure_bernoulli(sizes, swapped))
    parts = measured("lievin-2020", values)
    assert parts[f"Bernoulli: {lievin.RISES}"].verdict == "contradicted"
    assert parts[f"Bernoulli: {lievin.ABOVE}, K = 64"].verdict == "contradicted"
    assert parts["Bernoulli: SNR, OVIS, K = 8"].verdict == "differs"
