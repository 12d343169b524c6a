"""The map of the package in docs/data-path.md agrees with the tree and with the imports."""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "pyroae"
ROW = re.compile(r"^\| `([\w/]+\.py)` \| (.+) \|$", re.MULTILINE)


def rows() -> list[str]:
    """The modules of the map, in its order."""
    return [path for path, _ in ROW.findall((ROOT / "docs" / "data-path.md").read_text())]


def imports(path: str) -> set[str]:
    """The modules that a module imports when it is imported, as paths in the package."""
    modules = set()
    for node in ast.parse((PACKAGE / path).read_text()).body:
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("pyroae."):
            folder = (node.module or "").replace(".", "/").removeprefix("pyroae/")
            modules |= {f"{folder}/{alias.name}.py" for alias in node.names}
            modules |= {f"{folder}.py", f"{folder}/__init__.py"}
        elif isinstance(node, ast.ImportFrom) and node.module == "pyroae":
            modules |= {f"{alias.name}.py" for alias in node.names}
    return modules - {path}


def test_the_map_lists_every_module_once() -> None:
    tree = {str(path.relative_to(PACKAGE)) for path in PACKAGE.rglob("*.py")} - {"__init__.py"}
    assert len(rows()) == len(set(rows()))
    assert tree - set(rows()) == set(), "modules that docs/data-path.md lacks"
    assert set(rows()) - tree == set(), "modules of docs/data-path.md that do not exist"


def test_the_map_is_in_the_order_of_imports() -> None:
    position = {path: number for number, path in enumerate(rows())}
    late = [
        f"{path} imports {other}, which is listed later"
        for path in rows()
        for other in imports(path) & set(position)
        if position[other] > position[path]
        and not (other.endswith("__init__.py") and path.startswith(other[: -len("__init__.py")]))
    ]
    assert not late, "\n".join(sorted(late))
