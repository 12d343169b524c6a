"""Write files atomically, and read and write files of tensors with a checksum.

A file is either complete or absent. Nothing is unpickled: tensors are stored as safetensors and
everything else as JSON.
"""

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
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
"""The format of files of tensors; files of another format are refused."""


LOCK = ".lock"
"""The name of the lock file within a directory."""


TEMPORARY = re.compile(r"^\.(.+)\.(\d+)(\.\w+)?$")
"""The names of temporary files: hidden, with the number of the process."""


def write_whole(
    path: Path, write: Callable[[Path], object], *, previous: Path | None = None
) -> None:
    """Write a file atomically: under a temporary name, flushed to disk, then renamed.

    Args:
        path: The file; its directory is created if it is missing.
        write: A function that writes the content to the path that it receives.
        previous: A path under which the present file is kept; None to replace it.

    Raises:
        OSError: If the file cannot be written; the present file is then unchanged.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _temporary(path)
    try:
        write(temporary)
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        if previous is not None and path.exists():
            _link(path, previous)
        temporary.replace(path)
        _flush(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def guarded(path: Path, write: Callable[[Path], object], *, previous: Path | None = None) -> None:
    """Write a file atomically, and report a failure as an error of the run.

    Args:
        path: The file; its directory is created if it is missing.
        write: A function that writes the content to the path that it receives.
        previous: A path under which the present file is kept; None to replace it.

    Raises:
        RunError: If the file cannot be written; the present file is then unchanged.
    """
    try:
        write_whole(path, write, previous=previous)
    except (OSError, SafetensorError) as error:
        raise RunError(f"cannot write '{path}': {words(error)}") from None


def write_together(
    contents: Mapping[Path, bytes], moves: Mapping[Path, Path] | None = None
) -> None:
    """Write several files that belong together: all of them, or none if the disk is full.

    Every file is written under a temporary name and flushed before the first is renamed. A process
    that is killed between two renames leaves whole files, some of them the old ones.

    Args:
        contents: The content of each file; directories are created if they are missing.
        moves: New names of present files, which are renamed first.

    Raises:
        RunError: If a file cannot be written; all present files are then unchanged.
    """
    temporaries: dict[Path, Path] = {}
    path = Path()
    try:
        for path, content in contents.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            temporaries[path] = _temporary(path)
            with temporaries[path].open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
        for path, new in (moves or {}).items():
            new.parent.mkdir(parents=True, exist_ok=True)
            path.replace(new)
        for path, temporary in temporaries.items():
            temporary.replace(path)
        for folder in {path.parent for path in contents}:
            _flush(folder)
    except OSError as error:
        raise RunError(f"cannot write '{path}': {words(error)}") from None
    finally:
        for temporary in temporaries.values():
            temporary.unlink(missing_ok=True)


def write_tensors(path: Path, kind: str, content: Any, *, previous: Path | None = None) -> None:
    """Write nested containers of tensors atomically, with a format number and a checksum.

    Args:
        path: The file; its directory is created if it is missing.
        kind: What the file is used for; `read_tensors` compares it.
        content: Nested dicts, lists and tuples of tensors, numbers, strings and None.
        previous: A path under which the present file is kept; None to replace it.

    Raises:
        RunError: If the file cannot be written; the present file is then unchanged.
    """
    tensors: dict[str, Tensor] = {}
    text = json.dumps(_encode(content, "", tensors))
    header = json.dumps({"kind": kind, "format": FORMAT, "version": __version__})
    metadata = {"pyroae": header, "content": text, "sha256": _checksum(header, text, tensors)}
    guarded(path, lambda file: file.write_bytes(save(tensors, metadata)), previous=previous)


def read_tensors(path: Path, kind: str) -> Any:
    """Read a file of `write_tensors`, and verify its checksum.

    Args:
        path: The file.
        kind: What the file is used for, as it was written.

    Returns:
        The content, with tensors on the CPU; tuples become lists.

    Raises:
        RunError: If the file is missing or damaged, was altered or not written by `write_tensors`,
            or has another kind or format.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            header = _checked_header(path, kind, metadata)
            names = file.keys()  # the file is not a mapping
            tensors = {name: file.get_tensor(name) for name in names}
        if metadata.get("sha256") != _checksum(header, metadata["content"], tensors):
            raise RunError(
                f"'{path}' is damaged or was altered: its checksum does not match its contents"
            )
        return _decode(json.loads(metadata["content"]), tensors)
    except FileNotFoundError:
        raise RunError(f"there is no file '{path}'") from None
    except RunError:
        raise
    except (SafetensorError, OSError) as error:
        raise RunError(f"'{path}' is damaged, or not a file of pyroae: {words(error)}") from None
    except (KeyError, ValueError, TypeError, AttributeError, RecursionError) as error:
        raise RunError(
            f"'{path}' is not a file of pyroae, or was altered: {words(error)}"
        ) from None


@contextmanager
def locked(directory: Path, what: str) -> Iterator[None]:
    """Hold the lock of a directory, and remove temporary files of killed processes.

    Args:
        directory: The directory; it is created if it is missing.
        what: The name of such a directory in the error message, for example "run".

    Yields:
        None, while this process is the only one to hold the lock.

    Raises:
        RunError: If another process holds the lock, or the directory is not writable.
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
            remove_temporaries(folder, of_all=True)
        yield
    finally:
        lock.release()


def remove_temporaries(folder: Path, *, of_all: bool = False) -> None:
    """Remove temporary files of processes of this machine that were killed.

    Args:
        folder: The folder; nothing is done if it is missing.
        of_all: Whether those of running processes are removed too.
    """
    for file in folder.glob(".*") if folder.is_dir() else ():
        found = TEMPORARY.match(file.name)
        if found and (of_all or not _is_running(int(found[2]))):
            file.unlink(missing_ok=True)


def _is_running(process: int) -> bool:
    try:
        os.kill(process, 0)
    except OSError as error:
        return isinstance(error, PermissionError)
    return True


def words(error: BaseException) -> str:
    r"""Return the message of an error on one line.

    Args:
        error: The error.

    Returns:
        The text of the operating system for an OSError that has one, else the message; the name of
        the type if it is empty.

    >>> words(ValueError("two\n  lines")), words(KeyError()), words(OSError(28, "disk full"))
    ('two lines', 'KeyError', 'disk full')
    """
    message = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return " ".join(str(message).split()) or type(error).__name__


def _temporary(path: Path) -> Path:
    return path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}")


def _link(path: Path, previous: Path) -> None:
    """Make `previous` the same file as `path`, or a copy, while `path` remains."""
    temporary = _temporary(previous)
    temporary.unlink(missing_ok=True)
    try:
        os.link(path, temporary)
    except OSError:  # a file system without hard links
        shutil.copyfile(path, temporary)
    temporary.replace(previous)


def _flush(directory: Path) -> None:
    """Flush a directory to disk, which makes the renaming of its files durable."""
    if not hasattr(os, "O_DIRECTORY"):
        return
    handle = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    except OSError:
        pass  # a file system that cannot flush directories
    finally:
        os.close(handle)


def _checked_header(path: Path, kind: str, metadata: dict[str, str]) -> str:
    """The header of a file; RunError if the file has another kind or format."""
    if "pyroae" not in metadata:
        raise RunError(f"'{path}' is not a file of this version of pyroae: it has no header")
    header = json.loads(metadata["pyroae"])
    if header["format"] != FORMAT:
        raise RunError(
            f"'{path}' is in format {header['format']} of pyroae {header['version']}, "
            f"which this version, {__version__}, cannot read"
        )
    if header["kind"] != kind:
        raise RunError(
            f"'{path}' is a file of pyroae for another use: {header['kind']}, not {kind}"
        )
    return metadata["pyroae"]


def _checksum(header: str, text: str, tensors: dict[str, Tensor]) -> str:
    digest = hashlib.sha256(f"{header}\n{text}\n".encode())
    for name in sorted(tensors):
        value = tensors[name]
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def _encode(value: Any, name: str, tensors: dict[str, Tensor]) -> Any:
    """Move the tensors of `value` to `tensors`; return the rest, with references, for JSON."""
    if isinstance(value, Tensor):
        while name in tensors:
            name += "'"
        tensors[name] = value.detach().cpu().clone(memory_format=torch.contiguous_format)
        return {"tensor": name}
    if isinstance(value, dict):
        return {
            "dict": [
                [key, _encode(item, f"{name}/{key}" if name else str(key), tensors)]
                for key, item in value.items()
            ]
        }
    if isinstance(value, list | tuple):
        return {"list": [_encode(item, f"{name}/{i}", tensors) for i, item in enumerate(value)]}
    return {"value": value}


def _decode(content: Any, tensors: dict[str, Tensor]) -> Any:
    """The inverse of `_encode`."""
    (kind, value), *_ = content.items()
    if kind == "tensor":
        return tensors[value]
    if kind == "dict":
        return {key: _decode(item, tensors) for key, item in value}
    if kind == "list":
        return [_decode(item, tensors) for item in value]
    return value
