"""Weights & Biases as a logger of Lightning Fabric."""

from argparse import Namespace
from io import BytesIO
from pathlib import Path
from typing import Any

from lightning_fabric.loggers.logger import rank_zero_experiment
from lightning_fabric.utilities.rank_zero import rank_zero_only
from matplotlib.figure import Figure

from pyroae.runs.logger_of_run import LoggerOfRun, values_of


class WandbLogger(LoggerOfRun):
    """Records a training as a run of Weights & Biases, which begins with the first record.

    Args:
        folder: Where its files and the id of the run are kept.
        project: The project.
        entity: The user or team; None for the account's default.
        mode: online, offline or disabled; None for that of the environment.
    """

    def __init__(self, folder: Path, project: str, entity: str | None, mode: str | None) -> None:
        super().__init__(folder, project)
        self.entity, self.mode = entity, mode
        self._run: Any = None

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """The run, of the class `wandb.Run`."""
        if self._run is None:
            import wandb

            self.folder.mkdir(parents=True, exist_ok=True)
            self._run = wandb.init(
                project=self.name,
                entity=self.entity,
                mode=self.mode,
                dir=self.folder,
                id=self.version or None,
                resume="allow",
                settings=wandb.Settings(silent=True),
            )
            self.keep(self._run.id)
        return self._run

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Record metrics.

        Args:
            metrics: Values by name.
            step: The step of the training.
        """
        self.experiment.log(metrics, step=step)

    @rank_zero_only
    def log_hyperparams(
        self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any
    ) -> None:
        """Record hyperparameters.

        Args:
            params: Values by name.
            *args: Ignored.
            **kwargs: Ignored.
        """
        self.experiment.config.update(values_of(params), allow_val_change=True)

    @rank_zero_only
    def log_figure(self, name: str, figure: Figure, step: int) -> None:
        """Record a figure.

        Args:
            name: Its name.
            figure: The figure.
            step: The step of the training.
        """
        import wandb
        from PIL import Image

        file = BytesIO()  # of a Figure, wandb would need pyplot
        figure.savefig(file, format="png")
        self.experiment.log({name: wandb.Image(Image.open(file))}, step=step)

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """End the run.

        Args:
            status: `success` or `failed`.
        """
        if self._run is not None:
            self._run.finish(exit_code=int(status != "success"), quiet=True)
            self._run = None
