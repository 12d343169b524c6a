"""Read the variants of a study: settings that its entries differ in."""

from collections.abc import Mapping, Sequence
from dataclasses import fields
from types import UnionType
from typing import Any, get_args, get_origin, get_type_hints

from pyroae.comparison.tuning import combinations, name_of, named
from pyroae.config import RunConfig, parse_yaml
from pyroae.config.checks import as_list
from pyroae.errors import ConfigError, unknown_name

Variants = dict[str, dict[str, Any]]
"""The settings of each variant, by its name."""


def variants_of(vary: Any) -> Variants:
    """Return the variants of what `--vary` or `vary:` in YAML says.

    Args:
        vary: texts `name=value,value`, whose combinations are all taken; a mapping from names to
            lists of values, likewise; or a list of mappings, one for each variant.

    Returns:
        The settings of each variant. Values of a setting that is itself a list are separated by
        semicolons.

    Raises:
        ConfigError: for a name that is no setting, and for values or variants given twice.

    >>> list(variants_of(["posterior=diagonal,exact", "hidden=8;8,8"]))
    ['posterior=diagonal,hidden=8', 'posterior=diagonal,hidden=8x8', ...]
    >>> list(variants_of(["prior=laplace:rate=2,laplace:rate=3"]))
    ['prior=laplace:rate=2', 'prior=laplace:rate=3']
    """
    rows = _rows(vary)
    if not rows:
        raise ConfigError("vary has no values: give at least one for each setting, or leave it out")
    return named(rows)


def _refuse_twice(what: str, names: Sequence[str]) -> None:
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise ConfigError(f"the {what} '{twice}' is given twice")


def _rows(vary: Any) -> list[dict[str, Any]]:
    if isinstance(vary, Mapping):
        return _product({name: tuple(_as_list(values)) for name, values in vary.items()})
    if isinstance(vary, Sequence) and not isinstance(vary, str):
        if all(isinstance(one, Mapping) for one in vary):
            return [{_known(n): _value(v) for n, v in one.items()} for one in vary]
        if all(isinstance(one, str) for one in vary):
            parsed = [_parsed(one) for one in vary]
            _refuse_twice("setting", [_known(name) for name, _ in parsed])
            return _product(dict(parsed))
    raise ConfigError(
        "vary takes name=value,value, a mapping of names to lists of values, or a list of mappings,"
        f" not {vary!r}"
    )


def _product(choices: Mapping[str, tuple[Any, ...]]) -> list[dict[str, Any]]:
    known = {_known(name): tuple(map(_value, values)) for name, values in choices.items()}
    for name, values in known.items():
        _refuse_twice("variant", [name_of({name: value}) for value in values])
    return list(combinations(known).values())


def _parsed(text: str) -> tuple[str, tuple[Any, ...]]:
    name, equals, values = text.partition("=")
    if not equals or not values:
        raise ConfigError(f"--vary takes name=value,value, not '{text}'")
    parts = _alternatives(_known(name), values)
    if any(part in ("", "[]") for part in parts):
        raise ConfigError(f"--vary {text} has an empty value: write every value")
    return name, tuple(map(parse_yaml, parts))


def _alternatives(name: str, text: str) -> list[str]:
    """The values in a text; a comma also stands between the settings of a choice."""
    if is_list(name) or (may_be_list(name) and ";" in text):
        return [f"[{part.strip()}]" for part in text.split(";")]
    parts: list[str] = []
    for part in text.split(","):
        if parts and "=" in part and ":" not in part.partition("=")[0] and ":" in parts[-1]:
            parts[-1] += f",{part}"
        else:
            parts.append(part.strip())
    return parts


def _known(name: str) -> str:
    key = str(name).replace("-", "_")
    names = [field.name for field in fields(RunConfig)]
    if key not in names:
        raise unknown_name("setting", str(name), names)
    return key


def is_list(name: str) -> bool:
    """Whether the value of a setting is a list.

    Args:
        name: the name of a setting of `RunConfig`.

    Returns:
        True for settings such as `hidden`.
    """
    return get_origin(_kinds(name)[0]) is tuple


def may_be_list(name: str) -> bool:
    """Whether the value of a setting is a list or something else.

    Args:
        name: the name of a setting of `RunConfig`.

    Returns:
        True for `latent`, a number or the sizes of several layers, and for settings such as
            `hidden`.
    """
    return any(get_origin(kind) is tuple for kind in _kinds(name))


def is_number(name: str) -> bool:
    """Whether the value of a setting is a number.

    Args:
        name: the name of a setting of `RunConfig`.

    Returns:
        True for settings such as `lr`.
    """
    return _kinds(name)[0] in (int, float)


def _kinds(name: str) -> list[Any]:
    """The types of a setting's values other than None."""
    hint = get_type_hints(RunConfig)[name]
    kinds = get_args(hint) if get_origin(hint) is UnionType else (hint,)
    return [kind for kind in kinds if kind is not type(None)]


def _value(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _as_list(values: Any) -> list[Any]:
    return list(values) if isinstance(values, list | tuple) else [values]


def split_grid(settings: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, tuple[Any, ...]]]:
    """Split settings into those with one value, and those with several, which are tuned.

    Args:
        settings: settings by name; a list of numbers where one is expected is a grid. A list for
            `latent` is no grid: it is the sizes of several layers.

    Returns:
        The settings, and the values of each tuned setting.

    Raises:
        ConfigError: for a value that is given twice.
    """
    single: dict[str, Any] = {}
    grid: dict[str, tuple[Any, ...]] = {}
    names = {field.name for field in fields(RunConfig)}
    for name, value in settings.items():
        key = str(name).replace("-", "_")
        if isinstance(value, list | tuple) and key in names and _takes_grid(key):
            grid[key] = tuple(value)
        else:
            single[name] = value
    check_grid(grid)
    return single, grid


def _takes_grid(name: str) -> bool:
    """Whether a list is several values of a setting, not one."""
    return is_number(name) and not may_be_list(name)


def check_grid(grid: Mapping[str, Any]) -> None:
    """Refuse tuned settings whose values are not several different numbers.

    Args:
        grid: The values of each tuned setting.

    Raises:
        ConfigError: For values that are no list or no numbers, for a value that is given twice, and
            for none.
    """
    for name, values in grid.items():
        listed = isinstance(values, list | tuple)
        numbers = listed and is_number(name) and all(isinstance(v, int | float) for v in values)
        if not (numbers and 0 < len(values) == len(set(values))):
            raise ConfigError(
                f"the values of {name} are different numbers, not {as_list(values)!r}"
            )
