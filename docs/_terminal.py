"""Record two commands and what they print as docs/images/terminal.svg.

python docs/_terminal.py
"""

import io
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from rich.console import Console
from rich.text import Text

ROOT = Path(__file__).parents[1]
PICTURE = ROOT / "docs" / "images" / "terminal.svg"
WIDTH = 110
COMMANDS = (
    "pyroae train --system vae --data digits --latent 10 --objective analytic-kl --epochs 100 "
    "--out runs/vae",
    "pyroae evaluate runs/vae --num-particles 5000",
)


def output(command: str, folder: str) -> str:
    """What a command prints on stdout, with the colours of a terminal."""
    _, *words = command.split()
    variables = {"COLUMNS": str(WIDTH), "FORCE_COLOR": "1", "TERM": "xterm-256color"}
    return subprocess.run(
        [sys.executable, "-m", "pyroae.cli", *words],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), **variables},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,  # progress bars
        text=True,
        check=True,
    ).stdout


def picture(parts: list[tuple[str, str]]) -> str:
    """Commands and their outputs as an SVG that loads no fonts."""
    console = Console(record=True, width=WIDTH, file=io.StringIO(), force_terminal=True)
    for command, text in parts:
        console.print(Text.assemble(("$ ", "bold green"), (command, "bold")))
        console.print(Text.from_ansi(text.rstrip()))
        console.print()
    svg = console.export_svg(title="pyroae", unique_id="terminal")
    return re.sub(r"@font-face \{.*?\}\n", "", svg, flags=re.DOTALL)


def main() -> None:
    """Run the commands in an empty folder, and write the picture."""
    with tempfile.TemporaryDirectory() as folder:
        parts = [(command, output(command, folder)) for command in COMMANDS]
    PICTURE.write_text(picture(parts))


if __name__ == "__main__":
    main()
