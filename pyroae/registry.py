"""Names for choices: where the command line and YAML meet frozen instances such as `Laplace(rate=2.0)`."""

import inspect
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from pyroae.config import parse_yaml
from pyroae.errors import ConfigError, unknown_name


class Registry[T](Mapping[str, Callable[..., T]]):
    """A table of the choices of one kind, a user's own included.

    A choice is written `name` or `name:key=value,key=value`.

    >>> from dataclasses import dataclass
    >>> shapes: Registry[object] = Registry("shape")
    >>> @shapes.register("circle")
    ... @dataclass(frozen=True)
    ... class Circle:
    ...     radius: float = 1.0
    >>> shapes.parse("circle:radius=2")
    Circle(radius=2)
    >>> shapes.parse("circel")
    Traceback (most recent call last):
    pyroae.errors.ConfigError: unknown shape 'circel': did you mean 'circle'? Known: circle
    """

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._choices: dict[str, Callable[..., T]] = {}

    def register[C: Callable[..., Any]](self, name: str) -> Callable[[C], C]:
        """Enter a class (or a function that makes an instance) under `name`."""

        def enter(choice: C) -> C:
            if name in self._choices:
                raise ConfigError(f"the {self.kind} '{name}' is registered already")
            self._choices[name] = choice
            return choice

        return enter

    def __getitem__(self, name: str) -> Callable[..., T]:
        if name not in self._choices:
            raise unknown_name(self.kind, name, self._choices)
        return self._choices[name]

    def __contains__(self, name: object) -> bool:
        return name in self._choices

    def get(self, name: str, default: Any = None) -> Any:
        """The choice of that name, or `default`."""
        return self._choices.get(name, default)

    def __iter__(self) -> Iterator[str]:
        return iter(self._choices)

    def __len__(self) -> int:
        return len(self._choices)

    def parse(self, text: str, **given: Any) -> T:
        """The instance that `text` writes; `given` are further arguments, used where the choice takes them.

        Raises ConfigError for an unknown name or key, or a value of another type than the key's default.
        """
        name, _, rest = text.partition(":")
        choice = self[name.strip()]
        known = inspect.signature(choice).parameters
        arguments: dict[str, Any] = {key: value for key, value in given.items() if key in known}
        for pair in filter(None, re.split(r",(?![^\[]*\])", rest)):
            key, equals, value = (part.strip() for part in pair.partition("="))
            if not equals:
                raise ConfigError(
                    f"the {self.kind} '{text}' is not of the form name:key=value,key=value"
                )
            if key not in known:
                raise unknown_name(f"setting of the {self.kind} '{name}'", key, known)
            what = f"{self.kind} '{name}': {key}"
            arguments[key] = _checked(what, _value(what, value), known[key].default)
        for key, parameter in known.items():
            if (
                parameter.default is inspect.Parameter.empty
                and key not in arguments
                and parameter.kind.name.startswith("POS")
            ):
                raise ConfigError(
                    f"the {self.kind} '{name}' needs its {key}, as in {name}:{key}=VALUE"
                )
        return choice(**arguments)


def _value(what: str, text: str) -> Any:
    try:
        value = parse_yaml(text)
    except ConfigError as error:
        raise ConfigError(f"{what} is {error}") from None
    return tuple(value) if isinstance(value, list) else value


def _checked(what: str, value: Any, default: Any) -> Any:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    wanted = type(default)
    right = isinstance(value, wanted) and isinstance(value, bool) == (wanted is bool)
    right = number if wanted is float else wanted is type(None) or right
    if default is not inspect.Parameter.empty and not right:
        raise ConfigError(
            f"{what} takes {'a number' if wanted is float else wanted.__name__}, not {value!r}"
        )
    return value
