"""Execute the notebooks of docs/tutorials, each in a fresh kernel, and check what they store.

python docs/_notebooks.py                    run all; the first error ends the command
python docs/_notebooks.py lecture ray        run those whose names contain one of the words
python docs/_notebooks.py --write            run all, and store their outputs
"""

import argparse
import ast
import os
import re
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient

ROOT = Path(__file__).parents[1]
TUTORIALS = ROOT / "docs" / "tutorials"
LIMIT = 600
"""The largest size of a stored notebook in kB."""
PATIENCE = 1800
"""Seconds after which a cell fails."""
KERNEL = {"display_name": "Python 3", "language": "python", "name": "python3"}
UNWANTED = {
    "an absolute path": r"(?<![\w.:/<])/(?:home|root|tmp|work|usr|Users|private|var)/",
    "a memory address": r"\b0x[0-9a-f]{6,}\b",
    "a time stamp": r"\b20\d\d-\d\d-\d\d[ T]\d\d:\d\d",
    "a warning": r"\b\w*Warning\b",
}


def notebooks(words: Sequence[str] = ()) -> list[Path]:
    """The notebooks whose names contain one of the words, or all of them."""
    return [
        path
        for path in sorted(TUTORIALS.glob("*.ipynb"))
        if not words or any(word in path.stem for word in words)
    ]


def execute(path: Path) -> Any:
    """Run a notebook in a fresh kernel, in an empty folder; return it with its new outputs.

    Raises nbclient's CellExecutionError at the first error.
    """
    notebook = nbformat.read(path, as_version=4)
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    with tempfile.TemporaryDirectory() as folder:
        os.environ["IPYTHONDIR"] = os.path.join(folder, ".ipython")
        working = Path(folder, "tutorial")
        working.mkdir()
        os.environ["PYTHONWARNINGS"] = "ignore:IProgress not found"  # tqdm without ipywidgets
        NotebookClient(
            notebook,
            kernel_name="python3",
            extra_arguments=["--log-level=ERROR"],
            timeout=PATIENCE,
            startup_timeout=PATIENCE,
            coalesce_streams=True,
            record_timing=False,
            resources={"metadata": {"path": str(working)}},
        ).execute()
    notebook.metadata = nbformat.from_dict(
        {"kernelspec": KERNEL, "language_info": {"name": "python"}}
    )
    return notebook


def faults(notebook: Any) -> list[str]:
    """What is wrong with the stored outputs of a notebook, one sentence each."""
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    found = []
    if [cell.execution_count for cell in cells] != list(range(1, len(cells) + 1)):
        found.append("its cells were not executed once each, in their order")
    if not any("image/png" in output.get("data", {}) for cell in cells for output in cell.outputs):
        found.append("it shows no picture")
    for cell in cells:
        place = f"the output of cell {cell.execution_count}"
        for output in cell.outputs:
            if output.output_type == "error" or output.get("name") == "stderr":
                found.append(f"{place} is an error or a message on stderr")
            found += [
                f"{place} contains {what}"
                for what, pattern in UNWANTED.items()
                if re.search(pattern, _text(output))
            ]
    return found


def _text(output: Any) -> str:
    """The texts of an output, without its pictures."""
    shown = output.get("data", {})
    return output.get("text", "") + "".join(
        value for kind, value in shown.items() if kind.startswith("text/")
    )


def code_of(notebook: Any) -> str:
    """The code of all cells, without IPython's magic commands."""
    cells = (cell.source for cell in notebook.cells if cell.cell_type == "code")
    return "\n".join(re.sub(r"^[%!].*$", "", source, flags=re.MULTILINE) for source in cells)


def names_of_pyroae(code: str) -> Iterator[tuple[str, str]]:
    """Modules of pyroae that code imports, each with a name that is taken from it."""
    modules: dict[str, str] = {}
    tree = ast.parse(code)
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            modules |= {name.name: name.name for name in node.names if name.name == "pyroae"}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("pyroae"):
            yield from ((str(node.module), name.name) for name in node.names)
            modules |= {name.asname or name.name: f"pyroae.{name.name}" for name in node.names}
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            module = modules.get(node.value.id)
            if module is not None and (ROOT / module.replace(".", "/")).with_suffix("").exists():
                yield module, node.attr


def main(words: Sequence[str] | None = None) -> int:
    """Run notebooks; return 1 if one of them stores what it should not."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("words", nargs="*", help="parts of names; default: all notebooks")
    parser.add_argument("--write", action="store_true", help="store the outputs")
    options = parser.parse_args(words)
    failed = False
    for path in notebooks(options.words):
        began = time.monotonic()
        notebook = execute(path)
        text = nbformat.writes(notebook) + "\n"
        print(f"{path.name}: {time.monotonic() - began:.0f} s, {len(text) / 1000:.0f} kB")
        found = faults(notebook)
        if len(text) > LIMIT * 1000:
            found.append(f"it has more than {LIMIT} kB")
        for fault in found:
            print(f"{path.name}: {fault}", file=sys.stderr)
        failed = failed or bool(found)
        if options.write:
            path.write_text(text)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
