"""Faults that the conformance checks catch, without the checks after the one that catches it."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from pyroae.objectives import ObjectiveBase
from pyroae.testing import ConformanceError, check_objective, conformance
from pyroae.testing.checks import Check

ORACLES = (
    *("exact_posterior", "gradient_at_exact_posterior", "structure", "enumerated_means"),
    *("value_means", "gradient_means", "stated_means", "trend"),
)


@contextmanager
def only(*oracles: str) -> Iterator[None]:
    """Run these oracles of `check_objective` alone."""
    assert set(oracles) <= set(ORACLES)
    with pytest.MonkeyPatch.context() as patch:
        for name in ORACLES:
            if name not in oracles:
                patch.setattr(conformance, name, lambda *_: iter(()))
        yield


def assert_caught(
    objective: ObjectiveBase, words: str, by: tuple[str, ...] = ORACLES, **settings: Any
) -> None:
    """`check_objective` fails in a check of these words; those after it are not run, and oracles
    that are not among `by` are left out.
    """
    every = conformance._checks

    def until_caught(*args: Any) -> Iterator[Check]:
        for check in every(*args):
            yield check
            if not check.passed and re.search(words, f"{check.name}: {check.detail}"):
                return

    with pytest.MonkeyPatch.context() as patch, only(*by):
        patch.setattr(conformance, "_checks", until_caught)
        with pytest.raises(ConformanceError, match=words):
            check_objective(objective, **settings)
