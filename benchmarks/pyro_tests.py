"""Run Pyro's own tests with pyroae's objectives: `python -m benchmarks.pyro_tests FOLDER`, FOLDER
being Pyro's `tests`.

Pyro's release has no tests: FOLDER is that of a checkout of its repository, with `setup.cfg` beside
it.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from benchmarks.pyro_objectives import RECORD, REPLACE
from pyroae.errors import ConfigError

FILES = ("gradient", "valid_models", "inference", "multi_sample_elbos", "elbo_mapdata")
"""`tests/infer/test_*.py`."""
Outcome = Literal[
    "passed", "refused, as by Pyro", "refused", "not by Pyro either", "on purpose", "other"
]
OUTCOMES: tuple[Outcome, ...] = (
    "passed",
    "refused, as by Pyro",
    "refused",
    "not by Pyro either",
    "on purpose",
    "other",
)
ON_PURPOSE = {
    "test_vectorized_num_particles": (
        "the program asserts the shape of ten particles; the trial run has one particle"
    ),
    "test_factor_in_guide_error": (
        "a factor of the guide is differentiated whole, so has_rsample need not be given"
    ),
    "test_mean_field_warn": (
        "no warning is due: where model and guide have different orders, no closed form is used"
    ),
}
"""Tests that fail where pyroae differs from Pyro on purpose, see docs/differences-from-pyro.md."""
Record = dict[str, dict[str, Any]]
"""Outcomes by node id, as `benchmarks.pyro_objectives` writes them."""


def run(folder: Path, selected: Sequence[str], *, replace: bool, expression: str = "") -> Record:
    """The outcomes of test files or node ids, with pyroae's objectives or with Pyro's.

    Raises ConfigError where `folder` is not Pyro's `tests`, RuntimeError where pytest ends without
    running them.
    """
    root = folder.resolve().parent
    if not (folder / "infer" / "test_gradient.py").is_file() or not (root / "setup.cfg").is_file():
        raise ConfigError(
            f"'{folder}' is not the folder 'tests' of a checkout of Pyro, "
            "with 'setup.cfg' beside it"
        )
    with tempfile.TemporaryDirectory() as temporary:
        record = Path(temporary, "record.json")
        project = str(Path(__file__).parents[1])
        path = os.pathsep.join(filter(None, [project, os.environ.get("PYTHONPATH")]))
        settings = {
            "PYTHONPATH": path,
            RECORD: str(record),
            REPLACE: str(int(replace)),
            "OMP_NUM_THREADS": "1",
        }
        options = [
            "-p",
            "benchmarks.pyro_objectives",
            "-p",
            "no:cacheprovider",
            "-q",
            "--tb=no",
            "-k",
            expression,
        ]
        command = [sys.executable, "-m", "pytest", *options, *selected]
        done = subprocess.run(
            command,
            cwd=root,
            env=os.environ | settings,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode not in (0, 1) or not record.is_file():
            raise RuntimeError(
                f"pytest ended with {done.returncode}: {done.stdout[-2000:]}{done.stderr[-2000:]}"
            )
        return json.loads(record.read_text())


def both(folder: Path, files: Sequence[str] = FILES, expression: str = "") -> tuple[Record, Record]:
    """The outcomes with pyroae's objectives of the tests that build one, and with Pyro's of those
    that do not pass.
    """
    chosen = [f"tests/infer/test_{name}.py" for name in files]
    ours = {
        n: test
        for n, test in run(folder, chosen, replace=True, expression=expression).items()
        if test["replaced"]
    }
    failed = [name for name, test in ours.items() if test["outcome"] != "passed"]
    return ours, run(folder, failed, replace=False) if failed else {}


def outcome(node: str, ours: dict[str, Any], pyros: dict[str, Any] | None) -> Outcome:
    """The outcome of a test, from its records with pyroae's objectives and with Pyro's.

    A refusal is "as by Pyro" where the test expects an error, and has another sentence, or where
    Pyro raises one.
    """
    if ours["outcome"] == "passed":
        return "passed"
    expected = str(ours["error"]).startswith("AssertionError: Regex pattern did not match")
    if ours["refusal"] is not None:
        return (
            "refused, as by Pyro"
            if expected or (pyros and pyros["outcome"] != "passed")
            else "refused"
        )
    if pyros and pyros["outcome"] != "passed":
        return "not by Pyro either"
    return "on purpose" if test_name(node) in ON_PURPOSE else "other"


def test_name(node: str) -> str:
    """The function of a node id.

    >>> test_name("tests/infer/test_inference.py::SafetyTests::test_extra_samples")
    'test_extra_samples'
    >>> test_name("a.py::test_plate[x-1]")
    'test_plate'
    """
    return node.partition("[")[0].rpartition("::")[2]


def tables(ours: Record, pyros: Record) -> str:
    """Markdown: a count of the outcomes in each file, and the sentence or error of each that is no
    pass.
    """
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    reasons: dict[Outcome, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for node, test in ours.items():
        file, _, name = node.rpartition("/")[2].partition("::")
        result = outcome(node, test, pyros.get(node))
        counts[file][result] += 1
        if result != "passed":
            said = (
                ON_PURPOSE[test_name(node)]
                if result == "on purpose"
                else test["refusal"] or test["error"]
            )
            reasons[result][" ".join(str(said).split())].append(name)
    lines = [f"| file | {' | '.join(OUTCOMES)} |", f"|---|{'---|' * len(OUTCOMES)}"]
    lines += [
        f"| `{file}` | {' | '.join(str(count[kind]) for kind in OUTCOMES)} |"
        for file, count in counts.items()
    ]
    for kind in OUTCOMES[1:]:
        for reason, names in reasons[kind].items():
            lines += ["", f"{kind}: {reason}", *(f"- {name}" for name in names)]
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run and print the tables; 1 where an outcome is "other", else 0."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.pyro_tests", description=__doc__)
    parser.add_argument("folder", type=Path, help="the folder 'tests' of a checkout of Pyro")
    parser.add_argument("--files", nargs="+", default=FILES, choices=FILES)
    parser.add_argument("-k", dest="expression", default="", help="which tests, as of pytest")
    parser.add_argument("--out", type=Path, help="a JSON file for the outcomes")
    given = parser.parse_args(arguments)
    try:
        ours, pyros = both(given.folder, given.files, given.expression)
    except ConfigError as error:
        parser.error(str(error))
    if given.out is not None:
        given.out.write_text(json.dumps({"pyroae": ours, "pyro": pyros}, indent=1))
    print(tables(ours, pyros))
    return int(any(outcome(node, test, pyros.get(node)) == "other" for node, test in ours.items()))


if __name__ == "__main__":
    sys.exit(main())
