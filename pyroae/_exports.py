"""Names of a package that are imported at their first use (PEP 562)."""

import sys
from collections.abc import Callable, Iterable, Mapping
from importlib import import_module


def lazy_exports(
    package: str, homes: Mapping[str, Iterable[str]], modules: Iterable[str] = ()
) -> tuple[Callable[[str], object], Callable[[], list[str]]]:
    """Return `__getattr__` and `__dir__` of a package whose names are imported at their first use.

    A command then imports only the modules that it uses.

    Args:
        package: The name of the package.
        homes: The names that it exports, by the module that defines them.
        modules: The names of modules of the package that it exports.

    Returns:
        The functions `__getattr__` and `__dir__` of the package.

    >>> find, _ = lazy_exports("json", {"json.decoder": ["JSONDecoder"]})
    >>> find("JSONDecoder")
    <class 'json.decoder.JSONDecoder'>
    >>> find("jsn")
    Traceback (most recent call last):
    AttributeError: module 'json' has no attribute 'jsn'
    """
    home_of = {name: home for home, names in homes.items() for name in names}

    def find(name: str) -> object:
        if name in modules:
            return import_module(f"{package}.{name}")
        if name not in home_of:
            raise AttributeError(f"module '{package}' has no attribute '{name}'")
        value = getattr(import_module(home_of[name]), name)
        setattr(sys.modules[package], name, value)
        return value

    def names() -> list[str]:
        return sorted({*vars(sys.modules[package]), *home_of, *modules})

    return find, names
