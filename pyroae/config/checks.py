"""Fields of configurations: their help texts and names, and the checks of their values."""

from collections.abc import Sequence
from dataclasses import field
from types import UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

from pyroae.errors import ConfigError, unknown_name


def option(
    default: Any, text: str, choices: tuple[str, ...] = (), *, kind: str = "", flag: str = ""
) -> Any:
    """Return a dataclass field that is an option of the command line too.

    Args:
        default: The default value.
        text: The help text.
        choices: The names that it accepts, for a closed set.
        kind: The kind of choice that it names, whose names the registries hold.
        flag: The option, where it is not `--` and the field's name.

    Returns:
        The field.
    """
    return field(
        default=default, metadata={"help": text, "choices": choices, "kind": kind, "flag": flag}
    )


def check_types(config: Any) -> None:
    """Refuse values of another type than their fields.

    Args:
        config: An instance of a dataclass.

    Raises:
        ConfigError: For the first such field.
    """
    for name, hint in get_type_hints(type(config)).items():
        if not _fits(getattr(config, name), hint):
            text = getattr(hint, "__name__", str(hint)).replace("NoneType", "None")
            raise ConfigError(f"{name} takes {text}, not {getattr(config, name)!r}")


def _fits(value: Any, hint: Any) -> bool:
    origin = get_origin(hint)
    if origin in (UnionType, Union):
        return any(_fits(value, option) for option in get_args(hint))
    if origin is tuple:
        return isinstance(value, tuple) and all(_fits(v, get_args(hint)[0]) for v in value)
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, origin or hint)


def at_least(name: str, value: int, least: int) -> None:
    """Refuse a number that is too small.

    Args:
        name: What it is, for the message.
        value: The number.
        least: The smallest that is accepted.

    Raises:
        ConfigError: If it is smaller.
    """
    if value < least:
        raise ConfigError(f"{name} must be at least {least}, not {value}")


def different_numbers(values: Any, least: int) -> bool:
    """Tell whether values are several different whole numbers, or one.

    Args:
        values: Any value.
        least: The smallest number that is accepted.

    Returns:
        Whether they are; False for an empty sequence, and for what is none.

    >>> [different_numbers(values, 0) for values in ((0, 2), range(3), (2, 2), (), 2)]
    [True, True, False, False, False]
    """
    return (
        isinstance(values, Sequence)
        and not isinstance(values, str)
        and len(values) > 0
        and all(isinstance(value, int) and value >= least for value in values)
        and len(set(values)) == len(values)
    )


def as_list(values: Any) -> Any:
    """Return a sequence as a list, for messages.

    Args:
        values: Any value.

    Returns:
        A list; what is no sequence, or a text, unchanged.

    >>> as_list((1, 2)), as_list(3)
    ([1, 2], 3)
    """
    return list(values) if isinstance(values, Sequence) and not isinstance(values, str) else values


def at_least_one(name: str, value: int) -> None:
    """Refuse a count below 1.

    Args:
        name: What is counted, for the message.
        value: The count.

    Raises:
        ConfigError: If it is below 1.
    """
    at_least(name, value, 1)


def one_of(kind: str, value: str, names: tuple[str, ...]) -> None:
    """Refuse a name that is not in a closed set.

    Args:
        kind: What it names, for the message.
        value: The name.
        names: The set.

    Raises:
        ConfigError: With the nearest name of the set.
    """
    if value not in names:
        raise unknown_name(kind, value, names)


def check_compile(value: bool | str) -> None:
    """Refuse what a setting `compile` does not take.

    Args:
        value: True, False or "auto".

    Raises:
        ConfigError: For anything else.
    """
    if not isinstance(value, bool) and value != "auto":
        raise ConfigError(f"compile takes auto, true or false, not '{value}'")
