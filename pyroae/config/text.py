"""How settings are written: YAML, `name:key=value`, BOUND+GRADIENT, and lists of objectives."""

import inspect
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import yaml

from pyroae.errors import ConfigError, unknown_name
from pyroae.names import check_name

RECORD = ("fingerprint", "shape", "versions")
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
        Names and values; the record of a run (fingerprint, shape, versions) is left out.

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
    for pair in filter(None, re.split(r",(?![^\[]*\])", settings)):
        key, equals, value = (part.strip() for part in pair.partition("="))
        if not equals:
            raise ConfigError(
                f"the {kind} '{name}:{settings}' is not of the form name:key=value,key=value"
            )
        if key not in parameters:
            raise unknown_name(f"setting of the {kind} '{name}'", key, parameters)
        what = f"{kind} '{name}': {key}"
        arguments[key] = _checked(what, _value(what, value), parameters[key].default)
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


def _checked(what: str, value: Any, default: Any) -> Any:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    kind = type(default)
    right = isinstance(value, kind) and isinstance(value, bool) == (kind is bool)
    right = number if kind is float else kind is type(None) or right
    if default is not inspect.Parameter.empty and not right:
        raise ConfigError(
            f"{what} takes {'a number' if kind is float else kind.__name__}, not {value!r}"
        )
    return value


def pair_of(objective: str) -> tuple[str, str] | None:
    """Split BOUND+GRADIENT.

    Args:
        objective: The text of an objective.

    Returns:
        The texts of bound and gradient; None for the name of an objective.

    >>> pair_of("renyi:alpha=-1e+1+score:baseline=none"), pair_of("renyi:alpha=1e+1")
    (('renyi:alpha=-1e+1', 'score:baseline=none'), None)
    """
    found = re.match(r"(.*?)\+([A-Za-z].*)$", objective)
    return (found[1], found[2]) if found else None


def objectives_in(text: str) -> tuple[str, ...]:
    """Split a list of objectives; commas also stand between the settings of one.

    Args:
        text: What `--objectives` takes.

    Returns:
        The text of each objective.

    >>> objectives_in("iwae,renyi:alpha=0.5,num_particles=4,jvi:order=2+doubly-reparameterized")
    ('iwae', 'renyi:alpha=0.5,num_particles=4', 'jvi:order=2+doubly-reparameterized')
    """
    return tuple(part.strip() for part in re.split(r",(?=\s*[A-Za-z][\w-]*\s*(?:[:,+]|$))", text))


def check_objective_names(objective: str) -> None:
    """Refuse an objective, bound or gradient that does not exist.

    Args:
        objective: A name with its settings, or BOUND+GRADIENT.

    Raises:
        ConfigError: With the nearest known name.
    """
    pair = pair_of(objective)
    if pair is None:
        check_name("objective", objective)
        return
    check_name("bound", pair[0])
    check_name("gradient", pair[1])


def compared(names: Sequence[str], ks: Sequence[int]) -> None:
    """Refuse objectives that cannot be compared at each K.

    Args:
        names: Objectives.
        ks: Numbers of particles.

    Raises:
        ConfigError: If one does not exist or has a K of its own, or a K is below 1.
    """
    for name in names:
        check_objective_names(name)
        if "num_particles=" in name.replace(" ", ""):
            raise ConfigError(f"--num-particles gives every K: leave num_particles out of '{name}'")
    if not ks or min(ks) < 1:
        raise ConfigError(f"num_particles must be at least 1, not {min(ks, default='none')}")
