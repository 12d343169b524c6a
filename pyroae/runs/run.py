"""The run directory: what one command writes and a later one reads. Files are replaced whole or not at all."""

import json
import math
import platform
import shutil
from collections.abc import Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor, nn

from pyroae import zoo
from pyroae._version import __version__
from pyroae.autoencoder import Autoencoder
from pyroae.config import WHERE, RunConfig
from pyroae.data.loading import Splits
from pyroae.errors import ConfigError, RunError
from pyroae.evaluation.summary import Result
from pyroae.runtime.files import guarded, read_tensors, words, write_tensors
from pyroae.training.state import Epoch, Progressed, State, write_csv

STATE, WEIGHTS = "state of a training", "weights"
"""The kinds of the files in checkpoints/."""


_CONTENTS = (
    *(
        "config.yaml",
        "metrics.csv",
        "checkpoints",
        "results.json",
        "evaluation.nc",
        "evaluation.yaml",
        "figures",
    ),
    "report.html",
)


class Run:
    """A directory that holds a run; made by `Run.create`, found again by `Run(path)`.

    Raises RunError, in one sentence, where it is missing, taken, or cannot be read or written.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        if not (self.path / "config.yaml").is_file():
            raise RunError(f"'{path}' holds no run: there is no config.yaml in it")
        try:
            self.config = RunConfig.from_yaml(self.path / "config.yaml")
            record = yaml.safe_load((self.path / "config.yaml").read_text())
            self.fingerprint, self.shape = (
                str(record["fingerprint"]),
                tuple(int(n) for n in record["shape"]),
            )
            self.versions: dict[str, str] = dict(record.get("versions", {}))
        except (ConfigError, KeyError, TypeError, ValueError) as error:
            raise RunError(
                f"the configuration of the run '{path}' cannot be used: {error}"
            ) from None

    @classmethod
    def create(
        cls, path: str | Path, config: RunConfig, splits: Splits, *, overwrite: bool = False
    ) -> "Run":
        """A new run directory. Raises RunError where it holds a run already and `overwrite` is not set."""
        path = Path(path)
        refuse_taken(path, overwrite)
        try:
            path.mkdir(parents=True, exist_ok=True)
            for name in _CONTENTS:
                old = path / name
                shutil.rmtree(old) if old.is_dir() and not old.is_symlink() else old.unlink(
                    missing_ok=True
                )
            (path / "checkpoints").mkdir()
            write_config(path, config, splits)
        except OSError as error:
            raise RunError(f"cannot write to '{path}': {error.strerror}") from None
        return cls(path)

    def write_config(self, config: RunConfig, splits: Splits) -> None:
        """Replace the settings, as when a run goes on for more epochs."""
        write_config(self.path, config, splits)
        self.config = config

    def save(self, state: State) -> None:
        """Write the metrics, the state, and its weights as `best` where they are. The state before stays as `previous`.

        Raises RunError where that cannot be done; what was there is then untouched.
        """
        is_best = not state.progressed.position and state.best_epoch == len(state.history) > 0
        if is_best:
            write_tensors(
                self.checkpoint("best"),
                WEIGHTS,
                {"weights": state.weights, "epoch": state.best_epoch},
            )
        content = {
            **vars(state),
            "history": [asdict(e) for e in state.history],
            "progressed": asdict(state.progressed),
        }
        content |= {"best_weights": None} if is_best else {}
        content["record"] = {
            **self.config.to_dict(),
            "fingerprint": self.fingerprint,
            "versions": versions(),
        }
        write_tensors(self.checkpoint("last"), STATE, content, previous=self.checkpoint("previous"))
        guarded(self.path / "metrics.csv", lambda file: write_csv(file, state.history))

    def state(self, checkpoint: str = "last") -> State:
        """The state that was saved last, or the one before it, `previous`: to go on from.

        Raises RunError where there is none, where it is damaged, naming the one that can be read, or of other settings.
        """
        try:
            content = self._read(checkpoint, STATE)
            self._check_record(content["record"], checkpoint)
            return _state_of(content)
        except RunError as error:
            raise RunError(f"{error}{self._offer(checkpoint)}") from None
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise RunError(
                f"'{self.checkpoint(checkpoint)}' holds no state of a training: {words(error)}"
            ) from None

    @property
    def has_begun(self) -> bool:
        """Whether a state of its training was saved."""
        return self.checkpoint("last").is_file() or self.checkpoint("previous").is_file()

    def _read(self, checkpoint: str, kind: str) -> Any:
        if not self.checkpoint(checkpoint).is_file():
            raise RunError(
                f"there is no checkpoint '{self.checkpoint(checkpoint)}': nothing has been saved there"
            )
        return read_tensors(self.checkpoint(checkpoint), kind)

    def _check_record(self, record: Any, checkpoint: str) -> None:
        """Raises RunError where config.yaml is not what the checkpoint was made with."""
        own = {**self.config.to_dict(), "fingerprint": self.fingerprint}
        record = {**RunConfig().to_dict(), **record}  # a run of version 0.1 has fewer settings
        other = next(
            (
                n
                for n, value in own.items()
                if n not in (*WHERE, "epochs") and record.get(n) != value
            ),
            None,
        )
        if other is not None:
            file, there = self.checkpoint(checkpoint), record.get(other)
            raise RunError(
                f"'{file}' is of other settings than config.yaml: {other} is {there!r} in it, not {own[other]!r}"
            )

    def _offer(self, checkpoint: str) -> str:
        """The checkpoint that can be read in place of one that cannot, in words."""
        other = "previous" if checkpoint == "last" else "last"
        try:
            state = _state_of(self._read(other, STATE))
        except (RunError, KeyError, TypeError, ValueError, AttributeError):
            return ""
        return f"; the checkpoint '{other}', of {state.where()}, is whole: go on from it with --checkpoint {other}"

    def autoencoder(self, checkpoint: str | None = None) -> Autoencoder:
        """Return the trained system of the zoo; `runs.loading.trained` returns programs too.

        Args:
            checkpoint: `best`, `last` or `previous`; by default the one that the training kept.

        Returns:
            The system, in `eval()` mode.

        Raises:
            ConfigError: For the run of a program.
            RunError: If the checkpoint cannot be read, or is of another system.
        """
        system = zoo.from_config(self.config, self.shape)
        self.restore(system, checkpoint)
        return system

    def restore(self, system: nn.Module, checkpoint: str | None = None) -> None:
        """Load the trained weights into a system, in place, and put it into `eval()` mode.

        Args:
            system: A new system of the run; of a program, with its parameters found.
            checkpoint: `best`, `last` or `previous`; by default the one that the training kept.

        Raises:
            RunError: If the checkpoint cannot be read, or is of another system.
        """
        if checkpoint is None:
            checkpoint = self.config.keep if self.checkpoint("best").is_file() else "last"
        weights = self._weights(checkpoint)
        try:
            dtypes = {w.dtype for w in weights.values() if w.is_floating_point()}
            if len(dtypes) == 1:
                system.to(dtypes.pop())
            system.load_state_dict(weights)
        except (RuntimeError, AttributeError, TypeError) as error:
            raise RunError(
                f"the checkpoint of '{self.path}' is of another system: {words(error)}"
            ) from None
        system.eval()

    def _weights(self, checkpoint: str) -> dict[str, Tensor]:
        if checkpoint != "best":
            return self.state(checkpoint).weights
        try:
            return dict(self._read("best", WEIGHTS)["weights"])
        except (KeyError, TypeError, ValueError) as error:
            raise RunError(
                f"'{self.checkpoint('best')}' holds no weights: {words(error)}"
            ) from None

    def history(self) -> list[Epoch]:
        """The finished epochs."""
        return self.state().history

    def write_results(self, results: Sequence[Result]) -> None:
        """results.json: a list of {name, estimate, se, num_data, num_particles, seconds}; null where not defined."""
        rows = [
            {k: None if _undefined(v) else v for k, v in asdict(result).items()}
            for result in results
        ]
        guarded(
            self.path / "results.json",
            lambda file: file.write_text(json.dumps(rows, indent=2) + "\n"),
        )

    def results(self) -> list[Result]:
        """What results.json holds; empty before an evaluation."""
        file = self.path / "results.json"
        if not file.is_file():
            return []
        try:
            rows = json.loads(file.read_text())
            filled: list[dict[str, Any]] = [
                {k: math.nan if v is None else v for k, v in row.items()} for row in rows
            ]
            return [Result(**row) for row in filled]
        except (ValueError, TypeError) as error:
            raise RunError(f"'{file}' cannot be read: {error}") from None

    def checkpoint(self, name: str) -> Path:
        """The file of `last`, `previous` or `best`."""
        return self.path / "checkpoints" / f"{name}.safetensors"


def refuse_taken(path: str | Path, overwrite: bool) -> None:
    """Raises RunError where `path` holds a run that must not be replaced, or is no directory."""
    path = Path(path)
    if path.exists() and not path.is_dir():
        raise RunError(f"'{path}' is a file, not a directory")
    if (path / "config.yaml").exists() and not overwrite:
        raise RunError(
            f"'{path}' holds a run already: give --overwrite to replace it, or --resume to go on with it"
        )


def write_config(path: Path, config: RunConfig, splits: Splits) -> None:
    """config.yaml: the settings, and the record of what they were used on and with."""
    record = {
        "fingerprint": splits.fingerprint,
        "shape": list(splits.train.shape),
        "versions": versions(),
    }
    text = yaml.safe_dump({**config.to_dict(), **record}, sort_keys=False)
    guarded(path / "config.yaml", lambda file: file.write_text(text))


def versions() -> dict[str, str]:
    """Versions of what decides the figures."""
    names = ("torch", "pyro-ppl", "lightning-fabric", "numpy", "arviz")
    return {
        "python": platform.python_version(),
        "pyroae": __version__,
        **{name: version(name) for name in names},
    }


def _state_of(content: Any) -> State:
    """The inverse of what `Run.save` keeps."""
    history = [Epoch(**row) for row in content["history"]]
    parts = {
        name: content[name]
        for name in ("weights", "optimizer", "random", "best_weights", "best_epoch")
    }
    state = State(**parts, history=history, progressed=Progressed(**content["progressed"]))
    if state.best_weights is None:
        state.best_weights = state.weights
    return state


def _undefined(value: object) -> bool:
    return isinstance(value, float) and math.isnan(value)


def device_of(name: str) -> torch.device:
    """The device that a name of the command line means: auto is CUDA where there is one."""
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
