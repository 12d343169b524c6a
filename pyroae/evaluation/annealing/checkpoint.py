"""What an annealing keeps on disk: the blocks that are finished, and the one that is not, as far as it has come."""

import json
import re
import time
import warnings
from pathlib import Path
from typing import Any

from torch import Tensor

from pyroae.errors import ConfigError, RunError
from pyroae.evaluation.annealing.block import Block
from pyroae.runtime.files import read_tensors, words, write_tensors
from pyroae.runtime.processes import Share

SAVE_EVERY = 30.0
"""Seconds between two writes within a block."""


KIND = "annealing"


class Checkpoint:
    """The file of one process, and the one before; without a path it keeps nothing.

    The first process has the file at the path, others one with their rank in its name. identity: what a file must have been
    made with. A file that is damaged is passed over for the one before, with a warning: the result is the same.
    Raises RunError where neither can be read, ConfigError for a file of other settings or data.

    finished: what blocks have come to, by their first datum. left: blocks that are not finished, by their first datum, as
    `Block.left` has them. size: data at once, where memory allowed no more. seed: that of the blocks comes from it.
    """

    def __init__(
        self, path: Path | str | None, identity: dict[str, Any], seed: int, share: Share
    ) -> None:
        self.path = None if path is None else of_rank(Path(path), share.rank)
        self.identity: dict[str, Any] = json.loads(json.dumps(identity))
        self.finished: dict[int, dict[str, Tensor]] = {}
        self.left: dict[int, dict[str, Any]] = {}
        self.size: int | None = None
        self.seed, self.seconds = seed, 0.0
        self._has_seed, self._is_sound = False, True
        if path is not None and self.path is not None:
            for file in [
                self.path,
                *(_of_more(Path(path), share.world) if share.rank == 0 else ()),
            ]:
                self._take(file)
            _tidy(self.path)
        self._started = self._saved = time.monotonic()

    @property
    def elapsed(self) -> float:
        """Seconds of work, those before an interruption included."""
        return self.seconds + time.monotonic() - self._started

    def meet(self, share: Share) -> dict[int, dict[str, Tensor]]:
        """What any process had finished, by the first datum; what others have left, and their settings, are taken over."""
        told = share.gather((self.finished, self.left, self.size, self.seed, self._has_seed))
        finished = {first: found for theirs, *_ in told for first, found in theirs.items()}
        self.left = {
            first: left
            for _, theirs, *_ in told
            for first, left in theirs.items()
            if first not in finished
        }
        self.size = min((size for _, _, size, *_ in told if size is not None), default=None)
        seeds = [int(seed) for *_, seed, is_kept in told if is_kept]
        self.seed = seeds[0] if seeds else int(told[0][3])
        return finished

    def finish(self, first: int, found: dict[str, Tensor]) -> None:
        """Keep the result of a block."""
        self.finished[first] = found
        self._write(self.left)

    def tick(self, first: int, block: Block, *, now: bool = False) -> None:
        """Keep the state of a block, where the last write was long enough ago, or now."""
        if self.path is None or not (now or time.monotonic() - self._saved >= SAVE_EVERY):
            return
        left = block.left()
        self._write({**self.left, first: left} if left else self.left)

    def _write(self, left: dict[int, dict[str, Any]]) -> None:
        if self.path is None:
            return
        content = {
            "identity": self.identity,
            "seed": self.seed,
            "size": self.size,
            "seconds": self.elapsed,
            "finished": self.finished,
            "left": left,
        }
        write_tensors(
            self.path, KIND, content, previous=_before(self.path) if self._is_sound else None
        )
        self._is_sound, self._saved = True, time.monotonic()

    def _take(self, file: Path) -> None:
        """Add what a file holds."""
        if not file.exists():
            return
        try:
            content, sound = read_tensors(file, KIND), True
        except RunError as error:
            content, sound = _instead(file, error), False
        if file == self.path:
            self._is_sound = sound
        try:
            identity = dict(content["identity"])
            other = [
                name
                for name in {**identity, **self.identity}
                if identity.get(name) != self.identity.get(name)
            ]
            if other:
                given = ", ".join(
                    f"{n} = {self.identity.get(n)!r}, not {identity.get(n)!r}" for n in other
                )
                raise ConfigError(
                    f"the checkpoint '{file}' is of another run: this one has {given}"
                )
            self.finished |= content["finished"]
            self.left |= content["left"]
            self.size = min(
                (size for size in (self.size, content["size"]) if size is not None), default=None
            )
            self.seed, self._has_seed = int(content["seed"]), True
            self.seconds = max(self.seconds, float(content["seconds"]))
        except (KeyError, TypeError, AttributeError) as error:
            raise RunError(f"the checkpoint '{file}' cannot be read: {words(error)}") from None


def of_rank(path: Path, rank: int) -> Path:
    """The file of a process.

    >>> of_rank(Path("ais.safetensors"), 0).name, of_rank(Path("ais.safetensors"), 2).name
    ('ais.safetensors', 'ais.rank2.safetensors')
    """
    return path if rank == 0 else path.with_name(f"{path.stem}.rank{rank}{path.suffix}")


def _before(path: Path) -> Path:
    return path.with_name(f"{path.stem}.previous{path.suffix}")


def _of_more(path: Path, world: int) -> list[Path]:
    """The files of processes that there are no longer."""
    name = re.compile(rf"{re.escape(path.stem)}\.rank(\d+){re.escape(path.suffix)}")
    there = sorted(path.parent.iterdir()) if path.parent.is_dir() else []
    return [
        file for file in there if (match := name.fullmatch(file.name)) and int(match[1]) >= world
    ]


def _instead(file: Path, error: RunError) -> Any:
    """What the file before a damaged one holds."""
    before = _before(file)
    if not before.exists():
        raise RunError(f"the checkpoint cannot be read: {error}; remove it to start anew") from None
    try:
        content = read_tensors(before, KIND)
    except RunError:
        told = f"the checkpoint cannot be read: {error}; nor can the one before, '{before}'; remove both to start anew"
        raise RunError(told) from None
    warnings.warn(f"{error}: the work goes on from the one before, '{before}'", stacklevel=2)
    return content


def _tidy(path: Path) -> None:
    """Remove what a process that was killed while it wrote has left."""
    name = re.compile(rf"\.{re.escape(path.stem)}(\.previous)?\.\d+{re.escape(path.suffix)}")
    for file in path.parent.iterdir() if path.parent.is_dir() else ():
        if name.fullmatch(file.name):
            file.unlink(missing_ok=True)
