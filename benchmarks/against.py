"""An older commit of this repository, timed beside this one: `--against REF` of `benchmarks.speed`.

Each of pyroae's subjects runs a second time from a worktree of that commit, with the subject's code
of that commit: a release is timed in the way in which it timed itself. A subject that the commit
does not have is timed by this checkout's code. The two have their turns one after the other, and
the ratio new/old is taken within a round.
"""

import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from benchmarks.workers import ROOT, Subject

SLOWER = 1.05
"""The lower quartile of a ratio new/old above which a subject got slower."""

OURS = "benchmarks.subjects_pyro:"
PYROS = (OURS + "svi", OURS + "plain_likelihood")
"""Subjects beside pyroae's own that run `pyro.infer`."""


@dataclass(frozen=True)
class Older:
    """A commit, and the folder of its worktree."""

    commit: str
    folder: str


@contextmanager
def worktree(ref: str) -> Iterator[Older]:
    """Check a commit out in a temporary folder, which is removed at the end.

    Raises:
        ValueError: If this is no repository, or has no such commit.
    """
    try:
        commit = _git("rev-parse", "--verify", "--short=12", "--end-of-options", ref + "^{commit}")
    except (OSError, subprocess.CalledProcessError):
        raise ValueError(f"'{ref}' is no commit of a git repository at {ROOT}") from None
    with tempfile.TemporaryDirectory() as place:
        folder = str(Path(place).resolve() / "pyroae")
        _git("worktree", "add", "--detach", folder, commit)
        try:
            yield Older(commit, folder)
        finally:
            _git("worktree", "remove", "--force", folder)


def _git(*words: str) -> str:
    done = subprocess.run(
        ["git", *words], cwd=ROOT, capture_output=True, text=True, check=True, timeout=300
    )
    return done.stdout.strip()


def with_older(subjects: Sequence[Subject], older: Older | None) -> list[Subject]:
    """The subjects, and pyroae's own of them a second time, from the older checkout."""
    if older is None:
        return list(subjects)
    ours = [s for s in subjects if s.home.startswith(OURS) and s.home not in PYROS]
    return [*subjects, *(replace(subject, checkout=older.folder) for subject in ours)]
