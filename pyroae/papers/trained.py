"""Rows of a paper that are trainings: each is a run directory of a study, which can be resumed."""

from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from pyroae.comparison.results import Cell, Comparison, Entry, Outcome
from pyroae.comparison.scores import Interval, interval_of, quantile
from pyroae.config import WHERE, Scoring
from pyroae.errors import ConfigError
from pyroae.evaluation.blocks import arguments_of
from pyroae.evaluation.importance.likelihood import log_likelihood
from pyroae.papers.paper import Work
from pyroae.papers.results import Claim, PaperRow
from pyroae.programs.pair import like_parameters
from pyroae.runs.loading import own_parameters, trained
from pyroae.runs.run import Run
from pyroae.runtime.files import locked
from pyroae.runtime.processes import say
from pyroae.studies.scoring import first_of
from pyroae.studies.study import Study
from pyroae.studies.study_config import StudyConfig, settings_of


@dataclass(frozen=True)
class Protocol:
    """How the rows of a paper are trained and scored at one scale.

    Attributes:
        settings: Settings that all trainings share, as of `pyroae train`.
        variants: Settings that differ between the rows, by the name of the variant.
        epochs: Passes over the training data.
        seeds: The seeds of each row.
        scoring: How every training is scored.
    """

    settings: Mapping[str, Any]
    epochs: int
    seeds: tuple[int, ...] = (0, 1, 2)
    scoring: Scoring = field(default_factory=Scoring)
    variants: Mapping[str, Mapping[str, Any]] = field(default_factory=lambda: {"": {}})

    def config(self, entries: Sequence[Entry], data_root: str) -> StudyConfig:
        """Return the configuration of the study.

        Args:
            entries: What is trained for the rows.
            data_root: The folder of torchvision's data sets.

        Returns:
            The configuration. Its product of objectives and K may hold more than `entries`.
        """
        return StudyConfig(
            settings_of({**self.settings, "data_root": data_root}),
            objectives=tuple(dict.fromkeys(entry.objective for entry in entries)),
            num_particles=tuple(sorted({entry.num_particles for entry in entries})),
            seeds=self.seeds,
            budget=f"epochs:{self.epochs}",
            scoring=self.scoring,
            variants=self.variants,
        )


@dataclass(frozen=True)
class TrainedRow:
    """A printed number that is measured by trainings.

    Attributes:
        row: The printed number.
        entry: What is trained: objective, K and variant.
        figure: Returns the number and its 95 % interval, as `nll` does.
    """

    row: PaperRow
    entry: Entry
    figure: "Callable[[Trainings, Entry], Interval]"


@dataclass(frozen=True)
class TrainedClaim:
    """An ordering of two rows.

    Attributes:
        claim: The claim: `better` is better than `worse`.
        better: The entry that the paper claims to be better.
        worse: The other one.
        figure: Returns the difference and its 95 % interval, as `lower_nll` does.
    """

    claim: Claim
    better: Entry
    worse: Entry
    figure: "Callable[[Trainings, Entry, Entry], Interval]"


@dataclass(frozen=True)
class Trainings:
    """The finished trainings of a paper.

    Attributes:
        work: The measurement.
        study: The study that they belong to.
        outcomes: What each came to.
    """

    work: Work
    study: Study
    outcomes: dict[Cell, Outcome] = field(default_factory=dict)

    def of(self, entry: Entry) -> list[Outcome]:
        """Return the outcomes of an entry, in the order of the seeds; none unless all are there.

        Args:
            entry: The entry.

        Returns:
            One outcome for each seed, or an empty list.
        """
        cells = [Cell.of(entry, seed) for seed in self.study.config.seeds]
        found = [self.outcomes[cell] for cell in cells if cell in self.outcomes]
        return found if len(found) == len(cells) else []

    def bound(self, entry: Entry, num_particles: int) -> Tensor:
        """Return the importance-weighted bound of the scored data, one draw of it per datum.

            log (1/K) Σ_k p(x, z_k) / q(z_k|x)

        Args:
            entry: The entry.
            num_particles: K.

        Returns:
            The bound of each seed and datum, `[S, N]`, float64, nats. It is kept in a file.
        """
        return torch.stack([self._bound(o.cell, num_particles) for o in self.of(entry)])

    def _bound(self, cell: Cell, num_particles: int) -> Tensor:
        place, scoring = self.study.place(cell), self.study.config.scoring
        settings = {"num_particles": num_particles, "num_data": scoring.num_data, "seed": 0}
        values = self.work.kept(
            f"{place.name}-bound-{num_particles}",
            settings,
            lambda: self._measured_bound(cell, num_particles).tolist(),
        )
        return torch.tensor(values, dtype=torch.float64)

    @own_parameters()
    def _measured_bound(self, cell: Cell, num_particles: int) -> Tensor:
        system, x = self.restored(cell)
        return log_likelihood(
            system.model, system.guide, x, num_particles=num_particles, seed=0
        ).log_px

    def restored(self, cell: Cell) -> tuple[Any, tuple[Tensor, ...]]:
        """Return the trained system of a cell, and the data that it is scored on.

        Args:
            cell: The cell.

        Returns:
            The system, with `model` and `guide`, and their arguments `[N, ...]`.
        """
        held_out = first_of(self.study.parts.held_out, self.study.config.scoring.num_data)
        system: Any = trained(Run(self.study.place(cell)), None, self.study.splits.train)
        return system, like_parameters(system, arguments_of(held_out))


def nll(trainings: Trainings, entry: Entry) -> Interval:
    """Return the NLL by importance sampling from the guide, uncorrected as papers print it.

    Args:
        trainings: The finished trainings.
        entry: The entry.

    Returns:
        The NLL in nats per datum; its interval is over seeds and data, and over data alone where
        there is one seed.
    """
    return interval_of(-torch.stack([o.score.log_px for o in trainings.of(entry)]))


def units(trainings: Trainings, entry: Entry) -> Interval:
    """Return the number of active units.

    Args:
        trainings: The finished trainings.
        entry: The entry.

    Returns:
        The mean over the seeds with its interval, whose ends are nan for one seed.
    """
    counts = torch.tensor(
        [outcome.figures["active_units"] for outcome in trainings.of(entry)], dtype=torch.float64
    )
    seeds = len(counts)
    half = float("nan")
    if seeds > 1:
        half = quantile(seeds) * counts.std().item() / seeds**0.5
    mean = counts.mean().item()
    return Interval(mean, mean - half, mean + half)


def lower_nll(trainings: Trainings, better: Entry, worse: Entry) -> Interval:
    """Return how far the corrected NLL of one entry is below that of another.

    The difference is paired by seed and datum. Half its interval is the larger one of that over
    seeds and data, which contains the sampling error of the correction, and of the error of the
    scores for these data, their bias included.

    Args:
        trainings: The finished trainings.
        better: The entry that is claimed to have the lower NLL.
        worse: The other one.

    Returns:
        The difference in nats per datum, above 0 where the claim holds, with its 95 % interval.
        It is infinitely wide where the error of a score is not known.
    """
    comparison = Comparison((*trainings.of(better), *trainings.of(worse)))
    found = comparison.difference(worse, better)
    mean, _, high = found.estimate
    half = max(high - mean, found.scoring_error)
    return Interval(mean, mean - half, mean + half)


def measure_trained(
    work: Work,
    protocol: Protocol,
    rows: Sequence[TrainedRow],
    claims: Sequence[TrainedClaim] = (),
) -> Iterator[PaperRow | Claim]:
    """Train what the wanted rows need, and yield rows and claims as they are finished.

    A cell of the study is a run directory, as `pyroae train` writes it. One that is there with
    equal settings is resumed, or scored where it is finished. A claim is measured where all rows of
    its entries are wanted.

    Args:
        work: The measurement.
        protocol: How trainings are done at this scale.
        rows: All rows that are measured by trainings.
        claims: All claims on them.

    Yields:
        Each row and each claim, measured.

    Raises:
        PyroaeError: For what cannot be trained or scored.
    """
    wanted = [one for one in rows if work.wants(one.row.label)]
    entries = list(dict.fromkeys(one.entry for one in wanted))
    if not entries:
        return
    study = opened(work, protocol.config([one.entry for one in rows], work.data_root))
    trainings, told = Trainings(work, study), set[str | tuple[str, str, str]]()
    asked = [claim for claim in claims if {claim.better, claim.worse} <= set(entries)]
    for cell, outcome in _outcomes(work, study, entries):
        if isinstance(outcome, str):
            say(f"failed: {cell}: {outcome}")
            continue
        trainings.outcomes[cell] = outcome
        for part in _finished(trainings, wanted, asked, told):
            told.add(part.key)
            yield part


def _finished(
    trainings: Trainings,
    rows: Sequence[TrainedRow],
    claims: Sequence[TrainedClaim],
    told: Set[str | tuple[str, str, str]],
) -> Iterator[PaperRow | Claim]:
    """The rows and claims whose trainings are all finished, but those that were told before."""
    for one in rows:
        if one.row.key not in told and trainings.of(one.entry):
            yield one.row.measured(*one.figure(trainings, one.entry))
    for two in claims:
        if two.claim.key not in told and trainings.of(two.better) and trainings.of(two.worse):
            yield two.claim.measured(*two.figure(trainings, two.better, two.worse))


def _outcomes(
    work: Work, study: Study, entries: Sequence[Entry]
) -> Iterator[tuple[Cell, Outcome | str]]:
    """The outcome of every cell of the entries: first those that are finished."""
    cells = [Cell.of(entry, seed) for entry in entries for seed in study.config.seeds]
    todo = []
    for cell in cells:
        outcome = study.outcome(cell)
        if outcome is None:
            todo.append(cell)
        else:
            yield cell, outcome
    if len(todo) < len(cells):
        say(f"{study.path}: {len(cells) - len(todo)} of {len(cells)} trainings are finished")
    if not todo:
        return
    study.check(todo)
    for cell in todo:
        if study.place(cell).is_dir():
            with locked(study.place(cell), "run"):
                pass  # a run that another process trains is not adopted
    with work.executor.ready(study), closing(work.executor.run(study, todo)) as outcomes:
        yield from outcomes


def opened(work: Work, config: StudyConfig) -> Study:
    """Return the study of a paper in its folder; it is made where it is missing.

    Args:
        work: The measurement.
        config: The configuration of the study.

    Returns:
        The study. Run directories that are there already are left as they are.

    Raises:
        ConfigError: If the study was made with other settings.
        DataError: If its data are missing, or have changed.
    """
    study = Study(work.folder, config, how=work.how)
    if not (work.folder / "study.yaml").is_file():
        work.folder.mkdir(parents=True, exist_ok=True)
        study.write_config()
        return study
    before, now = _flat(Study.read(work.folder)), _flat(config)
    for name in now:
        if before.get(name) != now[name]:
            raise ConfigError(
                f"'{work.folder}' was made with {name} = {before.get(name)}, not {now[name]}: give "
                "--overwrite to train everything again, or another --out"
            )
    study.resume()
    return study


def _flat(config: StudyConfig) -> dict[str, Any]:
    """The settings of a study on which its figures depend, by name."""
    content = config.to_dict()
    settings = {n: v for n, v in content.pop("settings").items() if n not in WHERE}
    return {**content, **settings}
