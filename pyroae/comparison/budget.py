"""What trainings are matched by: epochs, decoder evaluations or seconds. Plain data: nothing here needs torch."""

import math
from dataclasses import dataclass
from typing import Any, Self

from pyroae.errors import ConfigError, unknown_name

KINDS = ("epochs", "evaluations", "seconds")


ENDLESS = 10**9
"""Epochs of a training that only its seconds end."""


@dataclass(frozen=True)
class Budget:
    """How much each training of a comparison may spend.

    kind: `epochs` (passes over the data, whatever K), `evaluations` (of the decoder: K a datum and step), or `seconds` (of
    training; validation and evaluation are not counted). Raises ConfigError for another kind or an amount that is not
    positive; epochs are whole.

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
        """From `kind:amount`."""
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

    def limits(self, num_particles: int, num_data: int, batch_size: int) -> dict[str, Any]:
        """The epochs, max_steps and max_seconds of a TrainConfig that spend it. Raises ConfigError for less than one step.

        >>> Budget("evaluations", 1e5).limits(num_particles=8, num_data=1000, batch_size=100)
        {'epochs': 13, 'max_steps': 125, 'max_seconds': None}
        """
        if self.kind == "seconds":
            return {"epochs": ENDLESS, "max_steps": None, "max_seconds": self.amount}
        if self.kind == "epochs":
            return {"epochs": int(self.amount), "max_steps": None, "max_seconds": None}
        passes, rest = divmod(int(self.amount), num_particles * num_data)
        steps = passes * math.ceil(num_data / batch_size) + rest // (num_particles * batch_size)
        if not steps:
            raise ConfigError(
                f"a budget of {self.amount:g} evaluations is less than one step of {batch_size} data with K = {num_particles}"
            )
        return {
            "epochs": math.ceil(steps / math.ceil(num_data / batch_size)),
            "max_steps": steps,
            "max_seconds": None,
        }


def evaluations_of(steps: int, num_particles: int, num_data: int, batch_size: int) -> int:
    """Decoder evaluations of so many steps: the last batch of an epoch may be a smaller one.

    >>> evaluations_of(steps=4, num_particles=8, num_data=250, batch_size=100)  # 250 data in three steps, then 100
    2800
    """
    passes, rest = divmod(steps, math.ceil(num_data / batch_size))
    return num_particles * (passes * num_data + rest * batch_size)
