"""Compare estimators, and any other choices, by what they train: `compare_training`.

All trainings of a seed have the same batches and budget, and are scored by one metric.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, fields, replace
from functools import cached_property
from itertools import groupby
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pyro
from torch import nn

from pyroae.comparison.budget import Budget
from pyroae.comparison.results import Cell, Comparison, Outcome
from pyroae.comparison.tuning import Tuning, combinations
from pyroae.config import Scoring, TrainConfig
from pyroae.data.loading import Splits
from pyroae.errors import ConfigError, DataError, NonFiniteLossError, unknown_name
from pyroae.evaluation.gradient_lab.measure import defined_at
from pyroae.evaluation.units import log_units_of
from pyroae.objectives.base import ObjectiveBase
from pyroae.programs.pair import flattened
from pyroae.programs.sites import Program
from pyroae.runtime.files import locked
from pyroae.runtime.progress import Progress
from pyroae.runtime.short_repr import Shown
from pyroae.studies.cell_files import CellDirectory, check_names
from pyroae.studies.cell_setup import (
    Parts,
    as_data,
    check_cell,
    check_scoring,
    check_seeds,
    config_of,
    described,
    described_system,
    evaluations_per_datum,
    fingerprint_of,
    new_system,
)
from pyroae.studies.cells import CellRunner
from pyroae.studies.curves import CURVE_DATA
from pyroae.studies.scoring import first_of, mean_units, score
from pyroae.studies.study_files import (
    refuse_other_content,
    write_comparison,
    write_python_study,
)
from pyroae.studies.tuning import (
    FOLDER,
    TUNING_SEED,
    Grid,
    check_tuning_seeds,
    crossed,
    joined,
    tuning_of,
)
from pyroae.studies.variants import check_grid
from pyroae.training.fitting import Data as Part
from pyroae.training.lockstep import are_trained_together

Make = Callable[[], nn.Module | tuple[Program, Program]]
"""Returns an untrained system."""


@dataclass(frozen=True, repr=False)
class Variant(Shown):
    """A system, and the settings of its trainings, under one name in a comparison.

    Attributes:
        make: Returns an untrained system, or a pair (model, guide).
        settings: Settings of `TrainConfig` that differ from those of the comparison, by name.

    Raises:
        ConfigError: For a name that is no setting of `TrainConfig`, or that every training has of
            its own.

    >>> from functools import partial
    >>> from pyroae import zoo
    >>> Variant(partial(zoo.vae, 4, 2), {"lr": 1e-2}).settings
    {'lr': 0.01}
    """

    make: Make
    settings: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_settings(self.settings)


def check_settings(names: Mapping[str, Any]) -> None:
    """Refuse settings that trainings of one comparison cannot differ in.

    Args:
        names: Settings by name.

    Raises:
        ConfigError: For a name that is no setting of `TrainConfig`, or that the comparison gives.
    """
    given = ("seed", "epochs", "max_steps", "max_seconds")
    known = [f.name for f in fields(TrainConfig) if f.name not in given]
    for name in names:
        if name not in known:
            raise unknown_name("setting", name, known)


def compare_training(
    make: Make | Mapping[str, Make | Variant],
    data: Splits | None = None,
    objectives: Mapping[str, Callable[[int], ObjectiveBase]] = MappingProxyType({}),
    *,
    train: Part | None = None,
    valid: Part | None = None,
    held_out: Part | None = None,
    budget: Budget,
    ks: Sequence[int] = (1,),
    seeds: Sequence[int] = (0, 1, 2),
    config: TrainConfig | None = None,
    scoring: Scoring | None = None,
    tune: Mapping[str, Sequence[Any]] | None = None,
    out: str | Path | None = None,
    progress: bool = True,
) -> Comparison:
    """Train a new system under each objective, K and seed, and score all by the held-out NLL.

    For one seed every training of a variant has the same initial weights, order of the data and
    binarization. The seeds of an entry are trained at once where `are_trained_together` says so;
    each is then charged with its share of the seconds.

    Args:
        make: returns a new system, or a pair (model, guide); or several such functions or
            variants (`Variant`) by name, each of which is trained under every objective and K.
            Initial weights come from torch's generator, which is at the seed when the function is
            called.
        data: Splits; or None, and the parts separately.
        objectives: functions from K, by name; one that raises ConfigError at some K is left out
            there.
        train: the training data, as in `fit`: a tuple holds the arguments of a program.
        valid: validation data, for the learning curves and for `tune`.
        held_out: the data that trainings are scored on.
        budget: what each training may spend, the same for all.
        ks: numbers of particles.
        seeds: the seeds of each entry.
        config: the configuration; the budget replaces its epochs and limits. By default the last
            weights are scored.
        scoring: by default IS-5000 on the first 1,000 held-out data, corrected on 200 of them.
        tune: numeric settings of `TrainConfig` with the values to try: every entry gets the values
            with its lowest NLL of the validation data, from a seed that is not used again.
        out: a study directory: states, outcomes, tables and figures, as `pyroae compare` writes
            them. The same call with the same directory resumes an interrupted comparison,
            bit-exactly. None saves nothing.
        progress: whether to show the progress.

    Returns:
        The outcomes of all trainings.

    Raises:
        ConfigError: before any step, for settings that cannot be used, or a directory of another
            comparison.
        DataError: before any step, for data that the system does not accept.
        ProgramError: before any step, for programs that an objective does not support.
        UndefinedLikelihoodError: before any step, if log p(x) is not defined.
        RunError: before any step, for a directory of a run or of `pyroae compare`.
        InterruptedRunError: with `out`, if a signal ended a training whose state is saved.

    >>> from functools import partial
    >>> from pyroae import load, zoo
    >>> from pyroae.objectives.named import dreg, iwae
    >>> digits = load("digits", binarize="dynamic")
    >>> comparison = compare_training(
    ...     partial(zoo.vae, digits.train, latent=2),
    ...     digits,
    ...     {"iwae": iwae, "dreg": dreg},
    ...     ks=(4,),
    ...     seeds=(0, 1),
    ...     budget=Budget("epochs", 1),
    ...     scoring=Scoring(num_particles=10, num_data=50, method="is"),
    ...     progress=False,
    ... )
    >>> [entry.objective for entry in comparison.entries], len(comparison.outcomes)
    (['iwae', 'dreg'], 4)
    """
    if not (isinstance(objectives, Mapping) and objectives):
        raise ConfigError("a comparison needs objectives: functions from K, by name")
    if not isinstance(budget, Budget):
        raise ConfigError(f"budget= takes a Budget, as Budget('epochs', 20), not {budget!r}")
    check_seeds(seeds)
    check_settings(tune or {})
    check_grid(tune or {})
    grid = {name: tuple(values) for name, values in (tune or {}).items()}
    if out is not None:
        refuse_other_content(Path(out))
    variants, at_k = variants_by_name(make), defined_at(objectives, ks)
    trainings = _Trainings(
        variants,
        at_k,
        {k: {name: described(one) for name, one in at.items()} for k, at in at_k.items()},
        parts_of(data, train, valid, held_out),
        config or TrainConfig(keep="last"),
        budget,
        scoring or Scoring(),
        None if out is None else Path(out),
        progress,
    )
    cells = [
        Cell(name, k, seed, variant)
        for variant in trainings.variants
        for name in objectives
        for k in ks
        if name in trainings.at_k[k]
        for seed in seeds
    ]
    name = getattr(trainings.parts.held_out, "name", "")
    for_tuning = trainings.for_tuning(cells, grid) if grid else None
    for one, its in ((trainings, cells), *([] if for_tuning is None else [for_tuning])):
        one.check(its)
    with ExitStack() as stack:
        if out is not None:
            stack.enter_context(locked(Path(out), "comparison"))
            write_python_study(Path(out), cells, budget, trainings.scoring, grid, name)
        tuning = None
        if for_tuning is not None:
            found = for_tuning[0].run(for_tuning[1], failures=True)
            tuning = tuning_of((cell.entry for cell in cells), grid, found)
            trainings = replace(trainings, tuning=tuning)
        outcomes = trainings.run(cells)
        finished = [outcome for outcome in outcomes.values() if isinstance(outcome, Outcome)]
        comparison = Comparison(tuple(finished), tuning, name)
        if out is not None:
            write_comparison(Path(out), comparison)
    return comparison


def variants_by_name(make: Any) -> dict[str, Variant]:
    """Return the variants of a comparison.

    Args:
        make: As in `compare_training`.

    Returns:
        The variants; one without a name if there are no others.

    Raises:
        ConfigError: For what is no function that returns a system, and names that are no text.

    >>> variants_by_name(print)
    {'': Variant(make=<built-in function print>, settings={})}
    """
    named = make if isinstance(make, Mapping) else {"": make}
    if not named or not all(isinstance(name, str) for name in named):
        raise ConfigError(
            f"variants are functions or Variants by a name, a text, not {list(named)}"
        )
    variants = {n: v if isinstance(v, Variant) else Variant(v) for n, v in named.items()}
    for variant in variants.values():
        system = variant.make
        if not callable(system) or isinstance(system, nn.Module):
            raise ConfigError(
                "make= is a function that returns a new system or a pair (model, guide), such as "
                f"partial(zoo.vae, data), not {type(system).__name__}: every training starts from "
                "a system of its own"
            )
    return variants


def parts_of(data: Any, train: Any, valid: Any, held_out: Any) -> Parts:
    """Return training, validation and held-out data.

    Args:
        data: Splits, or None.
        train: training data, where `data` is None; so are the next two.
        valid: validation data, or None.
        held_out: held-out data.

    Returns:
        The parts.

    Raises:
        DataError: if there are no training or no held-out data.
        ConfigError: for data that are given twice.
    """
    if isinstance(data, Splits):
        if train is not None or valid is not None or held_out is not None:
            raise ConfigError("give either Splits, or train=, valid= and held_out=")
        return Parts.of(data)
    if data is not None:
        raise DataError(
            "a comparison takes Splits, or its data by name, as in compare_training(make, train=x, "
            "held_out=y): in a tuple, the arguments of a program cannot be told from training and "
            "held-out data"
        )
    if train is None or held_out is None:
        raise DataError("a comparison needs data: Splits, or train= and held_out=")
    data = as_data(train)
    others: list[Any] = [None if part is None else as_data(part) for part in (valid, held_out)]
    structure = getattr(data, "structure", None)
    if structure is None:
        return Parts(data, others[0], others[1])
    for other in others:
        if other is not None and not structure.is_like(getattr(other, "structure", None)):
            raise DataError("validation and held-out data are not arranged as the training data")
    flat: list[Any] = [p and replace(p, structure=None) for p in (data, *others)]
    return Parts(flat[0], flat[1], flat[2], arranged=data)


@dataclass(frozen=True)
class _Trainings:
    """The trainings of a comparison that is written in Python.

    at_k: by K, the objectives that are defined there.
    described: the same as text, of before any training.
    tuning: how settings of each entry were chosen.
    """

    variants: Mapping[str, Variant]
    at_k: Mapping[int, Mapping[str, ObjectiveBase]]
    described: Mapping[int, Mapping[str, str]]
    parts: Parts
    base: TrainConfig
    budget: Budget
    scoring: Scoring
    path: Path | None
    progress: bool
    tuning: Tuning | None = None

    def config(self, cell: Cell) -> TrainConfig:
        """Return the configuration of a cell."""
        chosen = {} if self.tuning is None else self.tuning.best(cell.entry.short).settings
        base = replace(self.base, **{**self.variants[cell.variant].settings, **chosen})
        objective = self.at_k[cell.num_particles][cell.objective]

        def per_datum() -> float:
            x = first_of(self.parts.held_out, 1)
            return evaluations_per_datum(objective, self._system(cell), x)

        return config_of(cell, base, self.budget, len(self.parts.train), per_datum)

    def _system(self, cell: Cell) -> Any:
        """The untrained system of a cell."""
        return flattened(
            new_system(self.variants[cell.variant].make, cell.seed), self.parts.arranged
        )

    def for_tuning(self, cells: Sequence[Cell], grid: Grid) -> "tuple[_Trainings, list[Cell]]":
        """Return the trainings at every point of the grid, which are scored on validation data."""
        check_tuning_seeds(cell.seed for cell in cells)
        points, crossing = combinations(grid), dict[str, Variant]()
        for name, variant in self.variants.items():
            settings = crossed({name: variant.settings}, grid)
            crossing |= {n: Variant(variant.make, values) for n, values in settings.items()}
        path = None if self.path is None else self.path / FOLDER
        tuning = replace(self, variants=crossing, parts=self.parts.tuning(), path=path)
        entries = dict.fromkeys(cell.entry for cell in cells)
        return tuning, [
            Cell(e.objective, e.num_particles, TUNING_SEED, joined(e.variant, point))
            for e in entries
            for point in points
        ]

    @cached_property
    def _fingerprints(self) -> list[str]:
        parts = self.parts
        return [
            fingerprint_of(p) for p in (parts.train, parts.valid, parts.held_out) if p is not None
        ]

    @cached_property
    def _systems(self) -> dict[str, dict[str, Any]]:
        """What is known of the system of each variant."""
        with pyro.get_param_store().scope():
            makes = {name: variant.make for name, variant in self.variants.items()}
            return {name: described_system(new_system(make, 0)) for name, make in makes.items()}

    def check(self, cells: Sequence[Cell]) -> None:
        """Refuse, before any step, what can be neither trained nor scored."""
        check_scoring(self.parts.held_out, self.scoring)
        runner = self._runner()
        if self.path is not None:
            check_names(cells)
            for cell in cells:
                CellDirectory(self.path, self._record, self.tuning).check(cell)
        for cell in {cell.entry: cell for cell in reversed(cells)}.values():
            with pyro.get_param_store().scope():
                check_cell(
                    runner.system(cell),
                    self.parts,
                    runner.objective(cell),
                    runner.config(cell),
                    self.scoring,
                )

    def run(self, cells: Sequence[Cell], failures: bool = False) -> dict[Cell, Outcome | str]:
        """Train and score cells; with `failures` a loss that is not finite is recorded."""
        runner, found = self._runner(), dict[Cell, Outcome | str]()
        what = "tuning" if failures else "trainings"
        with Progress(what, len(cells), self.progress) as bar:
            for group in _groups(cells, runner):
                several = f"{group[0].entry}, {len(group)} seeds at once"
                bar.update(len(found), str(group[0]) if len(group) == 1 else several)
                kept = runner.finished(group)
                if kept is not None:
                    found.update(zip(group, kept, strict=True))
                    bar.begin(len(found))
                    continue
                try:
                    outcomes: Sequence[Outcome | str] = runner.run(group, progress=self.progress)
                except NonFiniteLossError as error:
                    if not failures:
                        raise
                    outcomes = [str(error)] * len(group)
                found.update(zip(group, outcomes, strict=True))
        return found

    def _runner(self) -> CellRunner:
        parts, scoring = self.parts, self.scoring
        x = first_of(parts.held_out, scoring.num_data)
        return CellRunner(
            system=self._system,
            objective=lambda cell: self.at_k[cell.num_particles][cell.objective],
            config=self.config,
            score=lambda curve, result: score(
                curve,
                result,
                x,
                scoring,
                log_units=log_units_of(result.system, parts.held_out, scoring.num_data),
            ),
            train=parts.train,
            valid=parts.valid,
            along=first_of(parts.held_out if parts.valid is None else parts.valid, CURVE_DATA),
            log_units=mean_units(
                parts.held_out if parts.valid is None else parts.valid, CURVE_DATA
            ),
            store=None
            if self.path is None
            else CellDirectory(self.path, self._record, self.tuning),
            how=f"the same call of compare_training, with out='{self.path}'",
        )

    def _record(self, cell: Cell) -> dict[str, Any]:
        return {
            "config": asdict(self.config(cell)),
            "num_particles": cell.num_particles,
            "variant": cell.variant,
            "num_data": [len(self.parts.train), len(self.parts.held_out)],
            "scoring": asdict(self.scoring),
            "data": self._fingerprints,
            "system": self._systems[cell.variant],
            "objective": self.described[cell.num_particles][cell.objective],
        }


def _groups(cells: Sequence[Cell], runner: CellRunner) -> Iterator[list[Cell]]:
    """Cells that are trained at once: those that differ only in their seed, if it pays."""
    for _, group in groupby(cells, key=lambda cell: cell.entry):
        seeds = list(group)
        first, num_data = seeds[0], len(runner.train)
        with pyro.get_param_store().scope():
            is_one = are_trained_together(
                runner.system(first),
                runner.objective(first),
                runner.config(first),
                num_data,
                len(seeds),
            )
        yield from [seeds] if is_one else [[cell] for cell in seeds]
