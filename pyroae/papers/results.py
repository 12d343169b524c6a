"""What was measured beside what a paper prints: numbers, claims and their verdicts."""

import math
from dataclasses import dataclass, replace
from typing import Self

from pyroae.errors import ConfigError
from pyroae.runtime.short_repr import Overview, Shown
from pyroae.runtime.short_text import duration, number


@dataclass(frozen=True, repr=False)
class PaperRow(Shown):
    """One number of a paper, and the same number measured here.

    Attributes:
        table: Where the paper prints it, as "Table 1".
        label: The row of that table, as "IWAE, one layer, k = 50".
        quantity: What is measured, with its unit, as "NLL by L_5000, nats".
        printed: The paper's number; nan where it prints a curve or a direction alone.
        estimate: The number measured here; nan where it was not measured.
        low: The lower end of its 95 % interval.
        high: The upper end.
        tolerance: The largest difference from the expected number that counts as agreement, in the
            unit of the quantity; 0 where the expected number must lie in the interval; nan where no
            agreement is expected.
        not_comparable: Why the printed number cannot be compared, as a data file that is not at
            hand; empty where it can.
        derived: The value by theory, computed here and not printed in the paper; nan where it is
            not known. The estimate is compared with it where no number is printed.

    >>> row = PaperRow("Table 1", "VAE, k = 1", "NLL, nats", 86.76, 86.1, 85.9, 86.3, 1.0)
    >>> round(row.difference, 2), row.verdict
    (-0.66, 'agrees')
    """

    table: str
    label: str
    quantity: str
    printed: float
    estimate: float = math.nan
    low: float = math.nan
    high: float = math.nan
    tolerance: float = math.nan
    not_comparable: str = ""
    derived: float = math.nan

    def _overview(self) -> Overview:
        printed = [f"printed {_found(self.printed)}"] if _found(self.printed) else []
        measured = [f"measured {_ends(self)}"] if _ends(self) else []
        where = f"{self.table}: {self.label}"
        return Overview([where, self.quantity, *printed, *measured, self.verdict])

    @property
    def key(self) -> tuple[str, str, str]:
        """What tells a row from the others of its paper: table, label and quantity."""
        return self.table, self.label, self.quantity

    def measured(self, estimate: float, low: float, high: float) -> Self:
        """Return the row with what was measured.

        Args:
            estimate: The number measured here, in the unit of the quantity.
            low: The lower end of its 95 % interval.
            high: The upper end.

        Returns:
            A row of the same printed number.
        """
        return replace(self, estimate=estimate, low=low, high=high)

    @property
    def expected(self) -> float:
        """The printed number; where there is none, the derived one."""
        return self.derived if math.isnan(self.printed) else self.printed

    @property
    def difference(self) -> float:
        """The estimate minus the expected number; nan where one is missing."""
        return self.estimate - self.expected

    @property
    def verdict(self) -> str:
        """One of `agrees`, `differs`, `not comparable`, `not measured` and `no number printed`.

        A row agrees if the expected number lies within `tolerance` of the estimate, or in its 95 %
        interval. A row without a tolerance is not comparable.
        """
        if self.not_comparable or math.isnan(self.tolerance):
            return "not comparable"
        if math.isnan(self.estimate):
            return "not measured"
        if math.isnan(self.expected):
            return "no number printed"
        is_near = abs(self.difference) <= self.tolerance
        return "agrees" if is_near or self.low <= self.expected <= self.high else "differs"


@dataclass(frozen=True, repr=False)
class Claim(Shown):
    """A direction that a paper claims, and the difference measured here.

    Attributes:
        text: The claim, as "IWAE, k = 50 below k = 1 in NLL".
        quantity: What the difference is of, with its unit.
        estimate: The measured difference, in the direction of the claim: above 0 where it holds.
        low: The lower end of its 95 % interval.
        high: The upper end.
        derived: The value of the difference by theory; nan where it is not known.

    >>> Claim("k = 50 below k = 1", "NLL, nats", 0.4, 0.1, 0.7).verdict
    'holds'
    """

    text: str
    quantity: str
    estimate: float = math.nan
    low: float = math.nan
    high: float = math.nan
    derived: float = math.nan

    def _overview(self) -> Overview:
        measured = [f"{_ends(self)} {self.quantity}"] if _ends(self) else []
        return Overview([self.text, *measured, self.verdict])

    @property
    def key(self) -> str:
        """What tells a claim from the others of its paper: its text."""
        return self.text

    def measured(self, estimate: float, low: float, high: float) -> Self:
        """Return the claim with what was measured.

        Args:
            estimate: The measured difference, above 0 where the claim holds.
            low: The lower end of its 95 % interval.
            high: The upper end.

        Returns:
            The same claim.
        """
        return replace(self, estimate=estimate, low=low, high=high)

    @property
    def verdict(self) -> str:
        """`holds`, `within noise`, `contradicted`, or `not measured` where a number is missing.

        An interval of infinite width, where the error of a score is not known, is noise.
        """
        if any(map(math.isnan, (self.estimate, self.low, self.high))):
            return "not measured"
        if self.low > 0:
            return "holds"
        return "contradicted" if self.high < 0 else "within noise"


@dataclass(frozen=True, repr=False)
class PaperResult(Shown):
    """All rows and claims of one paper at one scale.

    Attributes:
        paper: The name of the paper, as `burda-2016`.
        scale: `short` or `full`.
        rows: Printed numbers and those measured here.
        claims: Claimed directions and differences measured here.
        seconds: The time of the measurement, including the time before an interruption.
    """

    paper: str
    scale: str
    rows: tuple[PaperRow, ...]
    claims: tuple[Claim, ...]
    seconds: float

    def _overview(self) -> Overview:
        rows = [(r.label, r.quantity, _found(r.printed), _ends(r), r.verdict) for r in self.rows]
        rows += [(c.text, c.quantity, "", _ends(c), c.verdict) for c in self.claims]
        sizes = [f"{len(self.rows)} rows", f"{len(self.claims)} claims", duration(self.seconds)]
        columns = ("row or claim", "quantity", "printed", "measured", "verdict")
        return Overview([self.paper, self.scale, *sizes], rows, columns)

    @property
    def is_measured(self) -> bool:
        """Whether any number was measured."""
        return any(not math.isnan(part.estimate) for part in self.parts)

    @property
    def parts(self) -> tuple[PaperRow | Claim, ...]:
        """All rows and claims."""
        return (*self.rows, *self.claims)

    def updated(self, part: PaperRow | Claim, seconds: float) -> Self:
        """Return the result with one more row or claim measured.

        Args:
            part: The row or claim; its numbers become those of the one with the same key.
            seconds: The time of the measurement so far.

        Returns:
            The result.

        Raises:
            ConfigError: If the paper has no such row or claim.
        """
        if part.key not in [one.key for one in self.parts]:
            kind = "row" if isinstance(part, PaperRow) else "claim"
            raise ConfigError(f"{self.paper} has no {kind} '{part.key}'")
        values = part.estimate, part.low, part.high
        rows = tuple(r.measured(*values) if r.key == part.key else r for r in self.rows)
        claims = tuple(c.measured(*values) if c.key == part.key else c for c in self.claims)
        return replace(self, rows=rows, claims=claims, seconds=seconds)


def _found(value: float) -> str:
    return "" if math.isnan(value) else number(value)


def _ends(part: PaperRow | Claim) -> str:
    """What was measured, with its 95 % interval; nothing where it was not."""
    if math.isnan(part.estimate):
        return ""
    return f"{number(part.estimate)} [{number(part.low)}, {number(part.high)}]"
