"""Rows, claims and specifications of papers: verdicts, completeness, files, the generated page."""

import json
import math
from dataclasses import asdict, replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

from pyroae.comparison.results import Cell, Entry, Outcome
from pyroae.comparison.scores import Score
from pyroae.config import RunConfig
from pyroae.data.named_datasets import DATASETS
from pyroae.errors import ConfigError, RunError
from pyroae.papers import PAPERS, Claim, PaperRow, burda_2016, rainforth_2018, wu_2017
from pyroae.papers.page import number, section
from pyroae.papers.paper import Work
from pyroae.papers.result_files import read_result, record_of_here, write_result
from pyroae.papers.trained import Trainings, lower_nll, nll, units
from pyroae.papers.wu_2017 import mean_interval
from tests.scripts import script

ROOT = Path(__file__).parents[1]
INF, NAN = math.inf, math.nan


@pytest.mark.parametrize(
    ("low", "estimate", "high", "tolerance", "verdict"),
    [
        (86.5, 86.7, 86.9, 1.0, "agrees"),
        (87.4, 87.6, 87.8, 1.0, "agrees"),  # within the tolerance, outside the interval
        (86.0, 88.5, 91.0, 1.0, "agrees"),  # in the interval, beyond the tolerance
        (87.7, 88.5, 89.3, 1.0, "differs"),  # the interval and the tolerance do not add up
        (84.3, 84.5, 84.7, 1.0, "differs"),
        (86.7, 86.8, 86.9, 0.0, "agrees"),
        (86.8, 86.9, 87.0, 0.0, "differs"),
        (NAN, 86.0, NAN, 1.0, "agrees"),  # one seed has no interval
        (NAN, 88.0, NAN, 1.0, "differs"),
        (86.5, 86.7, 86.9, NAN, "not comparable"),
        (NAN, NAN, NAN, 1.0, "not measured"),
    ],
)
def test_verdict_of_a_row(
    low: float, estimate: float, high: float, tolerance: float, verdict: str
) -> None:
    row = PaperRow("Table 1", "VAE", "nats", 86.76, tolerance=tolerance)
    assert row.measured(estimate, low, high).verdict == verdict
    assert replace(row, not_comparable="other data").verdict == "not comparable"


def test_a_derived_value_takes_the_place_of_a_printed_one() -> None:
    row = PaperRow("toy", "slope", "1", NAN, tolerance=0.0, derived=0.5)
    assert row.measured(0.48, 0.45, 0.51).verdict == "agrees"
    assert row.measured(0.48, 0.45, 0.49).verdict == "differs"
    assert replace(row, derived=NAN).measured(0.48, 0.45, 0.51).verdict == "no number printed"
    assert replace(row, printed=1.0).measured(0.48, 0.45, 0.51).difference == pytest.approx(-0.52)


@pytest.mark.parametrize(
    ("low", "estimate", "high", "verdict"),
    [
        (0.1, 0.4, 0.7, "holds"),
        (-0.1, 0.4, 0.9, "within noise"),
        (0.0, 0.4, 0.8, "within noise"),
        (-0.7, -0.4, -0.1, "contradicted"),
        (-INF, 0.4, INF, "within noise"),
        (NAN, 0.4, NAN, "not measured"),
    ],
)
def test_verdict_of_a_claim(low: float, estimate: float, high: float, verdict: str) -> None:
    assert Claim("a below b", "nats").measured(estimate, low, high).verdict == verdict


@pytest.mark.parametrize("name", list(PAPERS))
def test_specifications_are_complete(name: str) -> None:
    """Every row has its place in the paper, and a tolerance or a reason; nothing is measured."""
    paper = PAPERS.parse(name)
    assert paper.name == name
    assert paper.title
    assert paper.reference
    assert paper.data
    keys: list[Any] = [*(row.key for row in paper.rows), *(claim.key for claim in paper.claims)]
    assert keys
    assert len(keys) == len(set(keys))
    for row in paper.rows:
        assert row.table
        assert math.isnan(row.estimate)
        assert row.not_comparable or row.tolerance >= 0, row.key
        assert row.not_comparable or not math.isnan(row.expected), row.key
    assert all(math.isnan(claim.estimate) for claim in paper.claims)
    assert set(paper.scales) <= {"short", "full"}
    assert all(scale.protocol and scale.seconds > 0 for scale in paper.scales.values())
    assert all(dataset in DATASETS for dataset in paper.datasets)


def test_printed_numbers_of_burda() -> None:
    """A few of Table 1, and the orderings that the paper claims are those of its own numbers."""
    rows = {row.key: row.printed for row in burda_2016.burda_2016().rows}
    assert rows["Table 1", "IWAE, one layer, k = 50", "NLL, nats per image"] == 84.78
    assert rows["Table 1", "IWAE, two layers, k = 50", "NLL, nats per image"] == 82.90
    assert rows["Table 1", "IWAE, one layer, k = 50", "active units"] == 25
    printed = {one.entry: one.row.printed for one in burda_2016.ROWS if one.figure is nll}
    assert all(printed[one.better] < printed[one.worse] for one in burda_2016.CLAIMS)


def test_printed_orderings_of_rainforth_and_wu() -> None:
    for text, better, worse, figure in rainforth_2018.ORDERINGS:
        column = int(figure is lower_nll)
        printed = rainforth_2018.PRINTED
        assert printed[better][column] > printed[worse][column], text
    assert all(wu_2017.PRINTED[one] > wu_2017.PRINTED[two] for one, two in wu_2017.PAIRS)


@pytest.mark.parametrize(
    ("protocol", "entries"),
    [
        (burda_2016.SHORT, [one.entry for one in burda_2016.ROWS_OF_SHORT]),
        (burda_2016.FULL, [one.entry for one in burda_2016.ROWS]),
        (rainforth_2018.SHORT, [rainforth_2018.entry(n, 16) for n in rainforth_2018.PRINTED]),
        (rainforth_2018.FULL, [rainforth_2018.entry(n, 64) for n in rainforth_2018.PRINTED]),
        (wu_2017.SHORT.protocol, [wu_2017.SHORT.entry]),
        (wu_2017.FULL.protocol, [wu_2017.FULL.entry]),
    ],
)
def test_every_row_is_a_cell_of_its_study(protocol: Any, entries: list[Entry]) -> None:
    config = protocol.config(entries, "data")
    cells = set(config.cells())
    for entry in entries:
        for seed in protocol.seeds:
            assert Cell.of(entry, seed) in cells
            run = config.run_config(Cell.of(entry, seed), 60_000, lambda settings: 1.0)
            assert (run.epochs, run.max_steps, run.max_seconds) == (protocol.epochs, None, None)


def test_a_full_row_is_the_run_of_the_command_train() -> None:
    """`pyroae train` with the schedule of the paper has the settings of the row, so is adopted."""
    given = {
        "system": "vae",
        "data": "mnist",
        "valid_fraction": 0,
        "latent": 50,
        "hidden": [200, 200],
        "activation": "tanh",
        "binarize": "dynamic",
        "objective": "iwae",
        "num_particles": 1,
        "epochs": 3280,
        "batch_size": 20,
        "schedule": "burda",
        "optimizer_args": {"eps": 1e-4},
        "lr": 1e-3,
        "keep": "last",
        "seed": 0,
    }
    cell = Cell.of(burda_2016.entry("VAE", "one layer", 1), 0)
    config = burda_2016.FULL.config([one.entry for one in burda_2016.ROWS], "data")
    row = config.run_config(cell, 60_000, lambda settings: 1.0)
    trained = RunConfig.from_mapping({**given, "valid_fraction": 0.0}).to_dict()
    assert {n: v for n, v in row.to_dict().items() if v != trained[n]} == {}


def outcomes(name: str, gain: float, se: float = 0.0) -> list[Outcome]:
    """Three seeds of 40 data whose log p(x) is higher by `gain` than that of gain 0."""
    base = torch.linspace(-120.0, -80.0, 40, dtype=torch.float64)
    found = []
    for seed in range(3):
        noise = 0.01 * torch.randn(40, generator=torch.Generator().manual_seed(seed)).double()
        score = Score(
            base + gain + noise,
            torch.full((40,), se, dtype=torch.float64),
            reliable=torch.ones(40, dtype=torch.bool),
        )
        figures = {"active_units": 20.0 + seed}
        found.append(Outcome(Cell(name, 1, seed), score, figures, 1, 1, 1, 1.0))
    return found


def trainings(**of: list[Outcome]) -> Trainings:
    made: Any = SimpleNamespace(of=lambda entry: of[entry.objective])
    return made


def test_figures_of_trainings() -> None:
    """The claim is above 0 where `better` has the lower NLL, and its opposite is contradicted."""
    two, claim = trainings(a=outcomes("a", 0.5), b=outcomes("b", 0.0)), Claim("a below b", "nats")
    a, b = Entry("a", 1), Entry("b", 1)
    found = lower_nll(two, a, b)
    assert found.value == pytest.approx(0.5, abs=1e-6)
    assert claim.measured(*found).verdict == "holds"
    assert claim.measured(*lower_nll(two, b, a)).verdict == "contradicted"
    assert nll(two, a).value == pytest.approx(99.5, abs=0.05)
    assert nll(two, a).high - nll(two, a).value == pytest.approx(1.96 * 11.83 / 40**0.5, rel=0.05)
    assert units(two, a).value == 21
    assert units(two, a).high == pytest.approx(21 + 4.303 / 3**0.5, rel=1e-3)  # Student's t


def test_a_claim_is_not_told_from_scores_of_unknown_error() -> None:
    wide = trainings(a=outcomes("a", 0.5, se=1.2), b=outcomes("b", 0.0, se=1.2))
    found = lower_nll(wide, Entry("a", 1), Entry("b", 1))
    assert found.high - found.value > 2 * 1.2**2 / 2  # the biases of both scores, se²/2 each
    assert Claim("a below b", "nats").measured(*found).verdict == "within noise"
    (first, *_) = outcomes("a", 0.5)
    unknown = [replace(o, score=replace(o.score, reliable=None)) for o in outcomes("a", 0.5)]
    assert first.score.reliable is not None
    found = lower_nll(trainings(a=unknown, b=outcomes("b", 0.0)), Entry("a", 1), Entry("b", 1))
    assert math.isinf(found.high)
    assert Claim("a below b", "nats").measured(*found).verdict == "within noise"


def test_interval_of_one_model_covers() -> None:
    """In 93 to 97 % of 2,000 samples of ten data the interval contains the mean."""
    values = torch.randn(2000, 10, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    found = [mean_interval(row) for row in values]
    assert 0.93 < sum(one.holds_zero for one in found) / 2000 < 0.97


def test_words_of_rows() -> None:
    work = Work("short", Path("x"), only="k = 5")
    assert [work.wants(t) for t in ("IWAE, K = 5", "IWAE, k = 50", "k = 5, VAE")] == [
        True,
        False,
        True,
    ]
    assert Work("short", Path("x")).wants("anything")


def test_what_was_measured_is_kept(tmp_path: Path) -> None:
    work, calls = Work("short", tmp_path), []

    def measure() -> dict[str, float]:
        calls.append(1)
        return {"snr": 2.5}

    assert work.kept("snr", {"draws": 10}, measure) == {"snr": 2.5}
    assert work.kept("snr", {"draws": 10}, measure) == {"snr": 2.5}
    assert len(calls) == 1
    with pytest.raises(ConfigError, match="was measured with draws = 10, not 20"):
        work.kept("snr", {"draws": 20}, measure)
    (tmp_path / "snr.json").write_text('{"settings": {')
    with pytest.raises(RunError, match="cannot be read"):
        work.kept("snr", {"draws": 10}, measure)


def test_results_are_restored_from_their_file(tmp_path: Path) -> None:
    paper = burda_2016.burda_2016()
    file = tmp_path / "result.json"
    result, record = read_result(file, paper, "full")
    assert not result.is_measured
    assert record == {}
    row = paper.rows[0].measured(87.1, 86.6, 87.6)
    claim = paper.claims[0].measured(0.4, -INF, INF)
    result = result.updated(row, 5.0).updated(claim, 7.0)
    write_result(file, result, record_of_here())
    again, record = read_result(file, paper, "full")
    assert str(asdict(again)) == str(asdict(result))  # nan is not equal to itself
    assert again.rows[0].verdict == "agrees"
    assert again.claims[0].verdict == "within noise"
    assert set(record) == {"commit", "cores", "date", "machine", "versions"}
    content = json.loads(file.read_text())
    content["rows"][0]["printed"] = 1.0  # the printed number is that of the specification
    file.write_text(json.dumps(content))
    assert read_result(file, paper, "full")[0].rows[0].printed == 86.76
    file.write_text("{}")
    with pytest.raises(RunError, match="holds no result of a paper"):
        read_result(file, paper, "full")
    with pytest.raises(ConfigError, match="has no row"):
        result.updated(PaperRow("Table 9", "x", "nats", 1.0), 1.0)


def test_section_of_the_page() -> None:
    paper = burda_2016.burda_2016()
    short = paper.unmeasured("short")
    short = short.updated(paper.rows[0].measured(101.5, 100.0, 103.0), 60.0)
    short = short.updated(paper.claims[0].measured(2.4, 2.0, 2.8), 60.0)
    text = section(paper, [(short, record_of_here()), (paper.unmeasured("full"), {})])
    assert "| 86.76 | 101.50 | 100.00 to 103.00 | +14.74 | not comparable (1) |" in text
    assert "(1) Not comparable: trained for 3 epochs; the paper trains for 3,280." in text
    assert "| 2.40 | 2.00 to 2.80 | holds |" in text
    assert "Not measured; estimated time 7 d 10 h." in text
    assert [number(x) for x in (1234.5, -0.00651, 0.0, INF, NAN)] == [
        "1,234",
        "−0.00651",
        "0.00",
        "∞",
        "",
    ]


def page_script() -> ModuleType:
    return script("docs/_papers.py")


def test_the_page_is_generated() -> None:
    text = (ROOT / "docs" / "benchmarks" / "papers.md").read_text()
    assert text == page_script().page(), "run: python docs/_papers.py"
