"""The directory of a comparison: a run directory a training, and what each came to. A killed study goes on where it was."""

import csv
import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields, replace
from functools import partial
from pathlib import Path
from typing import Any, Self

import torch
import yaml
from torch import nn

from pyroae import zoo
from pyroae.comparison.budget import ENDLESS, Budget
from pyroae.comparison.results import Cell, Outcome, Point
from pyroae.comparison.trainings import (
    CURVE_DATA,
    Curve,
    Scoring,
    check_cell,
    config_of,
    first_of,
    new_system,
    outcome_of,
    parts_of,
)
from pyroae.config import PER_TRAINING, RunConfig, at_least_one, read_yaml, recorded
from pyroae.data.loading import Splits
from pyroae.errors import ConfigError, DataError, NonFiniteLossError, RunError
from pyroae.evaluation.blocks import arguments_of
from pyroae.evaluation.gradient_lab.measure import defined_at
from pyroae.evaluation.summary import EvaluationSettings
from pyroae.evaluation.summary import evaluate as evaluate_system
from pyroae.objectives import parse_objective
from pyroae.programs.pair import like_parameters
from pyroae.runs.loading import own_parameters, splits_of
from pyroae.runs.run import Run, versions
from pyroae.runtime.files import guarded, read_tensors, words, write_tensors
from pyroae.runtime.processes import say
from pyroae.training.checkpointing import Keeper
from pyroae.training.fitting import fit
from pyroae.training.state import State

FIGURES = ("nelbo", "rate", "distortion", "active_units")


EXTENDED = ("objectives", "num_particles", "seeds")
"""What a study may be given more of when it goes on."""


@dataclass(frozen=True)
class StudyConfig:
    """All that decides the figures of a study. settings: of every training, but for its objective, K, seed and limits.

    cpus_per_cell: the threads that torch has for a training, on whose number the order of its sums depends.
    Raises ConfigError for settings that are not accepted, among them those that are not every training's own.
    """

    settings: RunConfig
    objectives: tuple[str, ...] = ("trace-elbo", "iwae", "dreg")
    num_particles: tuple[int, ...] = (1, 8)
    seeds: tuple[int, ...] = (0, 1, 2)
    budget: str = "epochs:20"
    scoring: Scoring = field(default_factory=Scoring)
    cpus_per_cell: int = 1

    def __post_init__(self) -> None:
        at_least_one("cpus_per_cell", self.cpus_per_cell)

    def run_config(self, cell: Cell, num_data: int) -> RunConfig:
        """The settings of one training."""
        config = config_of(cell, self.settings, Budget.parse(self.budget), num_data)
        assert isinstance(config, RunConfig)
        return replace(config, objective=cell.objective, num_particles=cell.num_particles)

    def to_dict(self) -> dict[str, Any]:
        """Names and values, ready for YAML."""
        lists = {name: list(getattr(self, name)) for name in EXTENDED}
        settings = {
            name: value
            for name, value in self.settings.to_dict().items()
            if name not in PER_TRAINING
        }
        alike = {
            "budget": self.budget,
            "cpus_per_cell": self.cpus_per_cell,
            "scoring": asdict(self.scoring),
        }
        return {**lists, **alike, "settings": settings}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """From what `to_dict` gives."""
        lists: dict[str, Any] = {name: tuple(values[name]) for name in EXTENDED}
        alike: dict[str, Any] = {
            "budget": values["budget"],
            "cpus_per_cell": values.get("cpus_per_cell", 1),
        }
        return cls(
            settings_of(values["settings"]), **lists, **alike, scoring=Scoring(**values["scoring"])
        )


def settings_of(given: Mapping[str, Any]) -> RunConfig:
    """The settings that all trainings share; the last weights are scored unless they say otherwise.

    Raises ConfigError for one that differs between trainings.
    """
    given = {str(name).replace("-", "_"): value for name, value in given.items()}
    for name in PER_TRAINING:
        if name in given:
            other = (
                "budget"
                if name in ("epochs", "max_steps", "max_seconds")
                else "objectives, num_particles and seeds"
            )
            raise ConfigError(
                f"{name} is no setting of a comparison: its {other} say what each training has"
            )
    return RunConfig.from_mapping({"keep": "last", **recorded(given), "epochs": ENDLESS})


class Study:
    """A directory of trainings under one configuration: `study.yaml`, and a run directory for each cell.

    splits: the data where they are at hand; by default they are loaded as the configuration says.
    """

    def __init__(self, path: str | Path, config: StudyConfig, splits: Splits | None = None) -> None:
        self.path, self.config = Path(path), config
        self.splits: Splits = splits_of(config.settings) if splits is None else splits
        self.train, self.valid, self.held_out = parts_of(self.splits)

    @classmethod
    def read(cls, path: str | Path) -> StudyConfig:
        """The configuration of a study that is there. Raises RunError where there is none that can be used."""
        file = Path(path) / "study.yaml"
        if not file.is_file():
            raise RunError(f"'{path}' holds no study: there is no study.yaml in it")
        try:
            return StudyConfig.from_dict(read_yaml(file))
        except (ConfigError, KeyError, TypeError, AttributeError) as error:
            raise RunError(
                f"the configuration of the study '{path}' cannot be used: {error}"
            ) from None

    def cells(self) -> list[Cell]:
        """Every training, a seed after the other, so that a study that was stopped has whole seeds."""
        names, ks = self.config.objectives, self.config.num_particles
        at_k = defined_at({name: partial(parse_objective, name) for name in names}, ks)
        return [
            Cell(name, k, seed)
            for seed in self.config.seeds
            for name in names
            for k in ks
            if name in at_k[k]
        ]

    def check(self) -> list[Cell]:
        """The trainings. Raises, before any of them starts, for what cannot be trained or scored."""
        cells = self.cells()
        names = [self.place(cell).name for cell in cells]
        if len(set(names)) < len(names):
            raise ConfigError("an objective, K or seed is given twice")
        for cell in cells:
            if cell.seed == self.config.seeds[0]:
                config = self.config.run_config(cell, len(self.train))
                objective = parse_objective(cell.objective, cell.num_particles)
                with own_parameters():
                    check_cell(
                        self._system(config), self.train, self.held_out, objective, config.training
                    )
        return cells

    def start(self, overwrite: bool) -> None:
        """Make the directory. Raises RunError where it holds a study already and `overwrite` is not set."""
        refuse_other(self.path, overwrite)
        for old in self.path.glob("*-k*-seed*/config.yaml"):
            shutil.rmtree(old.parent)
        self.write_config()

    def go_on(self) -> None:
        """Take up a study that is there. Raises DataError where its data have changed."""
        recorded = yaml.safe_load((self.path / "study.yaml").read_text()).get("fingerprint")
        if recorded != self.splits.fingerprint:
            raise DataError(
                f"the data '{self.config.settings.data}' have changed since the study '{self.path}': their fingerprint is "
                f"{self.splits.fingerprint}, not {recorded}"
            )
        self.write_config()

    def write_config(self) -> None:
        """study.yaml: the configuration, and the record of what it was used on and with."""
        record = {"fingerprint": self.splits.fingerprint, "versions": versions()}
        text = yaml.safe_dump({**self.config.to_dict(), **record}, sort_keys=False)
        guarded(self.path / "study.yaml", lambda file: file.write_text(text))

    def place(self, cell: Cell) -> Path:
        """The run directory of a cell."""
        slug = re.sub(r"[^\w.=+-]+", "-", cell.objective)
        return self.path / f"{slug}-k{cell.num_particles}-seed{cell.seed}"

    def outcome(self, cell: Cell) -> Outcome | str | None:
        """What a training came to; why it failed; None where it has not been finished."""
        file = self.place(cell) / "outcome.safetensors"
        if not file.is_file():
            return None
        return read_outcome(file, cell)

    def run(
        self, cell: Cell, saved: Callable[[], None] | None = None, progress: bool = True
    ) -> Outcome | str:
        """Train and score one cell, from its last checkpoint where there is one; why it failed, where it did.

        saved: called after each checkpoint.
        """
        with _threads(self.config.cpus_per_cell), own_parameters():
            return self._run(cell, saved, progress)

    def _run(self, cell: Cell, saved: Callable[[], None] | None, progress: bool) -> Outcome | str:
        config = self.config.run_config(cell, len(self.train))
        run, going_on = self._open(cell, config)
        curve = Curve(self._system(config), self._along(), cell, config.training, len(self.train))
        state = _state(run) if going_on else None
        if state is not None:
            curve.points = [
                p for p in _read_curve(run.path / "curve.csv") if p.step <= state.progressed.step
            ]

        def save_state(after: State) -> None:
            if not after.progressed.position:
                curve.after_epoch(after)
                guarded(run.path / "curve.csv", lambda file: _write_curve(file, curve.points))
            run.save(after)
            if saved is not None:
                saved()

        try:
            objective = parse_objective(cell.objective, cell.num_particles)
            with Keeper(
                save_state, f"pyroae compare --resume {self.path}", config.save_minutes
            ) as keeper:
                result = fit(
                    curve.system,
                    self.splits,
                    objective,
                    config.training,
                    state=state,
                    on_epoch=keeper,
                    progress=progress,
                )
            row = result.history[-1]
            curve.add(row.epoch, row.step, row.seconds)
            x, scoring = first_of(self.held_out, self.config.scoring.num_data), self.config.scoring
            found = evaluate_system(
                result.system,
                like_parameters(result.system, arguments_of(x)),
                EvaluationSettings(("is",), scoring.num_particles, seed=scoring.seed),
                progress=progress,
            )
        except (NonFiniteLossError, DataError) as error:
            write_failure(run.path / "outcome.safetensors", str(error))
            return str(error)
        assert found.likelihood is not None
        guarded(run.path / "curve.csv", lambda file: _write_curve(file, curve.points))
        run.write_results(list(found.results.values()))
        outcome = outcome_of(
            curve,
            result,
            found.likelihood,
            {name: found.results[name].estimate for name in FIGURES},
        )
        write_outcome(run.path / "outcome.safetensors", outcome)
        return outcome

    def _open(self, cell: Cell, config: RunConfig) -> tuple[Run, bool]:
        """The run of a cell, and whether it goes on from a checkpoint."""
        path = self.place(cell)
        if (path / "config.yaml").is_file() and Run(path).has_begun:
            run = Run(path)
            if run.config.but(imports=config.imports) != config:
                raise ConfigError(
                    f"the settings of '{path}' are not those of the study: remove it to train it again"
                )
            return run, True
        return Run.create(path, config, self.splits, overwrite=True), False

    def _system(self, config: RunConfig) -> nn.Module:
        return new_system(lambda: zoo.system_from(config, self.splits.train), config.seed)

    def _along(self) -> Any:
        return first_of(self.held_out if self.valid is None else self.valid, CURVE_DATA)


def _state(run: Run) -> State:
    """Where a training goes on: from the state before, where the last one is damaged; it comes to the same."""
    try:
        return run.state()
    except RunError as error:
        try:
            state = run.state("previous")
        except RunError:
            raise error from None
        say(f"{error}: going on from {state.where()}")
        return state


def refuse_other(path: Path, overwrite: bool) -> None:
    """Raises RunError where `path` holds a study that must not be replaced, or something else."""
    if path.exists() and not path.is_dir():
        raise RunError(f"'{path}' is a file, not a directory")
    if (path / "config.yaml").exists():
        raise RunError(f"'{path}' is the directory of a run: a study needs one of its own")
    if (path / "study.yaml").exists() and not overwrite:
        raise RunError(
            f"'{path}' holds a study already: give --overwrite to replace it, or --resume to go on with it"
        )


@contextmanager
def _threads(number: int) -> Iterator[None]:
    """A context in which torch has so many threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def write_outcome(path: Path, outcome: Outcome) -> None:
    """Write what a training came to, whole or not at all: the mark that it is finished."""
    write_tensors(
        path,
        "outcome",
        {f.name: getattr(outcome, f.name) for f in fields(Outcome) if f.name != "cell"},
    )


def write_failure(path: Path, reason: str) -> None:
    """Write that a training failed, and why: it would fail again."""
    write_tensors(path, "outcome", {"failed": reason})


def read_outcome(path: Path, cell: Cell) -> Outcome | str:
    """What was written. Raises RunError where it cannot be read."""
    try:
        content = read_tensors(path, "outcome")
        if "failed" in content:
            return str(content["failed"])
        content["curve"] = tuple(Point(*point) for point in content["curve"])
        return Outcome(cell, **content)
    except RunError as error:
        raise RunError(f"{error}; remove '{path.parent}' to train it again") from None
    except (KeyError, TypeError) as error:
        raise RunError(
            f"'{path}' holds no outcome: {words(error)}; remove '{path.parent}' to train it again"
        ) from None


def _write_curve(path: Path, points: Sequence[Point]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(Point._fields)
        writer.writerows(points)


def _read_curve(path: Path) -> list[Point]:
    if not path.is_file():
        return []
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    return [
        Point(
            int(r["epoch"]),
            int(r["step"]),
            float(r["seconds"]),
            int(r["evaluations"]),
            float(r["nll"]),
        )
        for r in rows
    ]
