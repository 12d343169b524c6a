"""Settings of runs, trainings and evaluations: plain data, without torch."""

from pyroae.config.checks import at_least_one
from pyroae.config.evaluation import AISSettings, EvaluationSettings, GradientSettings, Part
from pyroae.config.run import (
    BINARIZATIONS,
    PER_TRAINING,
    WHERE,
    RunConfig,
    program_parts,
    recorded,
    with_imports,
)
from pyroae.config.text import (
    RECORD,
    called,
    check_objective_names,
    compared,
    objectives_in,
    pair_of,
    parse_yaml,
    read_yaml,
)
from pyroae.config.training import SCHEDULES, TrainConfig

__all__ = [
    "BINARIZATIONS",
    "PER_TRAINING",
    "RECORD",
    "SCHEDULES",
    "WHERE",
    "AISSettings",
    "EvaluationSettings",
    "GradientSettings",
    "Part",
    "RunConfig",
    "TrainConfig",
    "at_least_one",
    "called",
    "check_objective_names",
    "compared",
    "objectives_in",
    "pair_of",
    "parse_yaml",
    "program_parts",
    "read_yaml",
    "recorded",
    "with_imports",
]
