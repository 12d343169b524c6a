"""The specification of a paper: what it prints and claims, and how that is measured again.

A further paper is one more module: a function that returns a `Paper`, entered in `PAPERS`.
"""

import json
import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pyroae.errors import ConfigError, RunError
from pyroae.papers.results import Claim, PaperResult, PaperRow
from pyroae.registry import Registry
from pyroae.runtime.files import guarded, words
from pyroae.runtime.short_repr import Overview, Shown
from pyroae.runtime.short_text import duration
from pyroae.studies.executors import Executor, Local


@dataclass(frozen=True, repr=False)
class Work(Shown):
    """One measurement of a paper: its scale, its folder and where its trainings run.

    Attributes:
        scale: The scale, a key of `Paper.scales`.
        folder: The folder of this paper at this scale.
        data_root: The folder of torchvision's data sets.
        executor: Where trainings run.
        only: The rows and claims to measure: those whose text has these words; empty for all.
        progress: Whether progress is shown.
        how: The command that resumes the measurement, for the message after a signal.

    >>> work = Work("short", Path("runs/papers/a-paper/short"), only="k = 5")
    >>> work.wants("one layer, k = 5"), work.wants("one layer, k = 50")
    (True, False)
    """

    scale: str
    folder: Path
    data_root: str = "data"
    executor: Executor = field(default_factory=Local)
    only: str = ""
    progress: bool = True
    how: str = ""

    def wants(self, text: str) -> bool:
        """Return whether a row or claim is to be measured.

        Args:
            text: The label of the row, or the text of the claim.

        Returns:
            Whether it contains the words of `only`, in capitals or not.
        """
        words_of_only = rf"(?<!\w){re.escape(self.only)}(?!\w)"
        return not self.only or re.search(words_of_only, text, re.IGNORECASE) is not None

    def kept(self, name: str, settings: Mapping[str, Any], measure: Callable[[], Any]) -> Any:
        """Return what was measured before, or measure it and keep it.

        Args:
            name: The name of the file in the folder, without its suffix `.json`.
            settings: All that the measured values depend on, ready for JSON.
            measure: Returns the values, ready for JSON: dicts, lists, numbers and texts.

        Returns:
            The values; those of the file where it exists.

        Raises:
            ConfigError: If the file was measured with other settings.
            RunError: If the file cannot be read or written.
        """
        file = self.folder / f"{name}.json"
        given = json.loads(json.dumps(settings))
        if file.is_file():
            return _read(file, given)
        content = {"settings": given, "values": measure()}
        guarded(file, lambda path: path.write_text(json.dumps(content, indent=1) + "\n"))
        return json.loads(json.dumps(content))["values"]


def _read(file: Path, settings: Mapping[str, Any]) -> Any:
    """The values of a kept file."""
    try:
        content = json.loads(file.read_text())
        before, values = content["settings"], content["values"]
    except (ValueError, KeyError, TypeError, OSError) as error:
        raise RunError(
            f"'{file}' cannot be read, {words(error)}: remove it to measure it again"
        ) from None
    for name in {**before, **settings}:
        if before.get(name) != settings.get(name):
            raise ConfigError(
                f"'{file}' was measured with {name} = {before.get(name)}, not "
                f"{settings.get(name)}: give --overwrite to measure everything again"
            )
    return values


@dataclass(frozen=True, repr=False)
class Scale(Shown):
    """How much of a paper is measured.

    Attributes:
        protocol: Data, training, draws and seeds, in words.
        seconds: The estimated time on two cores.
        differs: Why the printed numbers are not comparable at this scale; empty where they are.
    """

    protocol: str
    seconds: float
    differs: str = ""


@dataclass(frozen=True, repr=False)
class Paper(Shown):
    """What a paper prints and claims, and how it is measured again.

    Attributes:
        name: The name, as `burda-2016`.
        title: The title.
        reference: Authors, year and where it was published.
        data: The data file and its split, in words; of a toy model, how its data are drawn.
        scales: What is measured at each scale: `short` and `full`.
        rows: The printed numbers, not measured.
        claims: The claims, not measured.
        measure: Yields rows and claims, each with what was measured for it, as they are finished.
        datasets: Names of the data sets that it needs, which are looked for before any work.
        notes: What differs from the paper's protocol, and how the intervals are made; Markdown.
    """

    name: str
    title: str
    reference: str
    data: str
    scales: Mapping[str, Scale]
    rows: tuple[PaperRow, ...]
    claims: tuple[Claim, ...]
    measure: Callable[[Work], Iterator[PaperRow | Claim]]
    datasets: tuple[str, ...] = ()
    notes: str = ""

    @property
    def listed(self) -> tuple[str, ...]:
        """Reference, title, data sets, and the estimated times of the scales short and full."""
        short, full = (
            duration(self.scales[scale].seconds) if scale in self.scales else ""
            for scale in ("short", "full")
        )
        return self.reference, self.title, ", ".join(self.datasets), short, full

    def _overview(self) -> Overview:
        rows = [("title", self.title), ("reference", self.reference), ("data", self.data)]
        for name, scale in self.scales.items():
            rows.append((f"scale {name}", f"{duration(scale.seconds)}: {scale.protocol}"))
        head = [self.name, f"{len(self.rows)} rows", f"{len(self.claims)} claims"]
        return Overview(head, rows)

    def unmeasured(self, scale: str) -> PaperResult:
        """Return the rows and claims without measurements.

        Args:
            scale: The scale.

        Returns:
            A result in which every number is missing.

        Raises:
            ConfigError: For a scale that the paper does not have.
        """
        if scale not in self.scales:
            raise ConfigError(f"{self.name} has the scales {', '.join(self.scales)}, not '{scale}'")
        differs = self.scales[scale].differs
        rows = tuple(
            replace(row, not_comparable=row.not_comparable or differs) for row in self.rows
        )
        return PaperResult(self.name, scale, rows, self.claims, math.nan)


PAPERS: Registry[Paper] = Registry("paper")
"""The papers that can be measured again: functions without arguments that return a `Paper`."""
