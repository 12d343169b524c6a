"""The configuration of a study: all that decides its figures, as study.yaml holds it."""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import Any, Self

from pyroae import zoo
from pyroae.comparison.budget import ENDLESS, Budget
from pyroae.comparison.results import Cell
from pyroae.config import (
    OF_DATA,
    PER_TRAINING,
    WHERE,
    RunConfig,
    Scoring,
    at_least_one,
    recorded,
)
from pyroae.errors import ConfigError
from pyroae.evaluation.gradient_lab.measure import defined_at
from pyroae.objectives import parse_objective
from pyroae.runs.data_of_run import binarization_of, value_range_of
from pyroae.studies.cell_setup import (
    config_of,
)
from pyroae.studies.tuning import TUNING_SEED, Grid, check_tuning_seeds, crossed

EXTENDED = ("objectives", "num_particles", "seeds")
"""Settings to which a study that is resumed may be given further values."""


@dataclass(frozen=True)
class StudyConfig:
    """All that decides the figures of a study.

    Attributes:
        settings: those of every training, without its objective, K, seed and limits.
        objectives: names of objectives, with their options.
        num_particles: numbers of particles, K.
        seeds: the seeds of each estimator.
        budget: what each training may spend, as `Budget.parse` reads it.
        scoring: how every training is scored.
        variants: settings that replace the shared ones, by the name of the variant.
        tune: the values of each setting that is tuned, on validation data.
        tuned: the settings that the tuning has chosen, by the entry as text.
        scored: the part of the data that trainings are scored on, `test` or `valid`.
        cpus_per_cell: the threads of torch in a training; the order of its sums depends on it.

    Raises:
        ConfigError: for settings that are not accepted.

    >>> study = StudyConfig(settings_of({"latent": 2}), seeds=(0,))
    >>> study.run_config(Cell("iwae", 8, 0), 100, lambda settings: 8.0).seed
    0
    """

    settings: RunConfig
    objectives: tuple[str, ...] = ("trace-elbo", "iwae", "dreg")
    num_particles: tuple[int, ...] = (1, 8)
    seeds: tuple[int, ...] = (0, 1, 2)
    budget: str = "epochs:20"
    scoring: Scoring = field(default_factory=Scoring)
    cpus_per_cell: int = 1
    variants: Mapping[str, Mapping[str, Any]] = field(default_factory=lambda: {"": {}})
    tune: Grid = field(default_factory=dict)
    tuned: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    scored: str = "test"

    def __post_init__(self) -> None:
        at_least_one("cpus_per_cell", self.cpus_per_cell)
        if self.settings.logger is not None:
            raise ConfigError(
                f"the logger '{self.settings.logger}' is for one training, by pyroae train: the "
                "files of a study record all of its trainings; leave it out"
            )
        for settings in self.variants.values():
            self._with(settings)
        for values in crossed(self.variants, self.tune).values():
            self._with(values)

    def _with(self, settings: Mapping[str, Any]) -> RunConfig:
        """The shared settings with others in their place, checked."""
        for name in settings:
            if name in (*PER_TRAINING, *WHERE, *OF_DATA):
                raise ConfigError(f"{name} cannot differ between the entries of a comparison")
        config = RunConfig.from_mapping({**self.settings.to_dict(), **settings})
        for name in settings:
            if name in zoo.unused_settings(config):
                raise ConfigError(
                    f"{name} makes no difference for the system '{config.system}': its trainings "
                    "would be equal"
                )
        return config

    def run_config(
        self, cell: Cell, num_data: int, per_datum: Callable[[RunConfig], float]
    ) -> RunConfig:
        """Return the settings of one training.

        Args:
            cell: the training.
            num_data: the number of training data, on which its number of steps depends.
            per_datum: returns the decoder evaluations per datum of a step of the cell for its
                system's settings; called for a budget of evaluations.

        Returns:
            The settings, with the objective, K, seed and limits of the cell.
        """
        chosen = self.tuned.get(cell.entry.short, {})
        settings = self._with({**self.variants[cell.variant], **chosen})
        shared = binarization_of(self.settings)  # a variant with another likelihood has these data
        if binarization_of(settings) != shared:
            settings = settings.but(binarize=shared)
        settings = self._same_range(settings)
        budget = Budget.parse(self.budget)
        config = config_of(cell, settings, budget, num_data, lambda: per_datum(settings))
        assert isinstance(config, RunConfig)
        return replace(config, objective=cell.objective, num_particles=cell.num_particles)

    def _same_range(self, settings: RunConfig) -> RunConfig:
        """The settings of a variant, with the data as those of the study."""
        shared, own = value_range_of(self.settings), value_range_of(settings)
        if shared == own:
            return settings
        if shared is None:
            raise ConfigError(
                f"the likelihood '{settings.likelihood}' needs values as stored: give the whole "
                "study --value-range 0,1"
            )
        return settings.but(value_range=shared)

    def cells(self) -> list[Cell]:
        """Return every training, ordered by seed: an interrupted study has complete seeds.

        Returns:
            The cells; an objective is left out at a K at which it is not defined.
        """
        names, ks = self.objectives, self.num_particles
        at_k = defined_at({name: partial(parse_objective, name) for name in names}, ks)
        return [
            Cell(name, k, seed, variant)
            for seed in self.seeds
            for variant in self.variants
            for name in names
            for k in ks
            if name in at_k[k]
        ]

    def for_tuning(self) -> Self:
        """Return the configuration of the study that chooses the tuned settings.

        Returns:
            The same study with every point of the grid as a variant, from one other seed, scored on
            validation data.
        """
        check_tuning_seeds(self.seeds)
        return replace(
            self,
            variants=crossed(self.variants, self.tune),
            tune={},
            tuned={},
            seeds=(TUNING_SEED,),
            scored="valid",
        )

    def to_dict(self) -> dict[str, Any]:
        """Return names and values, ready for YAML.

        Returns:
            Lists, numbers, texts and dictionaries.
        """
        lists = {name: list(getattr(self, name)) for name in EXTENDED}
        settings = {
            name: value
            for name, value in self.settings.to_dict().items()
            if name not in PER_TRAINING
        }
        return {
            **lists,
            "budget": self.budget,
            "cpus_per_cell": self.cpus_per_cell,
            "scoring": asdict(self.scoring),
            "variants": {name: _plain(values) for name, values in self.variants.items()},
            "tune": _plain(self.tune),
            "tuned": {name: _plain(values) for name, values in self.tuned.items()},
            "scored": self.scored,
            "settings": settings,
        }

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """Return the configuration from what `to_dict` returned.

        Args:
            values: names and values.

        Returns:
            The configuration.

        Raises:
            ConfigError: for settings that are not accepted.
        """
        lists: dict[str, Any] = {name: tuple(values[name]) for name in EXTENDED}
        return cls(
            settings_of(values["settings"]),
            **lists,
            budget=values["budget"],
            cpus_per_cell=values.get("cpus_per_cell", 1),
            scoring=Scoring(**{"method": "is", **values["scoring"]}),  # of versions before 0.3
            variants={n: _tuples(v) for n, v in values.get("variants", {"": {}}).items()},
            tune=_tuples(values.get("tune", {})),
            tuned={n: _tuples(v) for n, v in values.get("tuned", {}).items()},
            scored=values.get("scored", "test"),
        )


def _plain(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: list(v) if isinstance(v, tuple) else v for name, v in values.items()}


def _tuples(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: tuple(v) if isinstance(v, list) else v for name, v in values.items()}


def settings_of(given: Mapping[str, Any]) -> RunConfig:
    """Return the settings that all trainings of a study share.

    Args:
        given: names and values; hyphens stand for underscores.

    Returns:
        The settings; the last weights are scored unless `keep` is given.

    Raises:
        ConfigError: for a setting that differs between trainings.
    """
    settings = {str(name).replace("-", "_"): value for name, value in given.items()}
    for name in PER_TRAINING:
        if name in settings:
            is_limit = name in ("epochs", "max_steps", "max_seconds")
            other = "budget" if is_limit else "objectives, num_particles and seeds"
            raise ConfigError(
                f"{name} is no setting of a comparison: its {other} say what each training has"
            )
    return RunConfig.from_mapping({"keep": "last", **recorded(settings), "epochs": ENDLESS})
