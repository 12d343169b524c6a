"""Exceptions: each message is one sentence that says what was given and what is accepted."""

from collections.abc import Iterable
from difflib import get_close_matches


class PyroaeError(Exception):
    """Bad input of any kind; the command line prints its sentence and exits with status 2."""


class ConfigError(PyroaeError, ValueError):
    """A setting, a name or a combination of choices that is not accepted."""


class DataError(PyroaeError, ValueError):
    """Data that cannot be read, or that the chosen likelihood has no density for."""


class UnknownScaleError(DataError):
    """Stored whole numbers of which nothing says whether they are grey levels or counts."""


class ProgramError(PyroaeError, ValueError):
    """A Pyro program that breaks the contract of an objective; the message names the site."""


class BrokenProgramError(ProgramError):
    """A program that raised an error of its own, which is the cause of this one."""


class UndefinedLikelihoodError(PyroaeError, ValueError):
    """log p(x) does not exist for this system, or its guide cannot be a proposal."""


class RunError(PyroaeError, OSError):
    """A run directory that is missing, already taken, or not readable."""


class NonFiniteLossError(PyroaeError, ArithmeticError):
    """The loss became NaN or infinite; the last good state was kept.

    Attributes:
        step: The step, counted from 1.
        batch: The rows of the training data in its batch.
        site: The first site without a finite value or log-density, where one could be found.
    """

    def __init__(
        self, message: str, step: int = 0, batch: tuple[int, ...] = (), site: str | None = None
    ) -> None:
        super().__init__(message)
        self.step, self.batch, self.site = step, batch, site


class InterruptedRunError(PyroaeError):
    """A signal ended the work; what was done is saved.

    Attributes:
        signal: The number of the signal.
    """

    def __init__(self, message: str, signal: int) -> None:
        super().__init__(message)
        self.signal = signal


def is_refusal(error: BaseException) -> bool:
    """Return whether an error refuses its input, and is not one that a program raised itself.

    Args:
        error: The error.

    Returns:
        False for errors of other kinds too.

    >>> is_refusal(ConfigError("no")), is_refusal(BrokenProgramError("no"))
    (True, False)
    """
    return isinstance(error, PyroaeError) and not isinstance(error, BrokenProgramError)


def own_error(error: BaseException) -> BaseException:
    """Return the error that a program raised itself, where one is reported.

    Args:
        error: The error.

    Returns:
        The cause of a BrokenProgramError, else the error itself.

    >>> own_error(ConfigError("no"))
    ConfigError('no')
    """
    while isinstance(error, BrokenProgramError) and error.__cause__ is not None:
        error = error.__cause__
    return error


def unknown_name(kind: str, given: str, known: Iterable[str]) -> ConfigError:
    """Return an error for an unknown name, with the nearest known one.

    Args:
        kind: What the name is of, for the message.
        given: The name.
        known: The known names.

    Returns:
        The error, to be raised.

    >>> print(unknown_name("objective", "trace-elbow", ["trace-elbo", "analytic-kl"]))
    unknown objective 'trace-elbow': did you mean 'trace-elbo'? Known: trace-elbo, analytic-kl
    """
    names = list(known)
    near = get_close_matches(given, names, n=1, cutoff=0.5)
    hint = f": did you mean '{near[0]}'? Known: " if near else "; known: "
    return ConfigError(f"unknown {kind} '{given}'{hint}{', '.join(names)}")
