"""What loggers of services have in common: the id of their run, kept in the folder of ours."""

from argparse import Namespace
from pathlib import Path
from typing import Any

from lightning_fabric.loggers import Logger

ID = "id.txt"
"""The file with the id of the run, by which a resumed training finds it."""


class LoggerOfRun(Logger):
    """A logger of a service, whose run begins with the first record and goes on after a resume.

    Args:
        folder: Where the id of the run is kept.
        name: The project or experiment of the service.
    """

    def __init__(self, folder: Path, name: str) -> None:
        self.folder, self._name = folder, name

    @property
    def name(self) -> str:
        """The project or experiment."""
        return self._name

    @property
    def version(self) -> str:
        """The id of the run, empty before it begins."""
        file = self.folder / ID
        return file.read_text() if file.is_file() else ""

    def keep(self, version: str) -> None:
        """Keep the id of a run that has begun.

        Args:
            version: The id.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / ID).write_text(version)


def values_of(params: dict[str, Any] | Namespace) -> dict[str, Any]:
    """Return hyperparameters by name.

    Args:
        params: A dict or a namespace.

    Returns:
        The dict.

    >>> values_of(Namespace(lr=0.1))
    {'lr': 0.1}
    """
    return vars(params) if isinstance(params, Namespace) else params
