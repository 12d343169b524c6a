"""The table of `pyroae evaluate` fits into 80 columns; draws of the posterior name no method."""

import io

from rich.console import Console

from pyroae.commands.evaluation_tables import results_table
from pyroae.config import AISSettings, EvaluationSettings
from pyroae.evaluation.results import Result, method_of


def test_draws_of_the_posterior_do_not_name_a_method() -> None:
    """They do not change the estimate, and a second evaluation with others replaces it."""
    settings = EvaluationSettings(annealing=AISSettings(posterior_draws=20, thinning=3))
    assert method_of("ais", settings) == "ais, 1000 distributions"
    other = EvaluationSettings(annealing=AISSettings(leapfrog_steps=7, double=True))
    assert method_of("bdmc", other) == "bdmc, 1000 distributions, leapfrog steps 7, double"


def test_the_words_of_a_method_are_whole_in_eighty_columns() -> None:
    method = "ais, 1000 distributions, leapfrog steps 7"
    names = ("nll_ais", "distortion_ais")
    rows = [Result(name, 101.25, 0.478, 40, 16, 1.0, method, 0.0143) for name in names]
    console = Console(file=io.StringIO(), width=80)
    console.print(results_table(rows))
    assert isinstance(console.file, io.StringIO)
    text = console.file.getvalue()
    assert max(map(len, text.splitlines())) <= 80
    for word in (*method.split(), "101.250", "0.478", "0.0143", "annealing"):
        assert text.count(word) >= len(rows), word
