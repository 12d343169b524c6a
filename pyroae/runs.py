"""The run directory: what one command writes and a later one reads. Files are replaced whole or not at all."""

import json
import math
import os
import platform
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from pyroae import zoo
from pyroae.autoencoder import Autoencoder
from pyroae.config import RunConfig
from pyroae.data import Splits
from pyroae.errors import ConfigError, RunError
from pyroae.evaluation.summary import Result
from pyroae.training import Epoch, State, write_csv

_CONTENTS = ("config.yaml", "metrics.csv", "checkpoints", "results.json", "evaluation.nc", "figures", "report.html")


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
            self.fingerprint, self.shape = str(record["fingerprint"]), tuple(record["shape"])
        except (ConfigError, KeyError, TypeError) as error:
            raise RunError(f"the configuration of the run '{path}' cannot be used: {error}") from None

    @classmethod
    def create(cls, path: str | Path, config: RunConfig, splits: Splits, *, overwrite: bool = False) -> "Run":
        """A new run directory. Raises RunError where it holds a run already and `overwrite` is not set."""
        path = Path(path)
        refuse_taken(path, overwrite)
        try:
            path.mkdir(parents=True, exist_ok=True)
            for name in _CONTENTS:
                old = path / name
                shutil.rmtree(old) if old.is_dir() and not old.is_symlink() else old.unlink(missing_ok=True)
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
        """Write the metrics and the state after an epoch, and its weights as `best` where they are."""
        try:
            write_whole(self.path / "metrics.csv", lambda file: write_csv(file, state.history))
            _write_state(self._checkpoint("last"), state)
            if state.best_epoch == len(state.history):
                best = State(state.best_weights, {}, {}, state.history)
                _write_state(self._checkpoint("best"), best)
        except (OSError, SafetensorError) as error:
            raise RunError(f"cannot write the checkpoint of '{self.path}': {error}") from None

    def state(self) -> State:
        """The state after the last finished epoch, to go on from. Raises RunError where there is none."""
        state = _read_state(self._checkpoint("last"))
        if self._checkpoint("best").is_file():
            best = _read_state(self._checkpoint("best"))
            state.best_weights, state.best_epoch = best.weights, len(best.history)
        return state

    def autoencoder(self, checkpoint: str | None = None) -> Autoencoder:
        """The trained system, from `best` or `last`; by default the one that the training kept."""
        system = zoo.from_config(self.config, self.shape)
        if checkpoint is None:
            checkpoint = self.config.keep if self._checkpoint("best").is_file() else "last"
        state = _read_state(self._checkpoint(checkpoint))
        system.to(next(iter(state.weights.values())).dtype)
        try:
            system.load_state_dict(state.weights)
        except RuntimeError as error:
            raise RunError(f"the checkpoint of '{self.path}' is of another system: {' '.join(str(error).split())}") from None
        return system.eval()

    def history(self) -> list[Epoch]:
        """The finished epochs."""
        return _read_state(self._checkpoint("last")).history

    def write_results(self, results: Sequence[Result]) -> None:
        """results.json: a list of {name, estimate, se, num_data, num_particles, seconds}; null where not defined."""
        rows = [{k: None if _undefined(v) else v for k, v in asdict(result).items()} for result in results]
        write_whole(self.path / "results.json", lambda file: file.write_text(json.dumps(rows, indent=2) + "\n"))

    def results(self) -> list[Result]:
        """What results.json holds; empty before an evaluation."""
        file = self.path / "results.json"
        if not file.is_file():
            return []
        try:
            rows = json.loads(file.read_text())
            filled: list[dict[str, Any]] = [{k: math.nan if v is None else v for k, v in row.items()} for row in rows]
            return [Result(**row) for row in filled]
        except (ValueError, TypeError) as error:
            raise RunError(f"'{file}' cannot be read: {error}") from None

    def _checkpoint(self, name: str) -> Path:
        return self.path / "checkpoints" / f"{name}.safetensors"


def refuse_taken(path: str | Path, overwrite: bool) -> None:
    """Raises RunError where `path` holds a run that must not be replaced, or is no directory."""
    path = Path(path)
    if path.exists() and not path.is_dir():
        raise RunError(f"'{path}' is a file, not a directory")
    if (path / "config.yaml").exists() and not overwrite:
        raise RunError(f"'{path}' holds a run already: give --overwrite to replace it, or --resume to go on with it")


def write_config(path: Path, config: RunConfig, splits: Splits) -> None:
    """config.yaml: the settings, and the record of what they were used on and with."""
    record = {"fingerprint": splits.fingerprint, "shape": list(splits.train.shape), "versions": versions()}
    text = yaml.safe_dump({**config.to_dict(), **record}, sort_keys=False)
    write_whole(path / "config.yaml", lambda file: file.write_text(text))


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Write a file under another name, flush it to disk, and only then put it in place."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}")
    try:
        write(temporary)
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def versions() -> dict[str, str]:
    """Versions of what decides the figures."""
    names = ("pyroae", "torch", "pyro-ppl", "lightning-fabric", "numpy", "arviz")
    return {"python": platform.python_version(), **{name: version(name) for name in names}}


def _write_state(path: Path, state: State) -> None:
    tensors: dict[str, Tensor] = {}
    parts = {"weights": state.weights, "optimizer": state.optimizer, "random": state.random}
    content = {name: _take_tensors(value, name, tensors) for name, value in parts.items()}
    content["history"] = [asdict(epoch) for epoch in state.history]
    write_whole(path, lambda file: save_file(tensors, file, metadata={"state": json.dumps(content)}))


def _read_state(path: Path) -> State:
    if not path.is_file():
        raise RunError(f"there is no checkpoint '{path}': the run has not finished an epoch")
    try:
        with safe_open(path, framework="pt") as file:
            content = json.loads(file.metadata()["state"])
            parts = {name: _put_tensors(content[name], file.get_tensor) for name in ("weights", "optimizer", "random")}
        history = [Epoch(**row) for row in content["history"]]
    except (SafetensorError, KeyError, ValueError, TypeError, OSError) as error:
        raise RunError(f"the checkpoint '{path}' cannot be read: {error}") from None
    return State(parts["weights"], parts["optimizer"], parts["random"], history)


def _take_tensors(value: Any, name: str, tensors: dict[str, Tensor]) -> Any:
    """`value` with its tensors moved to `tensors` and a mark in their place, ready for JSON."""
    if isinstance(value, Tensor):
        tensors[name] = value.detach().cpu().contiguous().clone()
        return {"tensor": name}
    if isinstance(value, dict):
        return {"dict": [[key, _take_tensors(item, f"{name}/{key}", tensors)] for key, item in value.items()]}
    if isinstance(value, list | tuple):
        return {"list": [_take_tensors(item, f"{name}/{i}", tensors) for i, item in enumerate(value)]}
    return {"value": value}


def _put_tensors(content: Any, tensor: Callable[[str], Tensor]) -> Any:
    (kind, value), *_ = content.items()
    if kind == "tensor":
        return tensor(value)
    if kind == "dict":
        return {key: _put_tensors(item, tensor) for key, item in value}
    if kind == "list":
        return [_put_tensors(item, tensor) for item in value]
    return value


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
        raise ConfigError(f"the device '{name}' cannot be used: {str(error).splitlines()[0]}") from None
    return device
