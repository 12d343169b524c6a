"""`benchmarks.speed --against`: a trial of two small subjects, and which code is timed."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import fresh, report, speed
from benchmarks.against import Older, with_older, worktree
from benchmarks.panels import SECTIONS, Panel
from benchmarks.problems import Problem
from benchmarks.workers import ROOT, Subject, Timing, take_turns

TINY = Problem(widths=(3,), latent=2, batch=8, features=4)
PYRO = "benchmarks.subjects_pyro:"


@pytest.fixture
def repository() -> None:
    if not (ROOT / ".git").exists():
        pytest.skip("this is no checkout of the repository")


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    subjects = [Subject("pyroae", PYRO + "eager", TINY)]
    monkeypatch.setitem(SECTIONS, "training", lambda: [Panel("tiny", "VAE", "pyroae", subjects)])


@pytest.mark.slow
@pytest.mark.usefixtures("repository", "tiny")
def test_a_trial_against_head(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["training", "--short", "--rounds", "2", "--out", str(tmp_path), "--check"]
    before = _git("worktree", "list")
    assert speed.main([*words, "--against", "HEAD"]) in (0, 1)
    kept = report.read(tmp_path / "speed-training.json")["tiny"]
    against = kept["against"]
    assert [s["name"] for s in kept["subjects"]] == ["pyroae"]
    assert [(s["name"], len(s["seconds"])) for s in against["subjects"]] == [("pyroae", 2)]
    new, old = kept["subjects"][0]["seconds"], against["subjects"][0]["seconds"]
    assert against["ratios"] == {"pyroae": pytest.approx(report.ratios(new, old), rel=1e-4)}
    assert all(s["memory"] > 10 for s in kept["subjects"])
    commit = _git("rev-parse", "HEAD")
    assert commit.startswith(against["commit"])
    shown = capsys.readouterr().out
    assert f"against {against['commit']}" in shown
    assert "Nothing got slower" in shown
    assert _git("worktree", "list") == before


def _git(*words: str) -> str:
    done = subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=True)
    return done.stdout


@pytest.mark.usefixtures("repository")
def test_a_worktree_is_of_the_commit_and_goes_away() -> None:
    with worktree("HEAD") as older:
        assert (Path(older.folder) / "pyroae" / "__init__.py").exists()
    assert not Path(older.folder).exists()


def test_what_is_no_commit_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        speed.main(["training", "--against", "no-such-commit"])
    assert "'no-such-commit' is no commit" in capsys.readouterr().err


@pytest.mark.usefixtures("tiny")
def test_the_check_fails_where_a_lower_quartile_is_above_the_limit(tmp_path: Path) -> None:
    def status(ratio: float) -> int:
        rounds = [1.0, 1.0, 1.0, 1.0]
        timings = [
            Timing("pyroae", seconds=[ratio * s for s in rounds]),
            Timing("pyroae", seconds=rounds, is_old=True),
        ]
        panel = SECTIONS["training"]()[0]
        kept = report.record(panel, timings, {"processor": "any"}, Older("abc", "folder"))
        report.write(tmp_path / "speed-training.json", {"tiny": kept})
        words = ["training", "--rounds", "0", "--out", str(tmp_path)]
        assert speed.main(words) == 0
        return speed.main([*words, "--check"])

    assert status(1.04) == 0
    assert status(1.06) == 1


def test_pyroaes_own_subjects_have_an_older_self() -> None:
    subjects = [panel.subjects for section in SECTIONS.values() for panel in section()]
    given = [subject for panel in subjects for subject in panel]
    old = [s for s in with_older(given, Older("abc", "folder")) if s.checkout]
    assert {s.home.removeprefix(PYRO) for s in old} >= {"compiled", "fit", "many", "likelihood"}
    assert not [s for s in old if s.name.startswith(("Pyro", "hand", "NumPyro", "plain"))]
    assert with_older(given, None) == given


def test_the_code_of_the_older_checkout_is_timed(tmp_path: Path) -> None:
    (tmp_path / "pyroae").mkdir()
    (tmp_path / "pyroae" / "__init__.py").write_text("old = True\n")
    (tmp_path / "benchmarks").mkdir()
    (tmp_path / "benchmarks" / "subjects_numbers.py").write_text(
        "import pyroae\n"
        "from benchmarks.workers import Turns\n"
        "def own(problem, turns):\n"
        "    assert pyroae.old and problem.features == 4\n"
        "    turns.serve(lambda count: None)\n"
    )
    subjects = [
        Subject("own", "benchmarks.subjects_numbers:own", TINY, checkout=str(tmp_path)),
        Subject("not there", "benchmarks.subjects_torch:products", TINY, checkout=str(tmp_path)),
        Subject("new pyroae", PYRO + "eager", TINY, checkout=str(tmp_path)),
        Subject("no pyroae", PYRO + "eager", TINY, checkout=str(tmp_path / "benchmarks")),
        Subject("no code", "benchmarks.subjects_torch:no_such_subject", TINY),
    ]
    own, fallback, newer, none, missing = take_turns(subjects, 1, steps=1)
    assert (len(own.seconds), len(fallback.seconds)) == (1, 1)
    assert "TrainConfig" in newer.skipped
    assert "not that of" in none.skipped
    assert "no_such_subject" in missing.skipped


def test_a_subject_has_as_many_cores_as_it_is_given(tmp_path: Path) -> None:
    if sys.platform != "linux":
        pytest.skip("processes are bound to cores on Linux only")
    (tmp_path / "pyroae").mkdir()
    (tmp_path / "pyroae" / "__init__.py").write_text("")
    (tmp_path / "benchmarks").mkdir()
    (tmp_path / "benchmarks" / "subjects_numbers.py").write_text(
        "import os\n"
        "def count(problem, turns):\n"
        "    raise ValueError(f'{len(os.sched_getaffinity(0))} cores')\n"
    )
    home = "benchmarks.subjects_numbers:count"
    subjects = [Subject("one", home, TINY, cores=1, checkout=str(tmp_path))]
    assert take_turns(subjects, 1, steps=1)[0].skipped == "ValueError: 1 cores"


def test_the_imports_of_a_step_are_counted_apart(tmp_path: Path) -> None:
    (tmp_path / "outer.py").write_text("import inner, builtins\nbuiltins.now += 2\n")
    (tmp_path / "inner.py").write_text("import builtins\nbuiltins.now += 1\n")
    (tmp_path / "other.py").write_text("import builtins\nbuiltins.now += 4\n")
    code = (
        "import builtins, importlib\n"
        "from benchmarks.first_step import Imports\n"
        "builtins.now = 0\n"
        "imports = Imports(clock=lambda: now)\n"
        "import outer, inner\n"
        "importlib.import_module('other')\n"
        "now += 8\n"
        "print(imports.seconds)"
    )
    environment = {"PYTHONPATH": f"{ROOT}{os.pathsep}{tmp_path}"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    assert float(done.stdout) == 3 + 4


def test_fresh_processes_of_two_checkouts(monkeypatch: pytest.MonkeyPatch) -> None:
    places = []

    def run(timing: Timing, words: list[str], place: Path, environment: object = None) -> str:
        places.append((timing.name.partition(":")[0], str(place)))
        return "3.0 2.0 1.0"

    monkeypatch.setattr(fresh, "_run", run)
    timings = fresh.first_steps(2, lambda text: None, Older("abc", "folder"))
    found = {(timing.name, timing.is_old): timing.seconds for timing in timings}
    assert found[f"{fresh.COLD}: {fresh.SECOND}", True] == [1.0, 1.0]
    assert found[f"{fresh.WARM}: {fresh.IMPORTS}", False] == [2.0, 2.0]
    assert places.count((fresh.COLD, "folder")) == 3
    assert (fresh.SVI, "folder") not in places
