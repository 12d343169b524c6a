"""Rainforth et al. 2018: the signal-to-noise ratio of gradients against K, on a toy model."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from matplotlib.figure import Figure

from pyroae.evaluation.gradient_lab.measure import measure_slopes
from pyroae.evaluation.gradient_lab.slopes import SNRCurve
from pyroae.objectives.base import ObjectiveBase
from pyroae.objectives.named import dreg, iwae
from pyroae.papers.estimates import measured_parts, negative
from pyroae.papers.paper import PAPERS, Paper, Scale, Work
from pyroae.papers.rainforth_toy import RainforthToy, toy_data
from pyroae.papers.results import Claim, PaperRow
from pyroae.plots.canvas import Target, canvas
from pyroae.plots.drawing import RUNS, plain, save

DIMENSIONS, OFFSET = 20, 0.01


@dataclass(frozen=True)
class Sizes:
    """How many gradients are measured, and of how many data and particles.

    Attributes:
        replicates: Gradients at each K where the SNR falls.
        few: Gradients at each K where it rises and is far above the noise.
        falling: The numbers of particles where it falls.
        rising: The numbers of particles where it rises.
        num_data: N.
        seed: The seed of data, parameters and draws.
    """

    replicates: int
    few: int
    falling: tuple[int, ...]
    rising: tuple[int, ...]
    num_data: int = 1024
    seed: int = 0


SIZES = {
    "short": Sizes(200, 40, (4, 8, 16, 32, 64), (64, 128, 256)),
    "full": Sizes(400, 40, (4, 8, 16, 32, 64, 128, 256), (64, 128, 256, 512, 1024)),
}
RATES = {"IWAE φ": -0.5, "IWAE θ": 0.5, "DReG φ": 0.5}
TEXTS = {
    "IWAE φ": "the SNR of IWAE's φ-gradient falls with K",
    "IWAE θ": "the SNR of the θ-gradient rises with K",
    "DReG φ": "the SNR of DReG's φ-gradient rises with K (Tucker 2019)",
}
ROWS = tuple(
    PaperRow("Rate for large K", name, "log-log slope of the SNR in K", rate, tolerance=0.1)
    for name, rate in RATES.items()
)
CLAIMS = tuple(
    Claim(TEXTS[name], "log-log slope, towards the claim", derived=abs(rate))
    for name, rate in RATES.items()
)


def measure(
    sizes: Sizes,
    falling: Callable[[int], ObjectiveBase] = iwae,
    rising: Callable[[int], ObjectiveBase] = dreg,
    *,
    progress: bool = False,
) -> dict[str, SNRCurve]:
    """Measure the three curves.

    DReG's θ-gradient is IWAE's, draw by draw: θ and φ are measured in one run of it.

    Args:
        sizes: The numbers of gradients, data and particles.
        falling: From K, the estimator called IWAE, measured for φ.
        rising: From K, the estimator called DReG, measured for φ and θ.
        progress: Whether progress is shown.

    Returns:
        The curves of `RATES`: φ is b, θ is μ.
    """
    torch.manual_seed(sizes.seed)
    x = toy_data(sizes.num_data, DIMENSIONS)
    toy = RainforthToy.near_optimum(x, OFFSET)

    def curves(make: Any, ks: Sequence[int], replicates: int, **groups: Any) -> Any:
        return measure_slopes(
            toy.model,
            toy.guide,
            x,
            {"one": make},
            ks=ks,
            groups={group: (name,) for group, name in groups.items()},
            parameters={name: toy.get_parameter(name) for name in groups.values()},
            replicates=replicates,
            seed=sizes.seed,
            progress=progress,
        )["one"]

    down = curves(falling, sizes.falling, sizes.replicates, φ="b")
    up = curves(rising, sizes.rising, sizes.few, φ="b", θ="mu")
    return {"IWAE φ": down["φ"], "IWAE θ": up["θ"], "DReG φ": up["φ"]}


def values_of(curves: Mapping[str, SNRCurve]) -> dict[str, Any]:
    """Return what the rows, the claims and the figure need, ready for JSON.

    Args:
        curves: Results of `measure`.

    Returns:
        Slopes with intervals by label and text, and under "curves" K, SNR and its ends by name.
    """
    values: dict[str, Any] = {}
    for name, curve in curves.items():
        slope = tuple(curve.slope)
        values[name] = slope
        values[TEXTS[name]] = slope if RATES[name] > 0 else negative(slope)
    ends = {name: list(zip(*curve.intervals, strict=True)) for name, curve in curves.items()}
    values["curves"] = {n: [list(c.ks), c.snr, *ends[n]] for n, c in curves.items()}
    return values


def draw(values: Mapping[str, Any], *, ax: Target | None = None) -> Figure:
    """Draw the SNR against K with 95 % intervals, both logarithmic.

    Args:
        values: What `values_of` returns.
        ax: Axes to draw into; None for a new figure.

    Returns:
        The figure.
    """
    place = canvas(ax, (5.2, 3.8))
    axes = plain(place.panels[0])
    for colour, (name, (ks, snr, low, high)) in zip(RUNS, values["curves"].items(), strict=False):
        axes.fill_between(ks, low, high, color=colour, alpha=0.25, linewidth=0)
        label = f"{name}, slope {values[name][0]:+.2f}".replace("-", "−")
        axes.plot(ks, snr, ".-", color=colour, label=label)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set(xlabel="K, particles", ylabel="signal-to-noise ratio of the gradient")
    axes.legend(frameon=False)
    return place.figure


def _measure(work: Work) -> Iterator[PaperRow | Claim]:
    sizes = SIZES[work.scale]
    values = work.kept(
        "slopes", asdict(sizes), lambda: values_of(measure(sizes, progress=work.progress))
    )
    yield from measured_parts(work, ROWS, CLAIMS, values)
    save(draw(values), work.folder / "rainforth_2018.png")


NOTES = r"""
![Signal-to-noise ratio against K](../images/rainforth_2018.png)

p(z) = N(μ, I), p(x|z) = N(z, I), q(z|x) = N(A x + b, (2/3) I), every parameter perturbed by N(0,
0.01²) from its optimum. One draw is the gradient of the whole data set; the SNR of a parameter is
the size of its mean over its standard deviation, and the SNR shown is a mean over the 20 elements
of b for φ and of μ for θ. The θ-gradients of IWAE and DReG are the same for the same draws, so θ is
measured once, in the run of DReG.

The rates ∓1/2 are limits for large K: the tolerance of 0.1 is for that. Below K = 64 the bias at
the perturbed optimum bends the rising curves. With R replicates an SNR of 0 is estimated as about
0.8/√R, which raises the lowest points of the falling curve and its slope. DReG is not in this
paper: its rate is that of Tucker 2019.
"""


@PAPERS.register("rainforth-2018-snr")
def rainforth_2018_snr() -> Paper:
    """Return the specification: more particles help the gradient of θ and hurt that of φ.

    Returns:
        The specification.
    """
    words = "{} gradients of the data set at K = {} (IWAE, φ), {} at K = {} (DReG, φ and θ)."
    protocols = {
        name: words.format(s.replicates, _range(s.falling), s.few, _range(s.rising))
        for name, s in SIZES.items()
    }
    return Paper(
        "rainforth-2018-snr",
        "Tighter Variational Bounds are Not Necessarily Better: the toy",
        "Rainforth, Kosiorek, Le, Maddison, Igl, Wood & Teh 2018, ICML",
        "1,024 data drawn from the toy itself, in 20 dimensions.",
        {"short": Scale(protocols["short"], 40), "full": Scale(protocols["full"], 300)},
        ROWS,
        CLAIMS,
        _measure,
        notes=NOTES,
    )


def _range(ks: Sequence[int]) -> str:
    return f"{ks[0]} to {ks[-1]}"
