"""Names for choices: where the command line and YAML meet instances such as `Laplace(rate=2.0)`."""

from collections.abc import Callable, Iterator, Mapping
from textwrap import wrap
from typing import Any

from pyroae.errors import ConfigError, unknown_name
from pyroae.names import REGISTRIES, is_known, is_name, is_repeated
from pyroae.runtime.settings_text import called
from pyroae.runtime.short_repr import Overview, Shown


class Registry[T](Shown, Mapping[str, Callable[..., T]]):
    """A table of the choices of one kind, a user's own included.

    A choice is written `name` or `name:key=value,key=value`. Where a name is missing, the plugins
    of installed packages are loaded once.

    Args:
        kind: What the choices are, for messages: `prior`, `objective`, `dataset`, ...

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
        REGISTRIES.setdefault(kind, self)

    def _overview(self) -> Overview:
        lines = wrap(", ".join(self), 80, break_on_hyphens=False)
        rows = [("" if number else "names", line) for number, line in enumerate(lines)]
        return Overview([f"{len(self)} choices of {self.kind}"], rows)

    def register[C: Callable[..., Any]](self, name: str) -> Callable[[C], C]:
        """Return a decorator that enters a class, or a function that makes an instance.

        Args:
            name: Its name: letters, digits, `-` and `_`, a letter first.

        Returns:
            The decorator, which returns the class or function unchanged.

        Raises:
            ConfigError: If the name is taken, or could not be written on the command line.
        """

        def enter(choice: C) -> C:
            if not is_name(name):
                raise ConfigError(
                    f"'{name}' cannot be the name of a {self.kind}: a name has letters, digits, - "
                    "and _, and starts with a letter"
                )
            if name not in self._choices:
                self._choices[name] = choice
            elif not is_repeated.get():
                raise ConfigError(f"the {self.kind} '{name}' is registered already")
            return choice

        return enter

    def __getitem__(self, name: str) -> Callable[..., T]:
        if name not in self:
            raise unknown_name(self.kind, name, self._choices)
        return self._choices[name]

    def __contains__(self, name: object) -> bool:
        return name in self._choices or (
            REGISTRIES.get(self.kind) is self
            and isinstance(name, str)
            and is_known(self.kind, name)
            and name in self._choices
        )

    def get(self, name: str, default: Any = None) -> Any:
        """Return the choice of that name.

        Args:
            name: The name.
            default: What is returned where there is none.

        Returns:
            The class or function that was registered, or `default`.
        """
        return self._choices[name] if name in self else default

    def __iter__(self) -> Iterator[str]:
        return iter(self._choices)

    def __len__(self) -> int:
        return len(self._choices)

    def parse(self, text: str, **given: Any) -> T:
        """Return the instance that a text writes.

        Args:
            text: `name` or `name:key=value,key=value`; values are YAML.
            **given: Further arguments, used where the choice takes them and the text does not.

        Returns:
            The instance.

        Raises:
            ConfigError: For an unknown name or key, a missing argument, and a value of another type
                than the key's default.
        """
        name, _, settings = text.partition(":")
        name = name.strip()
        return called(self.kind, name, self[name], settings, **given)
