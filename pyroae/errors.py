"""Exceptions: each message is one sentence that says what was given and what is accepted."""

from collections.abc import Iterable
from difflib import get_close_matches


class PyroaeError(Exception):
    """Bad input of any kind; the command line prints its sentence and exits with status 2."""


class ConfigError(PyroaeError, ValueError):
    """A setting, a name or a combination of choices that is not accepted."""


class DataError(PyroaeError, ValueError):
    """Data that cannot be read, or that the chosen likelihood has no density for."""


class ProgramError(PyroaeError, ValueError):
    """A Pyro model and guide that break the contract of an objective; the message names the site."""


class BrokenProgramError(ProgramError):
    """A program that raised an error of its own in its run, which is the cause of this one; the message names the site."""


class UndefinedLikelihoodError(PyroaeError, ValueError):
    """log p(x) does not exist for this system, or the guide is no proposal for it."""


class RunError(PyroaeError, OSError):
    """A run directory that is missing, already taken, or not readable."""


class NonFiniteLossError(PyroaeError, ArithmeticError):
    """The loss became NaN or infinite; the last good state was kept.

    step: counted from 1. batch: the rows of the training data that it was of. site: the first one without a finite value or
    log-density, where one could be found.
    """

    def __init__(
        self, message: str, step: int = 0, batch: tuple[int, ...] = (), site: str | None = None
    ) -> None:
        super().__init__(message)
        self.step, self.batch, self.site = step, batch, site


class InterruptedRunError(PyroaeError):
    """A signal ended the work; what was done is saved. signal: its number."""

    def __init__(self, message: str, signal: int) -> None:
        super().__init__(message)
        self.signal = signal


def is_refusal(error: BaseException) -> bool:
    """Whether an error refuses what was given, and is none that a program raised of its own."""
    return isinstance(error, PyroaeError) and not isinstance(error, BrokenProgramError)


def own_error(error: BaseException) -> BaseException:
    """The error that a program raised of its own, where one is reported; else the error itself."""
    while isinstance(error, BrokenProgramError) and error.__cause__ is not None:
        error = error.__cause__
    return error


def unknown_name(kind: str, given: str, known: Iterable[str]) -> ConfigError:
    """An error for a name that is not known, with the nearest that is.

    >>> print(unknown_name("objective", "trace-elbow", ["trace-elbo", "analytic-kl"]))
    unknown objective 'trace-elbow': did you mean 'trace-elbo'? Known: trace-elbo, analytic-kl
    """
    names = list(known)
    near = get_close_matches(given, names, n=1, cutoff=0.5)
    hint = f" did you mean '{near[0]}'?" if near else ""
    return ConfigError(f"unknown {kind} '{given}':{hint} Known: {', '.join(names)}")
