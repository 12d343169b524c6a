"""Settings of runs, trainings and evaluations: plain data, without torch."""

from pyroae.config.calibration import CalibrationSettings
from pyroae.config.checks import at_least_one
from pyroae.config.evaluation import (
    ALL,
    AISSettings,
    EvaluationSettings,
    GradientSettings,
    Part,
    snapshot_epoch,
    snapshot_name,
)
from pyroae.config.run import (
    BINARIZATIONS,
    CHANNELS,
    OF_DATA,
    PER_TRAINING,
    SCALES,
    SEMI_SUPERVISED,
    WHERE,
    RunConfig,
    recorded,
    with_imports,
)
from pyroae.config.scoring import SCORE_METHODS, Scoring
from pyroae.config.text import (
    check_objective_names,
    compared,
    loggers_in,
    objectives_in,
    pair_of,
)
from pyroae.config.training import SCHEDULES, TrainConfig
from pyroae.runtime.settings_text import RECORD, called, parse_yaml, program_parts, read_yaml

__all__ = [
    "ALL",
    "BINARIZATIONS",
    "CHANNELS",
    "OF_DATA",
    "PER_TRAINING",
    "RECORD",
    "SCALES",
    "SCHEDULES",
    "SCORE_METHODS",
    "SEMI_SUPERVISED",
    "WHERE",
    "AISSettings",
    "CalibrationSettings",
    "EvaluationSettings",
    "GradientSettings",
    "Part",
    "RunConfig",
    "Scoring",
    "TrainConfig",
    "at_least_one",
    "called",
    "check_objective_names",
    "compared",
    "loggers_in",
    "objectives_in",
    "pair_of",
    "parse_yaml",
    "program_parts",
    "read_yaml",
    "recorded",
    "snapshot_epoch",
    "snapshot_name",
    "with_imports",
]
