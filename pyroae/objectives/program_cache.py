"""Results of trial runs, kept for as long as the programs that they are about stay the same."""

from collections.abc import Callable, Hashable
from inspect import ismethod
from typing import Any, TypeVar
from weakref import WeakMethod, ref

from pyroae.programs.sites import Program

Result = TypeVar("Result")


class ProgramCache:
    """One result of each name, with the programs that it is about.

    It holds weak references to the programs, and is empty where it is copied or pickled.

    >>> cache, model = ProgramCache(), lambda: None
    >>> [cache.get("number", (model,), lambda: number) for number in (1, 2)]
    [1, 1]
    >>> cache.get("number", (print,), lambda: 2)
    2
    """

    def __init__(self) -> None:
        self._results: dict[Hashable, tuple[list[Any], Any]] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {"_results": {}}

    def get(
        self, name: Hashable, programs: tuple[Program, ...], compute: Callable[[], Result]
    ) -> Result:
        """Return a result for some programs, which is computed where it is not known.

        Args:
            name: The name of the result.
            programs: The programs that it is about.
            compute: Computes it; nothing is kept where it raises.

        Returns:
            The result.
        """
        known = self._results.get(name)
        if known is None or [program() for program in known[0]] != list(programs):
            known = [weak_reference(program) for program in programs], compute()
            self._results[name] = known
        result: Result = known[1]
        return result

    def latest(self, name: Hashable) -> Any:
        """Return the result that is known, whatever the programs.

        Args:
            name: The name of the result.

        Returns:
            The result; None where there is none.
        """
        return self._results[name][1] if name in self._results else None


def weak_reference(program: Program) -> Any:
    """Return a weak reference to a program.

    Args:
        program: A model or a guide: a function, a bound method or a callable object.

    Returns:
        A callable that returns the program, or None once it is deleted. For an object that takes no
            weak reference it always returns None.
    """
    try:
        return WeakMethod(program) if ismethod(program) else ref(program)
    except TypeError:
        return lambda: None
