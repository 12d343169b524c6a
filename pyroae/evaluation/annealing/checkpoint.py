"""The checkpoint file of an annealing run: finished blocks, and the state of the unfinished one."""

import json
import re
import time
import warnings
from pathlib import Path
from typing import Any

from pyroae.errors import ConfigError, RunError
from pyroae.evaluation.annealing.block import Block
from pyroae.evaluation.annealing.results import BlockResult
from pyroae.runtime.files import read_tensors, words, write_tensors
from pyroae.runtime.processes import Share

SAVE_EVERY = 30.0
"""Seconds between two writes within a block."""


KIND = "annealing"
"""The kind of these files, which `write_tensors` records."""


class Checkpoint:
    """The checkpoint file of one process, and its predecessor; without a path nothing is written.

    The first process writes to the path itself; the others write to files with their rank in the
    name. A damaged file is skipped in favour of its predecessor, with a warning: the result is the
    same.

    Args:
        path: The file of the first process; None for no file.
        identity: Settings and data that a file must have been written with.
        seed: The seed from which the seeds of the blocks are derived.
        share: Rank and number of the processes.

    Attributes:
        finished: Results of finished blocks, by the index of their first datum.
        unfinished: Snapshots of unfinished blocks (`Block.snapshot`), by their first datum.
        size: Number of data at once, where memory did not hold a whole block; None before.
        seed: As above; a file without a fixed seed restores its own.

    Raises:
        RunError: Where neither the file nor its predecessor can be read.
        ConfigError: For a file of other settings or data.
    """

    def __init__(
        self, path: Path | str | None, identity: dict[str, Any], seed: int, share: Share
    ) -> None:
        self.path = None if path is None else of_rank(Path(path), share.rank)
        self.identity: dict[str, Any] = json.loads(json.dumps(identity))
        self.finished: dict[int, BlockResult] = {}
        self.unfinished: dict[int, dict[str, Any]] = {}
        self.size: int | None = None
        self.seed, self.seconds = seed, 0.0
        self._has_seed, self._is_sound = False, True
        if path is not None and self.path is not None:
            surplus = _of_surplus_ranks(Path(path), share.world) if share.rank == 0 else []
            for file in [self.path, *surplus]:
                self._read(file)
            _remove_temporary(self.path)
        self._started = self._saved = time.monotonic()

    @property
    def elapsed(self) -> float:
        """Seconds of work, including those before an interruption."""
        return self.seconds + time.monotonic() - self._started

    def meet(self, share: Share) -> dict[int, BlockResult]:
        """Merge the state of all processes. Collective: call it on every rank.

        Unfinished blocks, the size of a block and the seed of any process are adopted by all.

        Args:
            share: Rank and number of the processes.

        Returns:
            The finished blocks of all processes, by the index of their first datum.
        """
        state = (self.finished, self.unfinished, self.size, self.seed, self._has_seed)
        states = share.gather(state)
        finished = {first: result for done, *_ in states for first, result in done.items()}
        self.unfinished = {
            first: snapshot
            for _, snapshots, *_ in states
            for first, snapshot in snapshots.items()
            if first not in finished
        }
        self.size = min((size for _, _, size, *_ in states if size is not None), default=None)
        seeds = [int(seed) for *_, seed, is_from_file in states if is_from_file]
        self.seed = seeds[0] if seeds else int(states[0][3])
        return finished

    def finish(self, first: int, result: BlockResult) -> None:
        """Write the result of a block.

        Args:
            first: The index of its first datum.
            result: Its tensors, on the CPU.
        """
        self.finished[first] = result
        self._write(self.unfinished)

    def tick(self, first: int, block: Block, *, now: bool = False) -> None:
        """Write the state of a block, if the last write was more than `SAVE_EVERY` seconds ago.

        Args:
            first: The index of its first datum.
            block: The block, between two moves.
            now: Write in any case.
        """
        if self.path is None or not (now or time.monotonic() - self._saved >= SAVE_EVERY):
            return
        snapshot = block.snapshot()
        self._write({**self.unfinished, first: snapshot} if snapshot else self.unfinished)

    def _write(self, unfinished: dict[int, dict[str, Any]]) -> None:
        if self.path is None:
            return
        content = {
            "identity": self.identity,
            "seed": self.seed,
            "size": self.size,
            "seconds": self.elapsed,
            "finished": {first: result.tensors() for first, result in self.finished.items()},
            "left": unfinished,
        }
        previous = _previous(self.path) if self._is_sound else None
        write_tensors(self.path, KIND, content, previous=previous)
        self._is_sound, self._saved = True, time.monotonic()

    def _read(self, file: Path) -> None:
        """Add the content of a file."""
        if not file.exists():
            return
        try:
            content, sound = read_tensors(file, KIND), True
        except RunError as error:
            content, sound = _of_previous(file, error), False
        if file == self.path:
            self._is_sound = sound
        try:
            self._check_identity(file, dict(content["identity"]))
            self.finished |= {
                first: BlockResult.from_tensors(tensors)
                for first, tensors in content["finished"].items()
            }
            self.unfinished |= content["left"]
            sizes = [size for size in (self.size, content["size"]) if size is not None]
            self.size = min(sizes, default=None)
            self.seed, self._has_seed = int(content["seed"]), True
            self.seconds = max(self.seconds, float(content["seconds"]))
        except (KeyError, TypeError, AttributeError) as error:
            raise RunError(f"the checkpoint '{file}' cannot be read: {words(error)}") from None

    def _check_identity(self, file: Path, identity: dict[str, Any]) -> None:
        """Raise ConfigError, naming what differs, for a file of another run."""
        differences = ", ".join(
            f"{name} = {self.identity.get(name)!r}, not {identity.get(name)!r}"
            for name in {**identity, **self.identity}
            if identity.get(name) != self.identity.get(name)
        )
        if differences:
            raise ConfigError(
                f"the checkpoint '{file}' is of another run: this one has {differences}"
            )


def of_rank(path: Path, rank: int) -> Path:
    """Return the file of a process.

    Args:
        path: The file of the first process.
        rank: The rank of the process.

    Returns:
        The path with the rank in its name; `path` itself for rank 0.

    >>> of_rank(Path("ais.safetensors"), 0).name, of_rank(Path("ais.safetensors"), 2).name
    ('ais.safetensors', 'ais.rank2.safetensors')
    """
    return path if rank == 0 else path.with_name(f"{path.stem}.rank{rank}{path.suffix}")


def _previous(path: Path) -> Path:
    return path.with_name(f"{path.stem}.previous{path.suffix}")


def _of_surplus_ranks(path: Path, world: int) -> list[Path]:
    """Files of ranks that a run with fewer processes does not have."""
    name = re.compile(rf"{re.escape(path.stem)}\.rank(\d+){re.escape(path.suffix)}")
    files = sorted(path.parent.iterdir()) if path.parent.is_dir() else []
    return [
        file for file in files if (match := name.fullmatch(file.name)) and int(match[1]) >= world
    ]


def _of_previous(file: Path, error: RunError) -> Any:
    """The content of the predecessor of a damaged file."""
    previous = _previous(file)
    if not previous.exists():
        raise RunError(
            f"the checkpoint cannot be read: {error}; remove it to start from the beginning"
        ) from None
    try:
        content = read_tensors(previous, KIND)
    except RunError:
        raise RunError(
            f"the checkpoint cannot be read: {error}; neither can the previous one, "
            f"'{previous}'; remove both to start from the beginning"
        ) from None
    warnings.warn(f"{error}: resuming from the previous one, '{previous}'", stacklevel=2)
    return content


def _remove_temporary(path: Path) -> None:
    """Remove half-written files of processes that were killed."""
    name = re.compile(rf"\.{re.escape(path.stem)}(\.previous)?\.\d+{re.escape(path.suffix)}")
    for file in path.parent.iterdir() if path.parent.is_dir() else ():
        if name.fullmatch(file.name):
            file.unlink(missing_ok=True)
