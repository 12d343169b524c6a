"""Programs of a user by name: MODULE:NAME, and what may stand there."""

from types import ModuleType
from typing import Any

from torch import nn

from pyroae.errors import ConfigError, PyroaeError, unknown_name
from pyroae.names import executed_again, import_own
from pyroae.programs.pair import Pair, System
from pyroae.runtime.settings_text import called, program_parts


def program_named(text: str) -> nn.Module:
    """Return a new module of the model and the guide that a text names.

    Args:
        text: `MODULE:NAME`, where MODULE is a module's name or a file's path, and NAME is a
            function or class that returns a pair (model, guide), or an object with `model` and
            `guide`; settings for it follow as `MODULE:NAME:key=value`. `MODULE` alone is a module
            with a `model` and a `guide`, which is executed again, so that every training has
            networks of its own.

    Returns:
        A module with `model` and `guide`: what was returned, or a Pair. Initial weights are drawn
        from torch's generator.

    Raises:
        ConfigError: If there is no such module or name, or it is no program.

    >>> program_named("math:floor")
    Traceback (most recent call last):
    pyroae.errors.ConfigError: the program 'math:floor' needs its x, as in math:floor:x=VALUE
    """
    name, attribute, settings = program_parts(text)
    module = import_own(name)
    found = _attribute(module, attribute)
    if callable(found) and (isinstance(found, type) or not _is_program(found)):
        found = _made(text, name, attribute, found, settings)
    else:
        found = _attribute(executed_again(module), attribute)
    return _module_of(text, found)


def _attribute(module: ModuleType, attribute: str) -> Any:
    """The object of that name in a module; the module itself for no name."""
    found: Any = module
    for part in attribute.split(".") if attribute else ():
        if not hasattr(found, part):
            names = [name for name in vars(module) if not name.startswith("_")]
            raise unknown_name(f"name in the module '{module.__name__}'", attribute, names)
        found = getattr(found, part)
    return found


def _is_program(found: Any) -> bool:
    return callable(getattr(found, "model", None)) and callable(getattr(found, "guide", None))


def _made(text: str, module: str, attribute: str, make: Any, settings: str) -> Any:
    try:
        return called("program", f"{module}:{attribute}", make, settings)
    except PyroaeError:
        raise
    except Exception as error:  # whatever the user's function raises
        words = " ".join(str(error).split())
        raise ConfigError(
            f"the program '{text}' cannot be made: {type(error).__name__}: {words}"
        ) from error


def _module_of(text: str, found: Any) -> nn.Module:
    if isinstance(found, tuple) and len(found) == 2:
        return Pair(*found)
    if isinstance(found, nn.Module) and isinstance(found, System):
        return found
    if _is_program(found):
        return Pair(found.model, found.guide)
    raise ConfigError(
        f"the program '{text}' is a {type(found).__name__}: it must be a pair (model, guide), a "
        "function that returns one, or an object or module with a model and a guide"
    )
