"""MLflow as a logger of Lightning Fabric."""

from argparse import Namespace
from pathlib import Path
from typing import Any

from lightning_fabric.loggers.logger import rank_zero_experiment
from lightning_fabric.utilities.rank_zero import rank_zero_only
from matplotlib.figure import Figure

from pyroae.runs.logger_of_run import LoggerOfRun, values_of


class MLflowLogger(LoggerOfRun):
    """Records a training as a run of MLflow, which begins with the first record.

    Args:
        folder: Where the id of the run is kept.
        experiment: The experiment.
        uri: The tracking server or store; None for that of the environment.
    """

    def __init__(self, folder: Path, experiment: str, uri: str | None) -> None:
        super().__init__(folder, experiment)
        self.uri = uri
        self._client: Any = None

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """The client, of the class `mlflow.MlflowClient`; the run has begun."""
        if self._client is None:
            from mlflow import MlflowClient

            client = MlflowClient(tracking_uri=self.uri)
            if self.version:
                client.update_run(self.version, status="RUNNING")
            else:
                found = client.get_experiment_by_name(self.name)
                number = (
                    client.create_experiment(self.name) if found is None else found.experiment_id
                )
                run = client.create_run(number, run_name=self.folder.parents[1].name)
                self.keep(run.info.run_id)
            self._client = client
        return self._client

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Record metrics.

        Args:
            metrics: Values by name.
            step: The step of the training.
        """
        client = self.experiment
        for name, value in metrics.items():
            client.log_metric(self.version, name, value, step=step)

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
        client = self.experiment
        for name, value in values_of(params).items():
            client.log_param(self.version, name, value)

    @rank_zero_only
    def log_figure(self, name: str, figure: Figure, step: int) -> None:
        """Record a figure as the artifact figures/NAME-STEP.png.

        Args:
            name: Its name.
            figure: The figure.
            step: The step of the training.
        """
        self.experiment.log_figure(self.version, figure, f"figures/{name}-{step:08d}.png")

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """End the run.

        Args:
            status: `success` or `failed`.
        """
        if self._client is not None:
            ended = "FINISHED" if status == "success" else "FAILED"
            self._client.set_terminated(self.version, ended)
            self._client = None
