"""The run directory, which one command writes and later ones read; files are written atomically."""

import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor, nn

from pyroae import zoo
from pyroae.autoencoder import Autoencoder
from pyroae.config import ALL, WHERE, RunConfig, snapshot_epoch, snapshot_name
from pyroae.data.loading import Splits
from pyroae.errors import ConfigError, RunError
from pyroae.evaluation.results import Result, ResultList, united
from pyroae.programs.controlled import without_controls
from pyroae.runs.contents import (
    FILES,
    STATE,
    results_from,
    results_text,
    versions,
    write_config,
)
from pyroae.runtime.files import guarded, read_tensors, words, write_tensors
from pyroae.runtime.short_repr import Overview, Shown
from pyroae.runtime.short_text import shape_text
from pyroae.training.snapshots import (
    WEIGHTS,
    read_snapshots,
    read_weights,
    snapshots_in,
    write_snapshots,
)
from pyroae.training.state import History, State, write_csv

EXTENDED = ("epochs", "snapshots")
"""Settings of a run that may change when it is resumed."""


class Run(Shown):
    """The directory of a run. `Run.create` makes one, `Run(path)` opens one.

    Args:
        path: The directory.

    Attributes:
        config: The settings.
        fingerprint: The fingerprint of the data.
        shape: The shape of one datum.
        sizes: The numbers of training, validation and test data; empty if not recorded.
        condition_names: The name of each element of the condition: a class or a column; empty
            without a condition.
        columns: The names of the features of a table; empty for other data.
        categories: The categories of each column of codes, by the name of the column.
        versions: The versions of the software that the run was started or resumed with, by name.

    Raises:
        RunError: If the directory is not that of a run, or its config.yaml cannot be used.
    """

    def _overview(self) -> Overview:
        config, results = self.config, self.results()
        names = [name for name in ("last", "previous", "best") if self.checkpoint(name).is_file()]
        names += [snapshot_name(epoch) for epoch in self.snapshots]
        rows = [
            ("system", config.program or config.system),
            ("data", f"{config.data}, {shape_text(self.shape)}"),
            ("objective", f"{config.estimator}, K = {config.num_particles}"),
            (
                "training",
                f"{config.epochs} epochs, batches of {config.batch_size}, lr {config.lr:g}",
            ),
            ("checkpoints", ", ".join(names) or "none yet"),
            ("results", f"{len(results)} figures: {', '.join(r.name for r in results)}"),
        ]
        return Overview([str(self.path)], rows)

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        file = self.path / "config.yaml"
        if not file.is_file():
            raise RunError(f"'{path}' holds no run: there is no config.yaml in it")
        try:
            self.config = RunConfig.from_yaml(file)
            record = yaml.safe_load(file.read_text())
            self.fingerprint = str(record["fingerprint"])
            self.shape = tuple(int(n) for n in record["shape"])
            self.sizes: dict[str, int] = dict(record.get("sizes", {}))
            self.condition_names = tuple(str(n) for n in record.get("condition_names", ()))
            self.columns = tuple(str(n) for n in record.get("columns", ()))
            categories = record.get("categories", {})
            self.categories = {n: tuple(map(str, levels)) for n, levels in categories.items()}
            self.versions: dict[str, str] = dict(record.get("versions", {}))
        except (ConfigError, KeyError, TypeError, ValueError) as error:
            raise RunError(
                f"the configuration of the run '{path}' cannot be used: {error}"
            ) from None

    @classmethod
    def create(
        cls, path: str | Path, config: RunConfig, splits: Splits, *, overwrite: bool = False
    ) -> "Run":
        """Create a run directory.

        Args:
            path: The directory.
            config: The settings.
            splits: The data, of which the fingerprint and the shape of a datum are recorded.
            overwrite: Whether to remove the files of an existing run.

        Returns:
            The new run.

        Raises:
            RunError: If the directory holds a run and `overwrite` is not set, or if it cannot be
                written.
        """
        path = Path(path)
        refuse_taken(path, overwrite)
        try:
            path.mkdir(parents=True, exist_ok=True)
            for old in (path / name for name in FILES):
                if old.is_dir() and not old.is_symlink():
                    shutil.rmtree(old)
                else:
                    old.unlink(missing_ok=True)
            (path / "checkpoints").mkdir()
            write_config(path, config, splits)
        except OSError as error:
            raise RunError(f"cannot write to '{path}': {error.strerror}") from None
        return cls(path)

    def write_config(self, config: RunConfig, splits: Splits) -> None:
        """Replace the settings, for example to resume a run for more epochs.

        Args:
            config: The new settings.
            splits: The data, of which the fingerprint and the shape of a datum are recorded.

        Raises:
            RunError: If config.yaml cannot be written.
        """
        write_config(self.path, config, splits)
        self.config = config

    def save(self, state: State) -> None:
        """Save a state as the checkpoint `last`, and the metrics of its epochs in metrics.csv.

        The checkpoint that was last before becomes `previous`. At the end of the best epoch so far
        the weights are also saved as `best`. Each snapshot of the state has a file of its own.

        Args:
            state: The state of the training.

        Raises:
            RunError: If a file cannot be written; its present content is then unchanged.
        """
        if state.is_best:
            best = {"weights": state.weights, "epoch": state.best_epoch}
            write_tensors(self.checkpoint("best"), WEIGHTS, best)
        record = {
            **self.config.to_dict(),
            "fingerprint": self.fingerprint,
            "versions": versions(),
        }
        write_snapshots(self.path / "checkpoints", state)
        content = {**state.to_content(), "record": record}
        write_tensors(self.checkpoint("last"), STATE, content, previous=self.checkpoint("previous"))
        guarded(self.path / "metrics.csv", lambda file: write_csv(file, state.history))

    def state(self, checkpoint: str = "last") -> State:
        """Read a saved state of the training, from which it can be resumed.

        Args:
            checkpoint: `last`, or `previous`, the one saved before it.

        Returns:
            The state, with the snapshots until then.

        Raises:
            RunError: If the checkpoint is missing, is damaged or has other settings than
                config.yaml; the message names the other checkpoint if that can be read.
        """
        state = self._state(checkpoint)
        snapshots = read_snapshots(self.path / "checkpoints", len(state.history))
        return replace(state, snapshots=snapshots)

    def _state(self, checkpoint: str = "last") -> State:
        """A saved state, without its snapshots."""
        try:
            content = read_tensors(self._existing(checkpoint), STATE)
            self._check_record(content["record"], checkpoint)
            return State.from_content(content)
        except RunError as error:
            raise RunError(f"{error}{self._alternative(checkpoint)}") from None
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise RunError(
                f"'{self.checkpoint(checkpoint)}' holds no state of a training: {words(error)}"
            ) from None

    @property
    def has_begun(self) -> bool:
        """Whether a state of the training has been saved."""
        return self.checkpoint("last").is_file() or self.checkpoint("previous").is_file()

    def _existing(self, checkpoint: str) -> Path:
        """The file of a checkpoint. Raises RunError where there is none."""
        file, epoch = self.checkpoint(checkpoint), snapshot_epoch(checkpoint)
        if not file.is_file():
            if epoch is None:
                raise RunError(f"there is no checkpoint '{file}': nothing has been saved there")
            known = ", ".join(map(str, self.snapshots)) or "none"
            raise RunError(
                f"the run '{self.path}' has no snapshot of epoch {epoch}: it has {known}"
            )
        return file

    def _check_record(self, record: Any, checkpoint: str) -> None:
        """Check that a checkpoint was saved with the settings of config.yaml."""
        own = {**self.config.to_dict(), "fingerprint": self.fingerprint}
        if "scale" not in record:  # before version 0.4; config.yaml may say it since
            record = {**record, "scale": self.config.scale}
        record = {**RunConfig().to_dict(), **record}  # a run of version 0.1 has fewer settings
        for name, value in own.items():
            if name not in (*WHERE, *EXTENDED) and record.get(name) != value:
                raise RunError(
                    f"'{self.checkpoint(checkpoint)}' has other settings than config.yaml: "
                    f"{name} is {record.get(name)!r} in it, not {value!r}"
                )

    def _alternative(self, checkpoint: str) -> str:
        """A hint at the other checkpoint, or nothing if it cannot be read either."""
        other = "previous" if checkpoint == "last" else "last"
        try:
            state = State.from_content(read_tensors(self._existing(other), STATE))
        except (RunError, KeyError, TypeError, ValueError, AttributeError):
            return ""
        return (
            f"; the checkpoint '{other}', of {state.where()}, is intact: "
            f"resume from it with --checkpoint {other}"
        )

    def autoencoder(self, checkpoint: str | None = None) -> Autoencoder:
        """Return the trained system of the zoo; `runs.loading.trained` returns programs too.

        Args:
            checkpoint: `best`, `last`, `previous` or a snapshot, as `epoch-10`; by default the one
                that the training kept.

        Returns:
            The system, in `eval()` mode.

        Raises:
            ConfigError: For the run of a program.
            RunError: If the checkpoint cannot be read, or is of another system.
        """
        system = zoo.from_config(self.config, self.shape, len(self.condition_names))
        self.restore(system, checkpoint)
        return system

    def restore(self, system: nn.Module, checkpoint: str | None = None) -> None:
        """Load the trained weights into a system, in place, and put it into `eval()` mode.

        What the objective has learned is left out.

        Args:
            system: A new system of the run; of a program, with its parameters found.
            checkpoint: As in `autoencoder`.

        Raises:
            RunError: If the checkpoint cannot be read, or is of another system.
        """
        if checkpoint is None:
            checkpoint = self.config.keep if self.checkpoint("best").is_file() else "last"
        weights = without_controls(self._weights(checkpoint), system)
        try:
            dtypes = {w.dtype for w in weights.values() if w.is_floating_point()}
            if len(dtypes) == 1:
                system.to(dtypes.pop())
            system.load_state_dict(weights)
        except (RuntimeError, AttributeError, TypeError) as error:
            raise RunError(
                f"the checkpoint of '{self.path}' belongs to another system: {words(error)}"
            ) from None
        system.eval()

    def _weights(self, checkpoint: str) -> dict[str, Tensor]:
        if checkpoint == ALL:
            raise ConfigError(
                "the checkpoint 'all' is for evaluate and gradients: name one, as epoch-10 or best"
            )
        if checkpoint == "best" or snapshot_epoch(checkpoint) is not None:
            return read_weights(self._existing(checkpoint))
        return self._state(checkpoint).weights

    @property
    def snapshots(self) -> tuple[int, ...]:
        """The epochs after which the weights were kept, beside the checkpoints; 0 at the start."""
        return snapshots_in(self.path / "checkpoints")

    @property
    def kept_epoch(self) -> int:
        """The epoch of the weights that the training kept; an unfinished one counts."""
        state = self._state()
        if self.config.keep == "best" and self.checkpoint("best").is_file():
            return state.best_epoch
        return len(state.history) + (state.progressed.position > 0)

    def history(self) -> History:
        """Read the metrics of the finished epochs from the last checkpoint.

        Returns:
            One entry per epoch, with losses in nats per datum.

        Raises:
            RunError: If the checkpoint cannot be read.
        """
        return History(self._state().history)

    def write_results(self, results: Sequence[Result]) -> None:
        """Add results to results.json, a list of objects with the fields of `Result`.

        A result replaces that of the same identity: name, data, split, N, weights, method and K.

        Args:
            results: The results of an evaluation.

        Raises:
            RunError: If the file cannot be read or written.
        """
        text = results_text(united(self.results(), results))
        guarded(self.path / "results.json", lambda file: file.write_text(text))

    def results(self) -> ResultList:
        """Read results.json.

        Returns:
            The results of all evaluations, in the order of `united`; an empty list if there was
            none.

        Raises:
            RunError: If the file cannot be read.
        """
        file = self.path / "results.json"
        if not file.is_file():
            return ResultList()
        try:
            return ResultList(results_from(file.read_text()))
        except (ValueError, TypeError, AttributeError) as error:
            raise RunError(f"'{file}' cannot be read: {error}") from None

    def checkpoint(self, name: str) -> Path:
        """Return the path of a checkpoint.

        Args:
            name: `last`, `previous`, `best` or a snapshot, as `epoch-10` or `10`.

        Returns:
            The path of the file, which need not exist.
        """
        epoch = snapshot_epoch(name)
        name = name if epoch is None else snapshot_name(epoch)
        return self.path / "checkpoints" / f"{name}.safetensors"


def refuse_taken(path: str | Path, overwrite: bool) -> None:
    """Check that a run directory may be created at a path.

    Args:
        path: The directory; it may be missing.
        overwrite: Whether an existing run may be replaced.

    Raises:
        RunError: If a run exists and `overwrite` is not set, or the path is that of a file.
    """
    path = Path(path)
    if path.exists() and not path.is_dir():
        raise RunError(f"'{path}' is a file, not a directory")
    if (path / "config.yaml").exists() and not overwrite:
        raise RunError(
            f"'{path}' holds a run already: give --overwrite to replace it, "
            "or --resume to continue it"
        )


def refuse_data_file(path: Path, data: str) -> None:
    """Refuse to write over a file of data.

    Args:
        path: The file that is to be written.
        data: A file or a name of data.

    Raises:
        RunError: If both are the same file.
    """
    if path.exists() and Path(data).exists() and path.samefile(data):
        raise RunError(f"'{path}' holds the data: give another file to write")


def device_of(name: str) -> torch.device:
    """Return the device that a name stands for, and check that it can be used.

    Args:
        name: `auto` (CUDA if available, else the CPU), `gpu` (CUDA), or a name of torch's.

    Returns:
        The device.

    Raises:
        ConfigError: If the device does not exist.

    >>> device_of("cpu")
    device(type='cpu')
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device("cuda" if name == "gpu" else name)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(
            f"the device '{name}' cannot be used: {str(error).splitlines()[0]}"
        ) from None
    return device
