"""How fast pyroae trains and evaluates, beside Pyro's SVI, hand-written PyTorch, NumPyro, pythae
and bare matrix products.

    python -m benchmarks.speed
        [training|ensemble|likelihood|annealing|scaling|startup|all] [--check]

Each subject lives in a process of its own; they take turns in blocks of a fraction of a second, and
ratios are taken within a round. Medians with quartiles go to stdout, all rounds to
RESULTS/speed-SECTION.json, a figure beside it. A part that is measured again replaces that part
alone; `--rounds 0` measures nothing and reports what is kept.
"""

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks import report
from benchmarks.panels import SECTIONS, Panel, likelihood

RESULTS = Path(__file__).parent / "results"
BUSY = 0.1


def main(argv: Sequence[str] | None = None) -> int:
    """Measure the sections that are asked for."""
    options = _parser().parse_args(argv)
    os.environ.pop(
        "PYTHONDONTWRITEBYTECODE", None
    )  # workers and fresh processes find bytecode, as they do elsewhere
    out = options.out or (Path("runs/speed") if options.short else RESULTS)
    rounds = options.rounds if options.rounds is not None else 3 if options.short else 15
    sections = list(SECTIONS) if options.section == "all" else [options.section]
    lines: list[str] = []
    if rounds and (share := report.busy()) > BUSY:
        print(
            f"Others take {100 * share:.0f}% of the processors: "
            "threads wait for each other, figures will mislead.",
            file=sys.stderr,
        )
    for section in sections:
        panels = (
            likelihood(short=True)
            if section == "likelihood" and options.short
            else SECTIONS[section]()
        )
        lines += _measure(
            section, _chosen(panels, options), rounds, 0.05 if options.short else 0.3, out
        )
    if options.check and lines:
        print("## Targets\n\n" + "\n".join(lines))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.speed",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("section", nargs="?", default="all", choices=[*SECTIONS, "all"])
    parser.add_argument(
        "--rounds",
        type=int,
        help="turns of every subject (default: 15; fresh processes take fewer)",
    )
    parser.add_argument(
        "--sizes",
        nargs="+",
        metavar="PART",
        help="the parts whose names begin so, such as reference, iwae-20",
    )
    parser.add_argument(
        "--out",
        type=Path,
        help=f"folder of JSON and figures (default: {RESULTS.name} beside this file)",
    )
    parser.add_argument(
        "--short", action="store_true", help="a trial: the first part, few rounds, into runs/speed"
    )
    parser.add_argument("--check", action="store_true", help="say which targets are reached")
    return parser


def _chosen(panels: list[Panel], options: argparse.Namespace) -> list[Panel]:
    if options.sizes:
        return [panel for panel in panels if panel.name.startswith(tuple(options.sizes))]
    return panels[:1] if options.short else panels


def _measure(section: str, panels: list[Panel], rounds: int, block: float, out: Path) -> list[str]:
    """Measure, keep and show the panels of a section; its targets."""
    path = out / f"speed-{section}.json"
    kept = report.read(path)
    for panel in panels if rounds else []:
        where = report.machine()
        kept[panel.name] = report.record(panel, panel.measure(rounds, block, _sayer(panel)), where)
        report.write(path, kept)  # an interrupted run keeps what it has
        print(f"\r{' ' * 100}\r", end="", file=sys.stderr)
        print(report.table(kept[panel.name]), flush=True)
    if not rounds:
        print("\n".join(report.table(kept[panel.name]) for panel in panels if panel.name in kept))
    order = [panel.name for panel in SECTIONS[section]()]
    kept = {name: kept[name] for name in order if name in kept}
    report.draw(section, kept, path.with_suffix(".png"))
    return list(report.checks(section, kept))


def _sayer(panel: Panel) -> Callable[[str], None]:
    """Progress on one line of a terminal, or a line each elsewhere."""
    start, end = ("\r", "") if sys.stderr.isatty() else ("", "\n")

    def say(text: str) -> None:
        print(f"{start}{panel.name}: {text}".ljust(100)[:100], end=end, file=sys.stderr, flush=True)

    return say


if __name__ == "__main__":
    sys.exit(main())
