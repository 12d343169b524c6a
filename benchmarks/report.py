"""What was measured: kept as JSON, shown as tables, drawn, and compared with the targets."""

import importlib.metadata
import json
import math
import os
import platform
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from benchmarks.against import SLOWER, Older
from benchmarks.panels import SVI, TARGETS, Panel, Target
from benchmarks.workers import Timing

VERSIONS = ("torch", "pyro-ppl", "pyroae", "numpyro", "jax", "pythae")
Quartiles = tuple[float, float, float]
Record = dict[str, Any]
"""A panel as it is kept: its titles, the machine, and the rounds of every subject."""


def quartiles(values: Sequence[float]) -> Quartiles:
    """Lower quartile, median, upper quartile.

    >>> quartiles([1.0, 2.0, 3.0, 4.0, 5.0])
    (2.0, 3.0, 4.0)
    """
    low, middle, high = np.quantile(values, (0.25, 0.5, 0.75)).tolist()
    return low, middle, high


def ratios(over: Sequence[float], under: Sequence[float]) -> Quartiles | None:
    """Quartiles of the ratios of each round; None where one side has no rounds.

    >>> ratios([1.0, 3.0], [2.0, 2.0])
    (0.75, 1.0, 1.25)
    """
    pairs = list(zip(over, under, strict=False))
    return quartiles([a / b for a, b in pairs]) if pairs else None


# JSON.


def machine() -> dict[str, Any]:
    """Where and with what it was measured."""
    found = {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "date": time.strftime("%Y-%m-%d %H:%M"),
    }
    found["python"] = platform.python_version()
    for name in VERSIONS:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    found["busy before"] = f"{100 * busy():.0f}%"
    return found


def busy(seconds: float = 1.0) -> float:
    """The share of the processors' time that others take now; nan where the system does not say."""
    before = _ticks()
    time.sleep(seconds)
    after = _ticks()
    return 1 - (after[1] - before[1]) / max(after[0] - before[0], 1) if before else math.nan


def _ticks() -> tuple[int, ...]:
    """Of all processors since the start of the machine: all, and idle."""
    path = Path("/proc/stat")
    if not path.exists():
        return ()
    ticks = [int(text) for text in path.read_text().splitlines()[0].split()[1:]]
    return sum(ticks), ticks[3] + ticks[4]


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    return next(
        (line.partition(":")[2].strip() for line in lines if line.startswith("model name")),
        platform.processor(),
    )


def record(
    panel: Panel, timings: list[Timing], where: dict[str, Any], older: Older | None = None
) -> Record:
    """A panel with its rounds, and the ratios to those of an older checkout."""
    now = [timing for timing in timings if not timing.is_old]
    then = [timing for timing in timings if timing.is_old]
    return {
        "title": panel.title,
        "reference": panel.reference,
        "unit": panel.unit,
        "scale": panel.scale,
        "axis": panel.axis,
        "machine": where,
        "subjects": [_kept(timing) for timing in now],
        "against": older and _against(now, then, older.commit),
    }


def _kept(timing: Timing) -> Record:
    return {name: value for name, value in asdict(timing).items() if name != "is_old"}


def _against(now: list[Timing], then: list[Timing], commit: str) -> Record:
    """The older rounds, and quartiles of the ratio new/old of each subject that both have."""
    seconds = {timing.name: timing.seconds for timing in now}
    found = {timing.name: ratios(seconds[timing.name], timing.seconds) for timing in then}
    return {
        "commit": commit,
        "ratios": {name: values for name, values in found.items() if values is not None},
        "subjects": [_kept(timing) for timing in then],
    }


def read(path: Path) -> dict[str, Record]:
    """Panels by name; none where there is no file yet."""
    return json.loads(path.read_text(encoding="utf-8"))["panels"] if path.exists() else {}


def write(path: Path, panels: dict[str, Record]) -> None:
    """Keep them; numbers to six digits."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rounded = json.loads(
        json.dumps({"panels": panels}), parse_float=lambda text: float(f"{float(text):.6g}")
    )
    path.write_text(json.dumps(rounded, indent=1) + "\n", encoding="utf-8")


# Tables.


def table(panel: Record) -> str:
    """Markdown, the fastest first."""
    scale, reference = panel["scale"], _seconds(panel, panel["reference"])
    lines = [
        f"## {panel['title']}",
        "",
        f"| subject | {panel['unit']} | quartiles | ratio to {panel['reference']} | quartiles "
        "| peak MiB |",
        "|---|---:|---|---:|---|---:|",
    ]
    measured = [s for s in panel["subjects"] if s["seconds"]]
    for subject in sorted(measured, key=lambda s: median(s["seconds"])):
        low, middle, high = (scale * value for value in quartiles(subject["seconds"]))
        ratio = ratios(subject["seconds"], reference)
        compared = (
            "| |" if ratio is None else f"{ratio[1]:.3f} | {ratio[0]:.3f} to {ratio[2]:.3f} |"
        )
        times = f"{middle:.3f} | {low:.3f} to {high:.3f}"
        memory = subject.get("memory")
        peak = f"{memory:.0f} |" if memory else "|"
        lines.append(f"| {subject['name']} | {times} | {compared} {peak}")
    lines += [
        "",
        *(f"{s['name']} is skipped: {s['skipped']}." for s in panel["subjects"] if s["skipped"]),
    ]
    where = panel["machine"]
    rounds = max((len(s["seconds"]) for s in panel["subjects"]), default=0)
    machine = ", ".join(f"{k} {v}" if k != "processor" else str(v) for k, v in where.items())
    lines.append(f"{rounds} rounds; {machine}.")
    if panel.get("against"):
        lines += ["", *_against_table(panel)]
    return "\n".join(lines) + "\n"


def _against_table(panel: Record) -> list[str]:
    against, scale = panel["against"], panel["scale"]
    unit = panel["unit"]
    lines = [
        f"| against {against['commit']} | {unit} | {unit}, old | new/old | quartiles |",
        "|---|---:|---:|---:|---|",
    ]
    for subject in against["subjects"]:
        name = subject["name"]
        if name in against["ratios"]:
            low, middle, high = against["ratios"][name]
            new, old = (scale * median(s) for s in (_seconds(panel, name), subject["seconds"]))
            lines.append(
                f"| {name} | {new:.3f} | {old:.3f} | {middle:.3f} | {low:.3f} to {high:.3f} |"
            )
        elif subject["skipped"]:
            lines.append(f"| {name} | skipped: {subject['skipped']} | | | |")
    return lines


def _seconds(panel: Record, name: str) -> list[float]:
    return next((s["seconds"] for s in panel["subjects"] if s["name"] == name), [])


def _memory(panel: Record, name: str) -> float:
    return next((s.get("memory", 0.0) for s in panel["subjects"] if s["name"] == name), 0.0)


def _fastest(panel: Record, names: Sequence[str]) -> tuple[str, list[float]]:
    measured = [(name, seconds) for name in names if (seconds := _seconds(panel, name))]
    return min(measured, key=lambda pair: median(pair[1]), default=("", []))


# Targets.


def checks(section: str, panels: dict[str, Record]) -> Iterator[str]:
    """A line for each target of a section."""
    for target in TARGETS:
        if target.section == section:
            yield _check(target, panels.get(target.panel))


def slower(panels: dict[str, Record]) -> Iterator[tuple[bool, str]]:
    """For each subject that an older commit has too: whether it got slower, and a line."""
    for name, panel in panels.items():
        against = panel.get("against") or {"ratios": {}, "commit": ""}
        for subject, (low, middle, high) in against["ratios"].items():
            verdict = "SLOWER      " if low > SLOWER else "not slower  "
            figures = f"{middle:.3f} ({low:.3f} to {high:.3f}) of {against['commit']}"
            yield low > SLOWER, f"{verdict}  {name}, {subject}: {figures}"


def _check(target: Target, panel: Record | None) -> str:
    sign = "≥" if target.at_least else "≤"
    wanted = f"{target.text}: {sign} {target.limit:g}"
    if panel is None:
        return f"not measured  {wanted}"
    (over, above), (under, below) = _fastest(panel, target.over), _fastest(panel, target.under)
    ratio = ratios(above, below)
    if ratio is None:
        reasons = {
            s["skipped"]
            for s in panel["subjects"]
            if s["name"] in target.over + target.under and s["skipped"]
        }
        return f"not measured  {wanted} ({'; '.join(sorted(reasons)) or 'no rounds'})"
    reached = ratio[1] >= target.limit if target.at_least else ratio[1] <= target.limit
    figures = f"{ratio[1]:.3f} ({ratio[0]:.3f} to {ratio[2]:.3f}), {over} / {under}"
    return f"{'reached     ' if reached else 'NOT REACHED '}  {wanted}; {figures}"


# Figures.


def draw(section: str, panels: dict[str, Record], path: Path) -> None:
    """Points with quartiles, a panel a problem; lines, where panels lie along an axis."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    shown = {
        name: panel
        for name, panel in panels.items()
        if any(s["seconds"] for s in panel["subjects"])
    }
    if not shown:
        return
    with plt.rc_context({"font.size": 8, "axes.spines.top": False, "axes.spines.right": False}):
        along = all(panel["axis"] for panel in shown.values())
        figure = _lines(plt, shown) if along else _points(plt, shown)
        figure.suptitle(
            f"pyroae: {section}, {next(iter(shown.values()))['machine']['processor']}", fontsize=9
        )
        figure.savefig(path, dpi=150)
        plt.close(figure)


def _points(plt: Any, panels: dict[str, Record]) -> Any:
    counts = [sum(bool(s["seconds"]) for s in panel["subjects"]) for panel in panels.values()]
    columns = 2 if len(counts) > 1 else 1
    rows = -(-len(counts) // columns)
    tallest = [max(counts[row * columns : (row + 1) * columns]) for row in range(rows)]
    figure, axes = plt.subplots(
        rows,
        columns,
        figsize=(5.8 * columns, sum(0.24 * n + 0.9 for n in tallest) + 0.3),
        height_ratios=[n + 3 for n in tallest],
        squeeze=False,
        layout="constrained",
    )
    for ax in axes.flat[len(counts) :]:
        ax.set_axis_off()
    for ax, panel in zip(axes.flat, panels.values(), strict=False):
        _draw_points(ax, panel)
    return figure


def _draw_points(ax: Any, panel: Record) -> None:
    measured = sorted(
        (s for s in panel["subjects"] if s["seconds"]), key=lambda s: -median(s["seconds"])
    )
    reference = _seconds(panel, panel["reference"])
    for y, subject in enumerate(measured):
        low, middle, high = (panel["scale"] * value for value in quartiles(subject["seconds"]))
        color = "C0" if "pyroae" in subject["name"] else "0.45"
        ax.barh(y, middle, height=0.62, color=color, alpha=0.35)
        ax.errorbar(
            middle, y, xerr=[[middle - low], [high - middle]], fmt="o", ms=3, lw=1.2, color=color
        )
        ratio = ratios(subject["seconds"], reference)
        figure = f"{middle:,.0f}" if middle >= 100 else f"{middle:.3g}"
        note = figure if ratio is None else f"{figure}  (×{ratio[1]:.2f})"
        ax.annotate(
            note,
            (max(high, middle), y),
            xytext=(5, 0),
            textcoords="offset points",
            va="center",
            fontsize=7,
        )
    ax.set_yticks(range(len(measured)), [s["name"] for s in measured])
    ax.set_xlim(0, 1.3 * max(panel["scale"] * quartiles(s["seconds"])[2] for s in measured))
    ax.set_xlabel(f"{panel['unit']}  (× of {panel['reference']})")
    ax.set_title(panel["title"], fontsize=8, loc="left")


def _lines(plt: Any, panels: dict[str, Record]) -> Any:
    names = list(dict.fromkeys(panel["axis"][0] for panel in panels.values()))
    figure, axes = plt.subplots(
        2, len(names), figsize=(3.2 * len(names), 6.0), squeeze=False, layout="constrained"
    )
    for ax, memory, name in zip(*axes, names, strict=True):
        along = [panel for panel in panels.values() if panel["axis"][0] == name]
        for subject in dict.fromkeys(s["name"] for panel in along for s in panel["subjects"]):
            points = [(p["axis"][1], quartiles(s)) for p in along if (s := _seconds(p, subject))]
            if not points:
                continue
            x, y = [at for at, _ in points], 1e3 * np.array([found for _, found in points])
            spread = [y[:, 1] - y[:, 0], y[:, 2] - y[:, 1]]
            ax.errorbar(
                x,
                y[:, 1],
                yerr=spread,
                fmt="o-",
                ms=3,
                lw=1.2,
                label=_with_ratio(along[-1], subject),
            )
            memory.plot(x, [_memory(p, subject) for p in along if _seconds(p, subject)], "o-", ms=3)
        ax.set(yscale="log", ylabel=along[0]["unit"])
        memory.set(ylabel="peak memory of the process, MiB", ylim=(0, None))
        for axis in (ax, memory):
            axis.set(xscale="log", xlabel=name)
            axis.set_xticks(ticks := [p["axis"][1] for p in along], [str(t) for t in ticks])
            axis.xaxis.set_minor_locator(plt.NullLocator())
        ax.legend(frameon=False, fontsize=6)
    return figure


def _with_ratio(panel: Record, subject: str) -> str:
    """The name, and the ratio to Pyro's at the last point."""
    ratio = ratios(_seconds(panel, subject), _seconds(panel, panel["reference"]))
    of = "SVI" if panel["reference"] == SVI else panel["reference"]
    return (
        subject
        if ratio is None or subject == panel["reference"]
        else f"{subject} (last ×{ratio[1]:.2f} of {of})"
    )
