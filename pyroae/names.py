"""Names of choices: those of the package, and those that a user's own modules register.

Nothing here imports torch. `pyroae._names` is the generated table of the package's own names, by
which `pyroae --help` answers at once; a test holds it equal to the registries.
"""

import re
import sys
import traceback
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from importlib import import_module, util
from importlib.metadata import entry_points
from pathlib import Path
from tempfile import mkdtemp
from types import ModuleType
from typing import Any

from pyroae._names import NAMES
from pyroae.errors import ConfigError, PyroaeError, unknown_name

PLUGINS = "pyroae.plugins"
"""The entry-point group of installed packages whose modules register choices."""


REGISTRIES: dict[str, Any] = {}
"""The registry of each kind of choice, once the module that makes it is imported."""


is_repeated: ContextVar[bool] = ContextVar("is_repeated", default=False)
"""Whether a module is executed a second time: names that it registers again are left alone."""


_modules: dict[str, ModuleType] = {}
"""Modules imported for their names, by what was given and by their own name."""


_plugins: list[str] = []
"""The groups of entry points that were loaded; each is loaded once, when a name is not known."""


def names_of(kind: str) -> tuple[str, ...]:
    """Return the known names of one kind of choice, a user's own included.

    Args:
        kind: The kind, as registries have it: `prior`, `objective`, `dataset`, ...

    Returns:
        The names, those of the package first.

    >>> "vae" in names_of("system"), names_of("nothing")
    (True, ())
    """
    return tuple(dict.fromkeys((*NAMES.get(kind, ()), *REGISTRIES.get(kind, ()))))


def is_known(kind: str, name: str) -> bool:
    """Return whether a choice of that kind has the name; plugins are loaded to find out.

    Args:
        kind: The kind of the choice.
        name: The name, without settings.

    Returns:
        Whether it can be used.

    Raises:
        ConfigError: If a plugin cannot be loaded.

    >>> is_known("prior", "laplace"), is_known("prior", "digits.csv")
    (True, False)
    """
    if name not in names_of(kind) and is_name(name):
        load_plugins()
    return name in names_of(kind)


def is_name(text: str) -> bool:
    """Return whether a text has the form of a name: letters, digits, `-` and `_`.

    Args:
        text: Any text.

    Returns:
        Whether it starts with a letter and has no other characters, such as those of a path.

    >>> is_name("student-t"), is_name("data/x.npy")
    (True, False)
    """
    return text[:1].isalpha() and text.isascii() and text.replace("-", "_").isidentifier()


def check_name(kind: str, text: str) -> None:
    """Refuse a name that no choice of that kind has.

    Args:
        kind: The kind of the choice.
        text: The name, alone or with settings, as in `laplace:rate=2`.

    Raises:
        ConfigError: With the nearest known name.

    >>> check_name("activation", "rely")
    Traceback (most recent call last):
    pyroae.errors.ConfigError: unknown activation 'rely': did you mean 'relu'? Known: tanh, ...
    """
    name = text.partition(":")[0].strip()
    if not is_known(kind, name):
        raise unknown_name(kind, name, names_of(kind))


def import_own(given: str) -> ModuleType:
    """Import a user's module, so that the choices that it registers have names.

    The folder of a file, or the working directory for a name, is added at the end of `sys.path`.
    A file that was moved is found again where a module of its name was imported before.

    Args:
        given: The name of a module, or the path of a `.py` file. It is executed once.

    Returns:
        The module.

    Raises:
        ConfigError: If it is missing, raises an error of its own, or registers a taken name; the
            names that it registered before are then removed again.
    """
    if given in _modules:
        return _modules[given]
    path = Path(given).absolute() if given.endswith(".py") else None
    name = given if path is None else path.stem
    if path is not None and not path.is_file():
        if name in _modules:
            return _modules[name]
        raise ConfigError(
            f"cannot import '{given}': there is no such file; give its place by --import"
        )
    _reach(Path.cwd() if path is None else path.parent)
    with _all_or_nothing(given):
        module = import_module(given) if path is None else _from_file(path)
    _modules[given] = _modules[name] = module
    return module


def import_all(given: Iterable[str]) -> None:
    """Import modules of a user, in their order.

    Args:
        given: Names of modules and paths of files, as of `import_own`.

    Raises:
        ConfigError: If one of them cannot be imported.
    """
    for one in given:
        import_own(one)


def located(given: str) -> str:
    """Return a module or program as it is recorded: the path of a file is made absolute.

    Args:
        given: A module's name or a file's path, alone or with `:NAME`.

    Returns:
        The same text, independent of the working directory.

    >>> located("my_module:build"), located("/tmp/../tmp/own.py:build")
    ('my_module:build', '/tmp/own.py:build')
    """
    found = re.fullmatch(r"(.+?\.py)(:.*)?", given)
    return f"{Path(found[1]).expanduser().resolve()}{found[2] or ''}" if found else given


def load_plugins() -> None:
    """Load the entry points `pyroae.plugins` of installed packages, once.

    Raises:
        ConfigError: If one of them cannot be loaded, or registers a taken name.
    """
    if _plugins:
        return
    _plugins.append(PLUGINS)
    for point in entry_points(group=PLUGINS):
        with _all_or_nothing(point.value, f"load the plugin '{point.name}',"):
            point.load()


def executed_again(module: ModuleType) -> ModuleType:
    """Execute a module a second time, apart from the first: its networks have new weights.

    Args:
        module: A module that was imported; a script that is run itself is returned unchanged.

    Returns:
        The new module. What it registers is left alone, as the names are taken by the first.
    """
    spec = module.__spec__
    if spec is None or spec.loader is None:
        return module
    again, token = util.module_from_spec(spec), is_repeated.set(True)
    try:
        with _all_or_nothing(module.__name__):
            spec.loader.exec_module(again)
    finally:
        is_repeated.reset(token)
    return again


def sources_of(given: Iterable[str]) -> list[tuple[str, str, str]]:
    """Return the source of modules that are single files, to be sent to another machine.

    Args:
        given: Modules that were imported by `import_own`; parts of packages are left out, as they
            are installed where they are used.

    Returns:
        Of each: what was given, the module's name, and its source.
    """
    modules = {one: import_own(one) for one in given}
    return [
        (one, module.__name__, Path(module.__file__).read_text(encoding="utf-8"))
        for one, module in modules.items()
        if module.__file__ and module.__file__.endswith(".py") and not module.__package__
    ]


def import_sources(sources: Iterable[tuple[str, str, str]]) -> None:
    """Import modules from their source, as `sources_of` gives it, unless they are imported already.

    Args:
        sources: Of each module: what was given, its name, and its source.

    Raises:
        ConfigError: If one cannot be imported here.
    """
    for given, name, source in sources:
        if given in _modules or name in sys.modules:
            _modules[given] = _modules.get(given, sys.modules[name])
            continue
        if given.endswith(".py"):
            _reach(Path(given).parent)
        path = Path(mkdtemp(prefix="pyroae-")) / f"{name}.py"
        path.write_text(source, encoding="utf-8")
        with _all_or_nothing(given):
            _modules[given] = _modules[name] = _from_file(path)


def _from_file(path: Path) -> ModuleType:
    """The module of a file: one that is imported already, else a new one under the file's name."""
    for module in list(sys.modules.values()):
        file = getattr(module, "__dict__", {}).get("__file__")
        if isinstance(file, str) and Path(file).name == path.name and path.samefile(file):
            return module
    name = path.stem
    if name in sys.modules or name in sys.stdlib_module_names or not name.isidentifier():
        name = f"{name}_of_{path.parent.name}"
    spec = util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    sys.modules[name] = module = util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _reach(folder: Path) -> None:
    if str(folder) not in sys.path:
        sys.path.append(str(folder))


@contextmanager
def _all_or_nothing(given: str, verb: str = "import") -> Iterator[None]:
    """A context after which all names of a module are registered, or none and one sentence why."""
    before = {kind: dict(registry._choices) for kind, registry in REGISTRIES.items()}
    try:
        yield
    except (Exception, SystemExit) as error:
        for kind, registry in REGISTRIES.items():
            own = {n: c for n, c in registry._choices.items() if n in NAMES.get(kind, ())}
            registry._choices = before.get(kind, own)
        raise ConfigError(f"cannot {verb} '{given}': {_reason(given, error)}") from error


def _reason(given: str, error: BaseException) -> str:
    """What an error says, on one line, with its place in the user's file."""
    text = " ".join(str(error).split())
    if isinstance(error, PyroaeError):
        return text
    if isinstance(error, ModuleNotFoundError) and f"{given}.".startswith(f"{error.name}."):
        return f"there is no module '{error.name}' here; give its file, as in --import FILE.py"
    frames = traceback.extract_tb(error.__traceback__)
    own = [f for f in frames if "importlib" not in f.filename and f.filename != __file__]
    where = f" (line {own[-1].lineno} of {Path(own[-1].filename).name})" if own else ""
    return f"{type(error).__name__}: {text}{where}"
