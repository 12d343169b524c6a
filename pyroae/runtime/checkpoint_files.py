"""Checkpoint files: each is replaced as a whole, and the one before it stays beside it."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from pyroae.errors import RunError
from pyroae.runtime.files import read_tensors, write_tensors


@dataclass(frozen=True)
class CheckpointFile:
    """A file of tensors that is written again and again, and its predecessor.

    Work that resumes from the predecessor comes to the same result: it repeats what was done
    between the two writes.

    Attributes:
        path: the file.
        previous: the name under which the file before it stays.
        kind: what the file holds; a file of another kind is refused.

    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as directory:
    ...     file = CheckpointFile.beside(Path(directory) / "work.safetensors", "numbers")
    ...     for number in (1, 2):
    ...         file.write({"number": number})
    ...     _ = file.path.write_bytes(b"damaged")
    ...     file.read()[0], file.previous.name
    ({'number': 1}, 'work.previous.safetensors')
    """

    path: Path
    previous: Path
    kind: str

    @classmethod
    def beside(cls, path: Path, kind: str) -> Self:
        """Return a file whose predecessor has `previous` added to its name.

        Args:
            path: the file.
            kind: what it holds.

        Returns:
            The pair of files.
        """
        return cls(path, path.with_name(f"{path.stem}.previous{path.suffix}"), kind)

    @classmethod
    def in_directory(cls, directory: Path, kind: str) -> Self:
        """Return the files `last.safetensors` and `previous.safetensors` of a directory.

        Args:
            directory: the directory, which need not exist.
            kind: what they hold.

        Returns:
            The pair of files.
        """
        return cls(directory / "last.safetensors", directory / "previous.safetensors", kind)

    @property
    def exists(self) -> bool:
        """Whether one of the two files exists."""
        return self.path.is_file() or self.previous.is_file()

    def write(self, content: Any, *, keep: bool = True) -> None:
        """Replace the file.

        Args:
            content: a nest of dicts, lists, numbers, texts and tensors.
            keep: whether the present file becomes the predecessor; False if it is damaged.

        Raises:
            RunError: if it cannot be written; the present file is then unchanged.
        """
        write_tensors(self.path, self.kind, content, previous=self.previous if keep else None)

    def read(self) -> tuple[Any, RunError | None]:
        """Read the file or, if that is damaged, its predecessor.

        Returns:
            The content, and the error of the damaged file.

        Raises:
            RunError: if neither can be read.
        """
        try:
            return read_tensors(self.path, self.kind), None
        except RunError as error:
            damage = error
        if not self.previous.exists():
            raise RunError(
                f"the checkpoint cannot be read: {damage}; remove it to start from the beginning"
            )
        try:
            return read_tensors(self.previous, self.kind), damage
        except RunError:
            raise RunError(
                f"the checkpoint cannot be read: {damage}; neither can the previous one, "
                f"'{self.previous}'; remove both to start from the beginning"
            ) from None
