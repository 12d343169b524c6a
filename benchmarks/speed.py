"""How fast pyroae trains and evaluates, beside Pyro's SVI, hand-written PyTorch, NumPyro, pythae
and bare matrix products.

    python -m benchmarks.speed
        [training|ensemble|likelihood|annealing|scaling|startup|all] [--check] [--against REF]

Each subject lives in a process of its own; they take turns in blocks of a fraction of a second, and
ratios are taken within a round. Medians with quartiles go to stdout, all rounds to
RESULTS/speed-SECTION.json, a figure beside it. A part that is measured again replaces that part
alone; `--rounds 0` measures nothing and reports what is kept.

`--against REF` runs pyroae's subjects a second time from a worktree of that commit, in the same
rounds, and gives the ratios new/old. With `--check` the command fails if one got slower: if the
lower quartile of its ratio is above 1.05.
"""

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from benchmarks import report
from benchmarks.against import Older, worktree
from benchmarks.panels import SECTIONS, Panel, likelihood

RESULTS = Path(__file__).parent / "results"
BUSY = 0.1


def main(argv: Sequence[str] | None = None) -> int:
    """Measure the sections that are asked for."""
    parser = _parser()
    options = parser.parse_args(argv)
    os.environ.pop(
        "PYTHONDONTWRITEBYTECODE", None
    )  # workers and fresh processes find bytecode, as they do elsewhere
    is_partial = options.short or options.subjects
    out = options.out or (Path("runs/speed") if is_partial else RESULTS)
    rounds = options.rounds if options.rounds is not None else 3 if options.short else 15
    sections = list(SECTIONS) if options.section == "all" else [options.section]
    if rounds and (share := report.busy()) > BUSY:
        print(
            f"Others take {100 * share:.0f}% of the processors: "
            "threads wait for each other, figures will mislead.",
            file=sys.stderr,
        )
    with ExitStack() as stack:
        older = None
        if options.against:
            try:
                older = stack.enter_context(worktree(options.against))
            except ValueError as error:
                parser.error(str(error))
        return _measure_all(sections, options, rounds, out, older)


def _measure_all(
    sections: list[str], options: argparse.Namespace, rounds: int, out: Path, older: Older | None
) -> int:
    """Measure sections and report; the exit status."""
    lines: list[str] = []
    slower: list[tuple[bool, str]] = []
    for section in sections:
        is_trial = section == "likelihood" and options.short
        panels = _chosen(likelihood(short=True) if is_trial else SECTIONS[section](), options)
        kept = _measure(section, panels, rounds, 0.05 if options.short else 0.3, out, older)
        lines += report.checks(section, kept)
        slower += report.slower({p.name: kept[p.name] for p in panels if p.name in kept})
    if options.check and lines:
        print("## Targets\n\n" + "\n".join(lines))
    if options.check and slower:
        print("\n## Nothing got slower\n\n" + "\n".join(line for _, line in slower))
    return int(options.check and any(is_slower for is_slower, _ in slower))


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
    parser.add_argument(
        "--subjects",
        nargs="+",
        metavar="WORD",
        help="only subjects whose names contain one of these, into runs/speed",
    )
    parser.add_argument(
        "--against", metavar="REF", help="time pyroae's subjects of that commit too, new/old"
    )
    parser.add_argument(
        "--check",
        action="store_true",
        help="say which targets are reached; exit with 1 if something got slower",
    )
    return parser


def _chosen(panels: list[Panel], options: argparse.Namespace) -> list[Panel]:
    if options.sizes:
        panels = [panel for panel in panels if panel.name.startswith(tuple(options.sizes))]
    elif options.short:
        panels = panels[:1]
    if not options.subjects:
        return panels
    chosen = [
        replace(p, subjects=[s for s in p.subjects if any(w in s.name for w in options.subjects)])
        for p in panels
    ]
    return [panel for panel in chosen if panel.subjects]


def _measure(
    section: str,
    panels: list[Panel],
    rounds: int,
    block: float,
    out: Path,
    older: Older | None,
) -> dict[str, report.Record]:
    """Measure, keep and show the panels of a section; all that are kept."""
    path = out / f"speed-{section}.json"
    kept = report.read(path)
    for panel in panels if rounds else []:
        where = report.machine()
        timings = panel.measure(rounds, block, _sayer(panel), older)
        kept[panel.name] = report.record(panel, timings, where, older)
        report.write(path, kept)  # an interrupted run keeps what it has
        print(f"\r{' ' * 100}\r", end="", file=sys.stderr)
        print(report.table(kept[panel.name]), flush=True)
    if not rounds:
        print("\n".join(report.table(kept[panel.name]) for panel in panels if panel.name in kept))
    order = [panel.name for panel in SECTIONS[section]()]
    kept = {name: kept[name] for name in order if name in kept}
    report.draw(section, kept, path.with_suffix(".png"))
    return kept


def _sayer(panel: Panel) -> Callable[[str], None]:
    """Progress on one line of a terminal, or a line each elsewhere."""
    start, end = ("\r", "") if sys.stderr.isatty() else ("", "\n")

    def say(text: str) -> None:
        print(f"{start}{panel.name}: {text}".ljust(100)[:100], end=end, file=sys.stderr, flush=True)

    return say


if __name__ == "__main__":
    sys.exit(main())
