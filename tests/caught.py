"""Faults that the conformance checks catch, without the checks after the one that catches it."""

import re
from collections.abc import Iterator
from typing import Any

import pytest

from pyroae.objectives import ObjectiveBase
from pyroae.testing import ConformanceError, check_objective, conformance
from pyroae.testing.checks import Check


def assert_caught(objective: ObjectiveBase, words: str, **settings: Any) -> None:
    """`check_objective` fails in a check of these words; those after it are not run."""
    every = conformance._checks

    def until_caught(*args: Any) -> Iterator[Check]:
        for check in every(*args):
            yield check
            if not check.passed and re.search(words, f"{check.name}: {check.detail}"):
                return

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(conformance, "_checks", until_caught)
        with pytest.raises(ConformanceError, match=words):
            check_objective(objective, **settings)
