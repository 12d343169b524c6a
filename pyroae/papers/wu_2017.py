"""Wu et al. 2017: annealed importance sampling beside importance sampling on an IWAE."""

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from pyroae.comparison.results import Cell, Entry
from pyroae.comparison.scores import Interval, quantile
from pyroae.config import AISSettings, Scoring
from pyroae.evaluation.annealing.bounds import ais, bdmc
from pyroae.evaluation.importance.likelihood import log_likelihood
from pyroae.papers.burda_2016 import FULL as BURDA
from pyroae.papers.paper import PAPERS, Paper, Scale, Work
from pyroae.papers.results import Claim, PaperRow
from pyroae.papers.trained import Protocol, TrainedClaim, TrainedRow, Trainings, measure_trained
from pyroae.runs.loading import own_parameters

TEXT, LOG_PX = "Section 5", "log p(x), nats per image"


@dataclass(frozen=True)
class Sizes:
    """How a trained model is evaluated.

    Attributes:
        protocol: How it is trained; `scoring.num_data` images are evaluated.
        num_particles: K in training.
        annealing: The path of annealing.
        num_simulated: Images drawn from the model for bidirectional Monte Carlo.
    """

    protocol: Protocol
    num_particles: int
    annealing: AISSettings
    num_simulated: int

    @property
    def entry(self) -> Entry:
        """What is trained."""
        (variant,) = self.protocol.variants
        return Entry("iwae", self.num_particles, variant)


ONE_LAYER = {"": {"system": "vae", "latent": 50}}

FULL = Sizes(
    Protocol(
        BURDA.settings,
        epochs=3280,
        seeds=(0,),
        scoring=Scoring(num_particles=5000, num_data=100, method="is"),
        variants=ONE_LAYER,
    ),
    num_particles=50,
    annealing=AISSettings(num_chains=16, num_distributions=10_000),
    num_simulated=100,
)
SHORT = Sizes(
    Protocol(
        {**BURDA.settings, "lr": 2e-3, "schedule": "cosine"},
        epochs=4,
        seeds=(0,),
        scoring=Scoring(num_particles=500, num_data=40, method="is"),
        variants=ONE_LAYER,
    ),
    num_particles=5,
    annealing=AISSettings(num_chains=16, num_distributions=500),
    num_simulated=20,
)

IS_DRAWS = {"L_10000": 10_000, "L_100000": 100_000}
PRINTED = {"AIS": -85.62, "L_10000": -86.90, "L_100000": -86.46}


def of_method(trainings: Trainings, cell: Cell, method: str, sizes: Sizes) -> Tensor:
    """Return log p(x) of each image by one method, kept in a file.

    Args:
        trainings: The finished trainings.
        cell: The trained model.
        method: `AIS`, `L_10000` or `L_100000`; `gap` for the gaps of bidirectional Monte Carlo on
            images that the model draws.
        sizes: How the model is evaluated.

    Returns:
        `[N]`, float64, nats.
    """
    settings = {
        "num_data": sizes.protocol.scoring.num_data,
        "annealing": asdict(sizes.annealing) if method in ("AIS", "gap") else None,
        "num_simulated": sizes.num_simulated if method == "gap" else None,
        "num_particles": IS_DRAWS.get(method),
    }
    values = trainings.work.kept(
        f"{trainings.study.place(cell).name}-{method}",
        settings,
        lambda: _measured(trainings, cell, method, sizes).tolist(),
    )
    return torch.tensor(values, dtype=torch.float64)


@own_parameters()
def _measured(trainings: Trainings, cell: Cell, method: str, sizes: Sizes) -> Tensor:
    system, x = trainings.restored(cell)
    common: dict[str, Any] = {"seed": 0, "progress": trainings.work.progress}
    if method in IS_DRAWS:
        count = IS_DRAWS[method]
        return log_likelihood(system.model, system.guide, x, num_particles=count, **common).log_px
    folder = trainings.work.folder / "annealing"
    folder.mkdir(exist_ok=True)
    common |= {"settings": sizes.annealing, "checkpoint": folder / f"{method}.safetensors"}
    if method == "gap":
        simulated = tuple(t[:1].expand(sizes.num_simulated, *t.shape[1:]) for t in x)
        return bdmc(system.model, system.guide, simulated, **common).gap
    return ais(system.model, system.guide, x, **common).log_px


def mean_interval(values: Tensor) -> Interval:
    """Return the mean over images of one model with its 95 % interval by Student's t.

    Args:
        values: `[N]`; their Monte-Carlo errors are independent.

    Returns:
        The mean and the interval for new images, Monte-Carlo error included.

    >>> found = mean_interval(torch.tensor([1.0, 2.0, 3.0]))
    >>> round(found.value, 2), round(found.high - found.value, 2)
    (2.0, 2.48)
    """
    half = quantile(len(values)) * values.std().item() / len(values) ** 0.5
    mean = values.mean().item()
    return Interval(mean, mean - half, mean + half)


def _cell(trainings: Trainings, its: Entry) -> Cell:
    return trainings.of(its)[0].cell


def _row(method: str, sizes: Sizes) -> Callable[[Trainings, Entry], Interval]:
    return lambda trainings, its: mean_interval(
        of_method(trainings, _cell(trainings, its), method, sizes)
    )


def _difference(trainings: Trainings, its: Entry, _: Entry, *, pair: Any, sizes: Any) -> Interval:
    above, below = (of_method(trainings, _cell(trainings, its), name, sizes) for name in pair)
    return mean_interval(above - below)


GAP = PaperRow(
    TEXT,
    "BDMC gap on images that the model draws",
    "upper less lower bound of log p(x), nats per image",
    1.0,
    not_comparable="the paper prints gaps of about 1 nat, for other models",
)


def _rows(sizes: Sizes) -> list[TrainedRow]:
    rows = [
        TrainedRow(
            PaperRow(TEXT, f"IWAE, {name}", LOG_PX, printed, tolerance=1.0),
            sizes.entry,
            _row(name, sizes),
        )
        for name, printed in PRINTED.items()
    ]
    return [*rows, TrainedRow(GAP, sizes.entry, _row("gap", sizes))]


PAIRS = (("AIS", "L_10000"), ("AIS", "L_100000"), ("L_100000", "L_10000"))


def _claims(sizes: Sizes) -> list[TrainedClaim]:
    return [
        TrainedClaim(
            Claim(f"{pair[0]} above {pair[1]}", LOG_PX),
            sizes.entry,
            sizes.entry,
            partial(_difference, pair=pair, sizes=sizes),
        )
        for pair in PAIRS
    ]


def _measure(work: Work) -> Iterator[PaperRow | Claim]:
    sizes = FULL if work.scale == "full" else SHORT
    yield from measure_trained(work, sizes.protocol, _rows(sizes), _claims(sizes))


@PAPERS.register("wu-2017")
def wu_2017() -> Paper:
    """Return the specification of Wu et al. 2017: annealing on an IWAE.

    Returns:
        The specification.
    """
    return Paper(
        "wu-2017",
        "On the quantitative analysis of decoder-based generative models",
        "Wu, Burda, Salakhutdinov & Grosse 2017, ICLR",
        "MNIST of torchvision: all 60,000 training images, of which each batch has new Bernoulli "
        "draws of the grey values; the first 100 (full) or 40 (short) test images with one fixed "
        "draw.",
        {
            "short": Scale(
                "IWAE with K = 5, 784-200-200-50, 4 epochs of batches of 20, one seed; AIS from "
                "the prior with 16 chains, 500 distributions, 10 leapfrog steps, acceptance 0.65, "
                "on 40 test images; BDMC on 20 images that the model draws.",
                seconds=480,
                differs="trained for 4 epochs with K = 5",
            ),
            "full": Scale(
                "IWAE with K = 50 and the schedule of Burda et al. 2016, one seed; AIS from the "
                "prior with 16 chains and 10,000 distributions on 100 test images; BDMC on 100 "
                "images that the model draws.",
                seconds=2.5e5,
            ),
        },
        tuple(one.row for one in _rows(FULL)),
        tuple(one.claim for one in _claims(FULL)),
        _measure,
        datasets=("mnist",),
        notes=NOTES,
    )


NOTES = """\
The model of the printed numbers, "an IWAE on binarized MNIST", is taken here to be the IWAE with
one stochastic layer and K = 50 of Burda et al. 2016: its network is an assumption.

Both estimates are lower bounds of log p(x) in expectation, so the higher one is closer to it.
Intervals are over test images for one trained model; those of differences are paired by image. No
upper bound is known for real images: the BDMC gap, on images that the model draws, bounds the
error of annealing there.
"""
