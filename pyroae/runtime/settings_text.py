"""How a setting is written: YAML, and calls of the form name:key=value."""

import inspect
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import yaml

from pyroae.errors import ConfigError, unknown_name

OUTSIDE = r",(?![^\[]*\])(?![^(]*\))"
"""Commas between settings: those outside of brackets and parentheses."""


RECORD = (
    *("fingerprint", "shape", "sizes", "condition_names", "columns", "categories"),
    "versions",
)
"""What config.yaml of a run holds beside its settings."""


class _Loader(yaml.SafeLoader):
    """YAML with the numbers that people write: in YAML 1.1 `1e-3` would be text."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"),
    list("-+0123456789."),
)


def parse_yaml(text: str) -> Any:
    """Return the value that a YAML text writes.

    Args:
        text: The text.

    Returns:
        Numbers, words, lists and mappings.

    Raises:
        ConfigError: If it is no YAML.

    >>> parse_yaml("1e-3"), parse_yaml("[3, 4]"), parse_yaml("true")
    (0.001, [3, 4], True)
    """
    try:
        return yaml.load(text, _Loader)
    except yaml.YAMLError as error:
        raise ConfigError(f"not YAML: {' '.join(str(error).split())}") from None


def read_yaml(path: str | Path) -> dict[str, Any]:
    """Read the mapping in a YAML file.

    Args:
        path: The file.

    Returns:
        Names and values; the record of a run (fingerprint, shape, sizes, versions) is left out.

    Raises:
        ConfigError: If it cannot be read, or holds no mapping.
    """
    try:
        content = parse_yaml(Path(path).read_text())
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"cannot read the configuration {path}: {getattr(error, 'strerror', None) or error}"
        ) from None
    except ConfigError as error:
        raise ConfigError(f"the configuration {path} is {error}") from None
    if not isinstance(content, dict):
        raise ConfigError(f"the configuration {path} holds no settings of the form 'name: value'")
    return {k: v for k, v in content.items() if k not in RECORD}


def called[T](kind: str, name: str, choice: Callable[..., T], settings: str, **offered: Any) -> T:
    """Call a choice with the settings that a text writes.

    Args:
        kind: What the choice is, for messages.
        name: Its name, for messages.
        choice: A class or function that makes an instance.
        settings: `key=value,key=value`; values are YAML, and lists become tuples.
        **offered: Further arguments, used where the choice takes them and `settings` does not.

    Returns:
        The instance.

    Raises:
        ConfigError: For an unknown key, a value of another type than the key's default, and a
            missing argument.

    >>> called("shape", "circle", lambda radius=1.0: radius, "radius=2")
    2
    """
    parameters = inspect.signature(choice).parameters
    arguments: dict[str, Any] = {k: value for k, value in offered.items() if k in parameters}
    for pair in filter(None, re.split(OUTSIDE, settings)):
        key, equals, value = (part.strip() for part in pair.partition("="))
        if not equals:
            raise ConfigError(
                f"the {kind} '{name}:{settings}' is not of the form name:key=value,key=value"
            )
        if key not in parameters:
            raise unknown_name(f"setting of the {kind} '{name}'", key, parameters)
        what = f"{kind} '{name}': {key}"
        arguments[key] = _checked(what, _value(what, value), parameters[key])
    for key, parameter in parameters.items():
        is_missing = parameter.default is inspect.Parameter.empty and key not in arguments
        if is_missing and parameter.kind.name.startswith("POS"):
            raise ConfigError(f"the {kind} '{name}' needs its {key}, as in {name}:{key}=VALUE")
    return choice(**arguments)


def _value(what: str, text: str) -> Any:
    try:
        value = parse_yaml(text)
    except ConfigError as error:
        raise ConfigError(f"{what} is {error}") from None
    return tuple(value) if isinstance(value, list) else value


def _checked(what: str, value: Any, parameter: inspect.Parameter) -> Any:
    default = parameter.default
    if isinstance(value, str) and str in get_args(parameter.annotation):
        return value  # a number or a word: the choice knows its words
    number = isinstance(value, int | float) and not isinstance(value, bool)
    kind = float if float in get_args(parameter.annotation) else type(default)
    right = isinstance(value, kind) and isinstance(value, bool) == (kind is bool)
    right = number if kind is float else kind is type(None) or right
    if default is not inspect.Parameter.empty and not right:
        raise ConfigError(
            f"{what} takes {'a number' if kind is float else kind.__name__}, not {value!r}"
        )
    return value


def program_parts(text: str) -> tuple[str, str, str]:
    """Split the text of a program.

    Args:
        text: MODULE, MODULE:NAME or MODULE:NAME:key=value, where MODULE may be a path of a file.

    Returns:
        The module, the name in it, and the settings; the last two are empty where not written.

    >>> program_parts("models/own.py:build:latent=3"), program_parts("my_package.cvae")
    (('models/own.py', 'build', 'latent=3'), ('my_package.cvae', '', ''))
    """
    module, _, rest = text.partition(":")
    name, _, settings = rest.partition(":")
    return module.strip(), name.strip(), settings
