"""Names of a package that are imported at their first use (PEP 562)."""

import ast
import sys
from collections.abc import Callable
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from pkgutil import get_data


def lazy_exports(package: str) -> tuple[Callable[[str], object], Callable[[], list[str]]]:
    """Return `__getattr__` and `__dir__` of a package whose names are imported at their first use.

    A command then imports only the modules that it uses. The names are those that the package
    imports under `if TYPE_CHECKING:`, where type checkers find them too. Modules of the package are
    found as well, as after `import pyroae.evaluation`.

    Args:
        package: The name of the package.

    Returns:
        The functions `__getattr__` and `__dir__` of the package.

    >>> import pyroae.runs
    >>> find, _ = lazy_exports("pyroae.runs")
    >>> find("Run")
    <class 'pyroae.runs.run.Run'>
    >>> find("Rum")
    Traceback (most recent call last):
    AttributeError: module 'pyroae.runs' has no attribute 'Rum'
    """

    def find(name: str) -> object:
        home = _homes(package).get(name)
        if home == package or (home is None and _is_module(package, name)):
            return import_module(f"{package}.{name}")
        if home is None:
            raise AttributeError(f"module '{package}' has no attribute '{name}'")
        value = getattr(import_module(home), name)
        setattr(sys.modules[package], name, value)
        return value

    def names() -> list[str]:
        return sorted({*vars(sys.modules[package]), *_homes(package)})

    return find, names


def _is_module(package: str, name: str) -> bool:
    is_public = name.isidentifier() and not name.startswith("_")
    return is_public and find_spec(f"{package}.{name}") is not None


@cache
def _homes(package: str) -> dict[str, str]:
    """The module of each name that a package imports under `if TYPE_CHECKING:`."""
    source = ast.parse(get_data(package, "__init__.py") or b"")
    blocks = [
        node.body
        for node in source.body
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
    ]
    imports = [node for block in blocks for node in block if isinstance(node, ast.ImportFrom)]
    return {alias.name: node.module or package for node in imports for alias in node.names}
