"""The package as a reader meets it: its layers, its names, its documentation, its language."""

import ast
import inspect
import json
import re
import unicodedata
from functools import cache
from graphlib import TopologicalSorter
from importlib import import_module
from pathlib import Path
from statistics import median
from typing import Any

import pytest

import pyroae

PACKAGE = Path(pyroae.__file__).parent
ROOT = PACKAGE.parent
SOURCES = sorted(PACKAGE.rglob("*.py"))
DEPTH = 10
"""Floors of imports, from `errors` to the command line: packages and the modules beside them."""


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


def module_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


MODULES = {module_of(path) for path in SOURCES}


def imports_of(path: Path) -> set[str]:
    """Modules of the package that a module imports, those inside functions too."""
    names = set()
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "pyroae":
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return {name if name in MODULES else name.rpartition(".")[0] for name in names}


def test_depth_of_imports(capsys: Any) -> None:
    """Packages, and modules beside them, import each other one way, in few floors."""
    below: dict[str, set[str]] = {}
    for path in SOURCES:
        name = module_of(path)
        if name != "pyroae":
            others = {other.split(".")[1] for other in imports_of(path) if other != "pyroae"}
            top = name.split(".")[1]
            below.setdefault(top, set()).update(others - {top})
    depths: dict[str, int] = {}
    for name in TopologicalSorter(below).static_order():  # CycleError names a cycle
        depths[name] = 1 + max((depths[other] for other in below[name]), default=0)
    with capsys.disabled():
        print(f"\nimport depth {max(depths.values())}: {json.dumps(depths)}")
    assert max(depths.values()) <= DEPTH


def test_no_module_has_the_name_of_a_function_beside_it() -> None:
    for path in SOURCES:
        if path.name == "__init__.py":
            exported = getattr(import_module(module_of(path)), "__all__", [])
            beside = {other.stem for other in path.parent.glob("*.py")}
            beside |= {other.name for other in path.parent.iterdir() if other.is_dir()}
            functions = {
                name
                for name in exported
                if callable(getattr(import_module(module_of(path)), name, None))
            }
            assert not functions & beside, f"{module_of(path)}: {functions & beside}"


def test_public_names_are_there() -> None:
    for name in pyroae.__all__:
        assert getattr(pyroae, name) is not None
    paths = {
        "pyroae.data": ("load", "Dataset", "Splits", "batches"),
        "pyroae.training": ("fit", "fit_ensemble"),
        "pyroae.runs": ("Run",),
        "pyroae.evaluation": ("ais", "bdmc", "measure_gradients"),
        "pyroae.plots": ("training_curves", "reconstructions", "samples"),
        "pyroae.cli": ("main",),
    }
    for module, names in paths.items():
        assert all(hasattr(import_module(module), name) for name in names), module


# Documentation.


def public(path: Path) -> list[tuple[str, ast.FunctionDef | ast.ClassDef]]:
    """Public classes, functions and methods of a module, by their names."""
    if any(part.startswith("_") and part != "__init__" for part in path.with_suffix("").parts):
        return []
    found: list[tuple[str, ast.FunctionDef | ast.ClassDef]] = []
    for node in tree(path).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
            found.append((node.name, node))
            inside = node.body if isinstance(node, ast.ClassDef) else []
            methods = [m for m in inside if isinstance(m, ast.FunctionDef)]
            found += [(f"{node.name}.{m.name}", m) for m in methods if m.name[0] != "_"]
    return found


PUBLIC = [(module_of(path), name, node) for path in SOURCES for name, node in public(path)]


def test_docstrings_are_long_enough(capsys: Any) -> None:
    lengths = [len((ast.get_docstring(n) or "").splitlines()) for _, _, n in PUBLIC]
    with capsys.disabled():
        print(f"\n{len(lengths)} public objects, median docstring of {median(lengths)} lines")
    assert median(lengths) >= 8


def is_function(node: ast.AST) -> bool:
    return isinstance(node, ast.FunctionDef) and not any(
        "property" in ast.unparse(d) or "override" in ast.unparse(d) for d in node.decorator_list
    )


def test_every_public_function_says_what_it_takes_and_gives() -> None:
    missing = []
    for module, name, node in PUBLIC:
        if not isinstance(node, ast.FunctionDef) or "." in name or not is_function(node):
            continue
        text = ast.get_docstring(node) or ""
        arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
        returns = node.returns is not None and ast.unparse(node.returns) not in ("None", "NoReturn")
        if arguments and "Args:" not in text:
            missing.append(f"{module}.{name}: Args")
        if returns and not re.search(r"^(Returns|Yields):", text, re.MULTILINE):
            missing.append(f"{module}.{name}: Returns")
    assert not missing, "\n".join(missing)


# Language.

RIDDLES = [
    r"hangs? on",
    r"(nats|seconds|figures?|page) a (datum|run)",
    r"nobody waits for",
    r"on their way from",
    r"put together where",
    r"of which there is no",
    r"go(es)? on to the last bit",
    r"write K particles nowhere",
    r"worked? out once",
]
"""Phrases that a reader has to decode, whole words; each has a plain replacement."""
NAMES = ("keeper", "blame", "hands", "portion", "dealt")
"""Names of modules, functions and arguments that do not say what they are of."""
PROSE = [
    *SOURCES,
    *sorted((ROOT / "docs").rglob("*.md")),
    ROOT / "README.md",
    ROOT / "CHANGELOG.md",
]


@pytest.mark.parametrize("pattern", RIDDLES)
def test_plain_language(pattern: str) -> None:
    phrase = re.compile(rf"\b{pattern}\b".replace(" ", r"\s+"), re.IGNORECASE)
    found = [
        f"{path.relative_to(ROOT)}: {match.group()}"
        for path in PROSE
        for match in phrase.finditer(path.read_text())
    ]
    assert not found, "\n".join(found)


def test_plain_names() -> None:
    found = []
    for path in SOURCES:
        if path.stem in NAMES:
            found.append(str(path))
        for node in ast.walk(tree(path)):
            names = [node.name] if isinstance(node, ast.FunctionDef | ast.ClassDef) else []
            names += [node.arg] if isinstance(node, ast.arg) else []
            names += [node.id] if isinstance(node, ast.Name) else []
            found += [f"{module_of(path)}: {name}" for name in names if name in NAMES]
    assert not found, "\n".join(sorted(set(found)))


PRAGMA = re.compile(r"\s+# (type: ignore|noqa|isort:).*$")


def width(line: str) -> int:
    """Columns of a line, as ruff counts them: without pragmas, and no column for an accent."""
    return sum(not unicodedata.combining(letter) for letter in PRAGMA.sub("", line))


def test_width() -> None:
    files = [*SOURCES, *sorted((ROOT / "tests").rglob("*.py"))]
    wide = [
        f"{path.relative_to(ROOT)}:{number}"
        for path in files
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if width(line) > 100
    ]
    assert not wide, f"{len(wide)} lines: {', '.join(wide[:20])}"


def test_signatures_can_be_read() -> None:
    """What is exported has a signature and a docstring of its own."""
    for name in pyroae.__all__:
        thing = getattr(pyroae, name)
        if callable(thing):
            assert inspect.getdoc(thing), name
