"""Limit the trainings of a comparison to equal epochs, decoder evaluations or seconds.

The module does not import torch.
"""

import math
from dataclasses import dataclass
from typing import Any, Self

from pyroae.errors import ConfigError, unknown_name

KINDS = ("epochs", "evaluations", "seconds")
"""The kinds of a budget."""


ENDLESS = 10**9
"""The number of epochs of a training that ends after a number of seconds."""


@dataclass(frozen=True)
class Budget:
    """The limit of each training of a comparison.

    Attributes:
        kind: `epochs`, passes over the data, whatever K; `evaluations` of the decoder, of which
            each objective states a mean number per datum and step; or `seconds` of training,
            without validation and evaluation.
        amount: The limit in this unit, positive; a whole number for epochs.

    Raises:
        ConfigError: For another kind, or an amount that is not accepted.

    >>> Budget.parse("evaluations:1e7")
    Budget(kind='evaluations', amount=10000000.0)
    """

    kind: str
    amount: float

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise unknown_name("budget", self.kind, KINDS)
        if not 0 < self.amount < math.inf:
            raise ConfigError(
                f"a budget of {self.kind} must be positive and finite, not {self.amount}"
            )
        if self.kind == "epochs" and self.amount != int(self.amount):
            raise ConfigError(f"a budget of epochs is a whole number, not {self.amount}")

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read a budget from its text.

        Args:
            text: `kind:amount`, for example `epochs:10`.

        Returns:
            The budget.

        Raises:
            ConfigError: For any other text.
        """
        kind, colon, amount = text.partition(":")
        try:
            return cls(kind.strip(), float(amount))
        except ValueError as error:
            if colon and isinstance(error, ConfigError):
                raise
            raise ConfigError(
                f"a budget is epochs:N, evaluations:N or seconds:N, not '{text}'"
            ) from None

    def __str__(self) -> str:
        return f"{self.kind}:{self.amount:g}"

    def limits(self, per_datum: float, num_data: int, batch_size: int) -> dict[str, Any]:
        """Convert the budget to limits of a `TrainConfig`.

        Args:
            per_datum: Decoder evaluations per datum and step, `ObjectiveBase.evaluations`.
            num_data: N, the number of training data.
            batch_size: The number of data in a batch.

        Returns:
            `epochs`, `max_steps` and `max_seconds`; None for no limit.

        Raises:
            ConfigError: For fewer evaluations than one step needs.

        >>> Budget("evaluations", 1e5).limits(per_datum=8, num_data=1000, batch_size=100)
        {'epochs': 13, 'max_steps': 125, 'max_seconds': None}
        """
        if self.kind == "seconds":
            return {"epochs": ENDLESS, "max_steps": None, "max_seconds": self.amount}
        if self.kind == "epochs":
            return {"epochs": int(self.amount), "max_steps": None, "max_seconds": None}
        passes, rest = divmod(int(self.amount), per_datum * num_data)
        steps = int(passes) * math.ceil(num_data / batch_size)
        steps += int(rest // (per_datum * batch_size))
        if not steps:
            raise ConfigError(
                f"a budget of {self.amount:g} evaluations is less than one step of {batch_size} "
                f"data at {per_datum:g} evaluations per datum"
            )
        return {
            "epochs": math.ceil(steps / math.ceil(num_data / batch_size)),
            "max_steps": steps,
            "max_seconds": None,
        }


def evaluations_of(steps: int, per_datum: float, num_data: int, batch_size: int) -> int:
    """Count the decoder evaluations of a number of steps.

    The last batch of an epoch may be smaller.

    Args:
        steps: The number of steps.
        per_datum: Decoder evaluations per datum and step, `ObjectiveBase.evaluations`.
        num_data: N, the number of training data.
        batch_size: The number of data in a batch.

    Returns:
        The number of evaluations; its mean where it is random.

    >>> # 250 data in three steps, then 100 data
    >>> evaluations_of(steps=4, per_datum=8, num_data=250, batch_size=100)
    2800
    """
    passes, rest = divmod(steps, math.ceil(num_data / batch_size))
    return round(per_datum * (passes * num_data + rest * batch_size))
