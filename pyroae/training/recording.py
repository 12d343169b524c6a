"""Record a training with loggers of Lightning Fabric; one that fails does not end the training."""

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from pyroae.runtime.files import words
from pyroae.training.state import Epoch

if TYPE_CHECKING:
    from lightning_fabric.loggers import Logger
    from matplotlib.figure import Figure


class Recorder:
    """The loggers of one training.

    A logger that raises an error is left out from there on, with one warning. Processes other than
    the first one have none.

    Args:
        loggers: Loggers of Lightning Fabric.
        settings: The hyperparameters to record; None for those that `begin` is given.

    Attributes:
        loggers: The loggers that have not failed.

    >>> Recorder().epoch(Epoch(1, 10, 0.5, 3.0))  # no loggers, nothing happens
    """

    def __init__(
        self, loggers: "Sequence[Logger]" = (), settings: Mapping[str, Any] | None = None
    ) -> None:
        self.loggers, self.settings = list(loggers), settings

    @classmethod
    def of(cls, given: "Logger | Sequence[Logger] | Recorder | None") -> "Recorder":
        """Return what `fit` was given as a recorder.

        Args:
            given: A logger, several, a recorder, or None.

        Returns:
            The recorder.

        >>> Recorder.of(None).loggers
        []
        """
        if isinstance(given, Recorder):
            return given
        if given is None:
            return cls()
        return cls(given if isinstance(given, Sequence) else [given])

    def begin(self, settings: Mapping[str, Any]) -> None:
        """Record the hyperparameters, at the start of a training that is not resumed.

        Args:
            settings: Names and values, used where the recorder has none.
        """
        record = dict(self.settings or settings)
        self._each(lambda logger: logger.log_hyperparams(record))

    def epoch(self, row: Epoch, more: Mapping[str, float] | None = None) -> None:
        """Record the metrics of an epoch at its last step; nan is left out.

        Args:
            row: The metrics, under the names of metrics.csv.
            more: Further metrics by name.
        """
        values = {**asdict(row), **(more or {})}
        step = values.pop("step")
        finite = {name: value for name, value in values.items() if not math.isnan(value)}
        self._each(lambda logger: logger.log_metrics(finite, step))

    def picture(self, name: str, draw: "Callable[[], Figure]", step: int) -> None:
        """Record a figure with the loggers that take figures.

        These have a method `log_figure`, or an `experiment` with `add_figure`, as TensorBoard's.

        Args:
            name: The name of the figure.
            draw: Makes it.
            step: The step of the training.
        """

        def record(logger: Any) -> None:
            if hasattr(logger, "log_figure"):
                logger.log_figure(name, draw(), step)
            elif hasattr(getattr(logger, "experiment", None), "add_figure"):
                logger.experiment.add_figure(name, draw(), step)

        self._each(record)

    def save(self) -> None:
        """Write what the loggers have gathered."""
        self._each(lambda logger: logger.save())

    def finalize(self, status: str) -> None:
        """Close the loggers.

        Args:
            status: `success` or `failed`.
        """
        self._each(lambda logger: logger.finalize(status))

    def _each(self, action: "Callable[[Logger], None]") -> None:
        for logger in list(self.loggers):
            try:
                action(logger)
            except NotImplementedError:  # Fabric's CSVLogger takes no hyperparameters
                continue
            except Exception as error:  # a full disk, no network: anything in others' code
                self.loggers.remove(logger)
                warnings.warn(
                    f"{type(logger).__name__} failed and is left out from here on, while the "
                    f"training goes on: {type(error).__name__}: {words(error)}",
                    stacklevel=3,
                )
