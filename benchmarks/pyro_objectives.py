"""A pytest plugin for Pyro's own tests: pyroae's objectives under the names of Pyro's, and a record
of each test's outcome.

Loaded by `benchmarks.pyro_tests`. Pyro's files are neither part of this project nor changed.
"""

import functools
import json
import os
import warnings
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any

import pyro.infer
import pytest

from pyroae.errors import ProgramError, PyroaeError
from pyroae.objectives import OBJECTIVES, Bound, Objective, ObjectiveBase

RECORD = "PYROAE_PYRO_RECORD"
"""Names the file in which the outcomes are written."""
REPLACE = "PYROAE_PYRO_REPLACE"
"""1: pyroae's objectives replace Pyro's; else Pyro's own run, for comparison."""
SAME_VALUE = {
    "max_plate_nesting",
    "vectorize_particles",
    "strict_enumeration_warning",
    "ignore_jit_warnings",
    "retain_graph",
}
"""Settings of Pyro's objectives on which no expected value depends: pyroae finds nesting and
vectorization by a trial run.
"""


def trace_elbo(**settings: Any) -> ObjectiveBase | None:
    """For `Trace_ELBO` and `TraceGraph_ELBO`, which have the same expectations."""
    return _ours("trace-elbo", settings, {"num_particles": 1})


def analytic_kl(**settings: Any) -> ObjectiveBase | None:
    """For `TraceMeanField_ELBO`."""
    return _ours("analytic-kl", settings, {"num_particles": 1})


def renyi(**settings: Any) -> ObjectiveBase | None:
    """For `RenyiELBO`, except at α = 1, which Pyro refuses."""
    found = (
        None
        if settings.get("alpha") == 1
        else _ours("renyi", settings, {"alpha": 0, "num_particles": 2})
    )
    return found and OrJoint(found)


def rws(
    *, insomnia: float = 1.0, model_has_params: bool = True, **settings: Any
) -> ObjectiveBase | None:
    """For `ReweightedWakeSleep` without a sleep phase and with a trained model."""
    settings.pop("num_sleep_particles", None)
    found = (
        _ours("rws", settings, {"num_particles": 2}) if insomnia == 1 and model_has_params else None
    )
    return found and OrJoint(found)


class OrJoint(Objective):
    """An objective that follows its refusal or warning: all data are one datum, as Pyro's have it,
    where none has a bound.
    """

    def __init__(self, objective: Objective) -> None:
        super().__init__(objective.bound_function, objective.gradient)
        self.retain_graph = objective.retain_graph

    def bound(self, model: Any, guide: Any, *args: Any, **kwargs: Any) -> Bound:
        try:
            with warnings.catch_warnings():
                warnings.filterwarnings("error", ".*joint=True")
                return super().bound(model, guide, *args, **kwargs)
        except (ProgramError, UserWarning) as error:
            if self.joint or "joint=True" not in str(error):
                raise
            self.joint = True
        return super().bound(model, guide, *args, **kwargs)


REPLACED: dict[str, Callable[..., ObjectiveBase | None]] = {
    "Trace_ELBO": trace_elbo,
    "TraceGraph_ELBO": trace_elbo,
    "TraceMeanField_ELBO": analytic_kl,
    "RenyiELBO": renyi,
    "ReweightedWakeSleep": rws,
}
"""By the name of Pyro's class: the objective for its settings, None where no objective has them.

`TraceEnum_ELBO` stays.
"""
Reporting = Generator[None, pytest.TestReport, pytest.TestReport]


def _ours(name: str, settings: dict[str, Any], taken: dict[str, Any]) -> ObjectiveBase | None:
    """The objective `name` with the settings `taken`, whose values are defaults; None where there
    are other settings.
    """
    if set(settings) - SAME_VALUE - set(taken):
        return None
    objective = OBJECTIVES[name](
        **{key: settings.get(key, default) for key, default in taken.items()}
    )
    objective.retain_graph = settings.get("retain_graph")
    return objective


class Record:
    """The outcome of each test and the objectives that it built, by node id."""

    def __init__(self) -> None:
        self.tests: dict[str, dict[str, Any]] = {}
        self.replaced: list[str] = []

    def replacement(self, name: str) -> Callable[..., Any]:
        """A function for the class `name` of Pyro: builds pyroae's objective where one has its
        settings, else Pyro's.
        """
        original = getattr(pyro.infer, name)

        @functools.wraps(original, updated=())
        def build(*args: Any, **kwargs: Any) -> Any:
            objective = None if args else REPLACED[name](**kwargs)
            if objective is None:
                return original(*args, **kwargs)
            self.replaced.append(name)
            return objective

        return build

    def skip_others(self) -> None:
        """Skip a test at the first `SVI` without an objective of pyroae: its outcome would be
        Pyro's.
        """
        original = pyro.infer.SVI.__init__

        @functools.wraps(original)
        def init(svi: Any, *args: Any, **kwargs: Any) -> None:
            if not self.replaced:
                pytest.skip("no objective is replaced")
            original(svi, *args, **kwargs)

        pyro.infer.SVI.__init__ = init

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self) -> Generator[None, object, object]:
        self.replaced.clear()
        return (yield)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(
        self, item: pytest.Item, call: pytest.CallInfo[None]
    ) -> Reporting:
        report = yield
        if call.when == "call" or not report.passed:
            chain = list(_chain(call.excinfo.value if call.excinfo else None))
            self.tests[item.nodeid] = {
                "outcome": "xfailed"
                if report.skipped and hasattr(report, "wasxfail")
                else report.outcome,
                "replaced": sorted(set(self.replaced)),
                "seconds": round(call.duration, 3),
                "refusal": next(
                    (str(error) for error in chain if isinstance(error, PyroaeError)), None
                ),
                "error": f"{type(chain[0]).__name__}: {chain[0]}"[:400] if chain else None,
            }
            Path(os.environ[RECORD]).write_text(json.dumps(self.tests, indent=1))
        return report


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """An error, its cause or context, theirs, and so on."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def pytest_configure(config: pytest.Config) -> None:
    """Replace the names in `pyro.infer` before the test files import them."""
    if RECORD in os.environ:
        record = Record()
        config.pluginmanager.register(record)
        if os.environ.get(REPLACE) == "1":
            for name in REPLACED:
                setattr(pyro.infer, name, record.replacement(name))
            record.skip_others()
