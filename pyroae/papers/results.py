"""What was measured beside what a paper prints: numbers, claims and their verdicts."""

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class PaperRow:
    """One number of a paper, and the same number measured here.

    Attributes:
        table: Where the paper prints it, as "Table 1".
        label: The row of that table, as "IWAE, one layer, k = 50".
        quantity: What is measured, with its unit, as "NLL by L_5000, nats".
        printed: The paper's number; nan where it prints a curve or a direction alone.
        estimate: The number measured here; nan where it was not measured.
        low: The lower end of its 95 % interval.
        high: The upper end.
        tolerance: The largest difference from the printed number that counts as agreement, beyond
            the interval; nan where the protocol differs so that no agreement is expected.
        not_comparable: Why the printed number cannot be compared, as a data file that is not at
            hand; empty where it can.

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

    @property
    def difference(self) -> float:
        """The estimate minus the printed number; nan where one is missing."""
        return self.estimate - self.printed

    @property
    def verdict(self) -> str:
        """One of `agrees`, `differs`, `not comparable`, `not measured` and `no number printed`.

        A row without a tolerance is not comparable.
        """
        if self.not_comparable or math.isnan(self.tolerance):
            return "not comparable"
        if math.isnan(self.estimate):
            return "not measured"
        if math.isnan(self.printed):
            return "no number printed"
        reach = self.tolerance
        inside = self.low - reach <= self.printed <= self.high + reach
        return "agrees" if inside else "differs"


@dataclass(frozen=True)
class Claim:
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
    estimate: float
    low: float
    high: float
    derived: float = math.nan

    @property
    def verdict(self) -> str:
        """`holds`, `within noise`, `contradicted`, or `not measured` where a number is missing."""
        if not all(map(math.isfinite, (self.estimate, self.low, self.high))):
            return "not measured"
        if self.low > 0:
            return "holds"
        return "contradicted" if self.high < 0 else "within noise"


@dataclass(frozen=True)
class PaperResult:
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
