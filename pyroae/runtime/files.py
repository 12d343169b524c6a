"""Files that are written whole or not at all, and files of tensors that know whether they are what was written.

Nothing here is ever unpickled: tensors are in safetensors, the rest in JSON.
"""

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from pyroae._version import __version__
from pyroae.errors import RunError

FORMAT = 2
"""Of the files of tensors; another one is refused."""


LOCK = ".lock"


TEMPORARY = re.compile(r"^\.(.+)\.\d+(\.\w+)?$")


def write_whole(
    path: Path, write: Callable[[Path], object], *, previous: Path | None = None
) -> None:
    """Write a file under another name, flush it to disk, and only then put it in place.

    previous: the name under which the file that is there now stays. Raises OSError; what was there is then untouched.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _temporary(path)
    try:
        write(temporary)
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        if previous is not None and path.exists():
            _keep(path, previous)
        temporary.replace(path)
        _flush(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def guarded(path: Path, write: Callable[[Path], object]) -> None:
    """Write a file whole or not at all. Raises RunError where it cannot be written."""
    try:
        write_whole(path, write)
    except OSError as error:
        raise RunError(f"cannot write '{path}': {words(error)}") from None


def write_tensors(path: Path, kind: str, content: Any, *, previous: Path | None = None) -> None:
    """Write a nest of dicts, lists, numbers, texts and tensors, with its kind, its format and a checksum.

    Raises RunError, in one sentence, where it cannot be written; what was there is then untouched.
    """
    tensors: dict[str, Tensor] = {}
    text = json.dumps(_take(content, "", tensors))
    mark = json.dumps({"kind": kind, "format": FORMAT, "version": __version__})
    metadata = {"pyroae": mark, "content": text, "sha256": _checksum(mark, text, tensors)}
    try:
        write_whole(path, lambda file: file.write_bytes(save(tensors, metadata)), previous=previous)
    except (OSError, SafetensorError) as error:
        raise RunError(f"cannot write '{path}': {words(error)}") from None


def read_tensors(path: Path, kind: str) -> Any:
    """What `write_tensors` wrote. Raises RunError where that is missing, damaged, altered, foreign or of another format."""
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            mark = _mark(path, kind, metadata)
            names = file.keys()  # the file is not a mapping
            tensors = {name: file.get_tensor(name) for name in names}
        if metadata.get("sha256") != _checksum(mark, metadata["content"], tensors):
            raise RunError(
                f"'{path}' is damaged or was altered: its checksum is not that of its contents"
            )
        return _put(json.loads(metadata["content"]), tensors)
    except FileNotFoundError:
        raise RunError(f"there is no file '{path}'") from None
    except RunError:
        raise
    except (SafetensorError, OSError) as error:
        raise RunError(f"'{path}' is damaged, or no file of pyroae: {words(error)}") from None
    except (KeyError, ValueError, TypeError, AttributeError, RecursionError) as error:
        raise RunError(f"'{path}' is no file of pyroae, or was altered: {words(error)}") from None


@contextmanager
def locked(directory: Path, what: str) -> Iterator[None]:
    """A context in which no other process has the directory; what killed ones left half-written is removed.

    It is made where it is missing. Raises RunError where another process has it, or it cannot be written to.
    """
    lock = FileLock(directory / LOCK)
    try:
        directory.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=0)
    except Timeout:
        raise RunError(f"another process is writing to the {what} '{directory}'") from None
    except OSError as error:
        raise RunError(f"cannot write to '{directory}': {words(error)}") from None
    try:
        for folder in (directory, directory / "checkpoints"):
            for left in folder.glob(".*") if folder.is_dir() else ():
                if TEMPORARY.match(left.name):
                    left.unlink(missing_ok=True)
        yield
    finally:
        lock.release()


def words(error: BaseException) -> str:
    """What an error says, on one line."""
    said = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return " ".join(str(said).split()) or type(error).__name__


def _temporary(path: Path) -> Path:
    return path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}")


def _keep(path: Path, previous: Path) -> None:
    """`previous` becomes what `path` is, which is there all along."""
    temporary = _temporary(previous)
    temporary.unlink(missing_ok=True)
    try:
        os.link(path, temporary)
    except OSError:  # a file system without hard links
        shutil.copyfile(path, temporary)
    temporary.replace(previous)


def _flush(directory: Path) -> None:
    """A rename is on disk when its directory is."""
    if not hasattr(os, "O_DIRECTORY"):
        return
    handle = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    except OSError:
        pass  # a file system that cannot
    finally:
        os.close(handle)


def _mark(path: Path, kind: str, metadata: dict[str, str]) -> str:
    """Raises RunError where a file is not of this kind and format."""
    if "pyroae" not in metadata:
        raise RunError(
            f"'{path}' is no file of this version of pyroae: it does not say what it holds"
        )
    mark = json.loads(metadata["pyroae"])
    if mark["format"] != FORMAT:
        raise RunError(
            f"'{path}' is of pyroae {mark['version']}, whose format {mark['format']} this version, {__version__}, cannot read"
        )
    if mark["kind"] != kind:
        raise RunError(f"'{path}' is a file of pyroae for another use: {mark['kind']}, not {kind}")
    return metadata["pyroae"]


def _checksum(mark: str, text: str, tensors: dict[str, Tensor]) -> str:
    digest = hashlib.sha256(f"{mark}\n{text}\n".encode())
    for name in sorted(tensors):
        value = tensors[name]
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def _take(value: Any, name: str, tensors: dict[str, Tensor]) -> Any:
    """`value` with its tensors moved to `tensors` and a mark in their place, ready for JSON."""
    if isinstance(value, Tensor):
        while name in tensors:
            name += "'"
        tensors[name] = value.detach().cpu().clone(memory_format=torch.contiguous_format)
        return {"tensor": name}
    if isinstance(value, dict):
        return {
            "dict": [
                [key, _take(item, f"{name}/{key}" if name else str(key), tensors)]
                for key, item in value.items()
            ]
        }
    if isinstance(value, list | tuple):
        return {"list": [_take(item, f"{name}/{i}", tensors) for i, item in enumerate(value)]}
    return {"value": value}


def _put(content: Any, tensors: dict[str, Tensor]) -> Any:
    (kind, value), *_ = content.items()
    if kind == "tensor":
        return tensors[value]
    if kind == "dict":
        return {key: _put(item, tensors) for key, item in value}
    if kind == "list":
        return [_put(item, tensors) for item in value]
    return value
