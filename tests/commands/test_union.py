"""Evaluations of a run are united in any order; other data and weights are kept apart."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray
from PIL import Image

from pyroae import cli, load_run
from pyroae.evaluation.annealing.checkpoint import Checkpoint
from pyroae.evaluation.results import Result, united
from pyroae.evaluation.sandwich import sandwich_of
from pyroae.runs.parts import by_part
from pyroae.runs.report import texts_in
from pyroae.runs.run import Run
from pyroae.runs.trees import first_part, read_tree, write_tree
from tests.pictures import in_full

pytestmark = pytest.mark.usefixtures("few_pictures", "short_pilot")
SAMPLED = ["--num-particles", "60", "--num-data", "12"]
ANNEALED = ["--method", "ais,bdmc", "--num-distributions", "5", "--num-chains", "2"]
ANNEALED += ["--num-data", "12", "--posterior-draws", "3"]
FEWER = ["--num-particles", "30", "--num-data", "8"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("union") / "ppca"
    options = "--system ppca --likelihood normal --latent 2 --epochs 2 --keep last"
    assert cli.main(["train", *options.split(), "--out", str(path)]) == 0
    return path


@pytest.fixture(scope="module")
def evaluated(trained: Path) -> Path:
    """Three evaluations of two parts of the data; tests that write take a copy."""
    run = Path(shutil.copytree(trained, trained.with_name("evaluated")))
    with in_full():
        evaluate(run, SAMPLED, ANNEALED)
    evaluate(run, FEWER)
    return run


@pytest.fixture
def copy(tmp_path: Path) -> Callable[[Path], Path]:
    return lambda run: Path(shutil.copytree(run, tmp_path / "run"))


def evaluate(run: Path, *options: list[str]) -> None:
    for one in options:
        assert cli.main(["evaluate", str(run), *one]) == 0


def rows(run: Path) -> list[dict[str, Any]]:
    return [{**row, "seconds": 0} for row in json.loads((run / "results.json").read_text())]


def trees(run: Path) -> dict[str, Any]:
    files = [run / "evaluation.nc", *(run / "evaluations").glob("*.nc")]
    return {str(file.relative_to(run)): read_tree(file) for file in files}


def pictures(run: Path) -> dict[str, str]:
    """What each picture says that it is of."""
    files = (run / "figures").rglob("*.png")
    return {str(f.relative_to(run)): texts_in(f).get("Description", "") for f in files}


def same_trees(one: Any, other: Any) -> bool:
    assert set(one.groups) == set(other.groups)
    for group in one.groups:
        first, second = one[group].to_dataset(), other[group].to_dataset()
        assert set(first.data_vars) == set(second.data_vars), group
        for name in first.data_vars:
            np.testing.assert_array_equal(first[name].values, second[name].values)
    return True


def sections(run: Path) -> dict[str, str]:
    page = (run / "report.html").read_text()
    parts = page.split("<section>")[1:]
    return {re.findall("<h2>(?:Evaluation: )?(.*?)</h2>", text)[0]: text for text in parts}


def test_evaluations_in_any_order_leave_the_union(
    trained: Path, evaluated: Path, copy: Callable[[Path], Path]
) -> None:
    one, other = evaluated, copy(trained)
    evaluate(other, FEWER)
    with in_full():
        evaluate(other, ANNEALED, SAMPLED)
    assert rows(one) == rows(other)
    assert pictures(one) == pictures(other)
    left, right = trees(one), trees(other)
    assert set(left) == set(right) == {"evaluation.nc", "evaluations/digits-test-8-last-epoch-2.nc"}
    assert all(same_trees(left[name], right[name]) for name in left)
    # the last evaluation of the second run has no annealing, that of the first no other pictures
    for name in ("sandwich", "bound_curve", "khat", "rate_distortion"):
        first, second = (
            np.asarray(Image.open(run / "figures" / f"{name}.png")) for run in (one, other)
        )
        assert np.array_equal(first, second), name
    pages = [(run / "report.html").read_text() for run in (one, other)]
    cells, others = (re.findall('<h2>.*?</h2>|<td.*?</td>|alt=".*?"', page) for page in pages)
    assert cells == others


def test_each_row_tree_and_picture_says_what_it_is_of(evaluated: Path) -> None:
    run = evaluated
    found = Run(run).results()
    for row in found:
        assert (row.data, row.split, row.checkpoint) == ("digits", "test", "last, epoch 2")
        assert row.method, row.name
    methods = {(row.name, row.num_data): row.method for row in found}
    assert methods["nll", 12] == "is, guide"
    assert methods["nll_ais", 12] == "ais, 5 distributions"
    assert methods["bdmc_gap", 12] == "bdmc, 5 distributions"
    named = {(row.name, row.num_data): row for row in found}
    for name in ("nelbo", "nll", "nll_ais"):
        assert 0 < named[name, 12].monte_carlo_se < 10
    first, second = by_part(Run(run), found)
    assert (first.num_data, second.num_data) == (12, 8)
    captions = pictures(run)
    assert captions["figures/khat.png"] == f"{first.title}; is, guide, K = 60"
    assert "ais, 5 distributions, K = 2" in captions["figures/sandwich.png"]
    assert captions["figures/rate_distortion.png"] == (
        f"{first.title}; curve: ais, 5 distributions, K = 2; point: guide, K = 100"
    )
    beside = f"figures/{second.folder}/khat.png"
    assert captions[beside] == f"{second.title}; is, guide, K = 30"
    for title, text in sections(run).items():
        others = {p.title for p in (first, second)} - {title}
        assert not any(other in text for other in others), "shown over other data"
    assert 'alt="12 data of digits' in sections(run)[first.title]
    tree = read_tree(run / "evaluation.nc")
    assert tree["per_datum"]["log_px"].attrs["num_particles"] == 60
    assert tree["per_datum"]["log_px_ais"].attrs["method"] == "ais, 5 distributions"
    assert {"simulated", "posterior", "bound_curve"} <= {g.strip("/") for g in tree.groups}
    assert load_run(run).results["nll"].num_data == 12


def test_a_variable_with_the_name_of_a_group_is_read(tmp_path: Path) -> None:
    """`DataTree.load` leaves such variables in the file, which is closed afterwards."""
    one = xarray.Dataset({"log_prior": ("datum", [1.0, 2.0])}, attrs={"of": "q"})
    tree = xarray.DataTree.from_dict({"/sample_stats_guide": one, "/log_prior": one})
    tree.attrs["method"] = "is"
    write_tree(tmp_path / "tree.nc", tree)
    found = read_tree(tmp_path / "tree.nc")
    write_tree(tmp_path / "again.nc", found)
    assert found.identical(tree)


def test_the_same_figure_is_replaced_and_others_stay(
    evaluated: Path, copy: Callable[[Path], Path]
) -> None:
    run = copy(evaluated)
    before = read_tree(run / "evaluation.nc")
    evaluate(run, [*SAMPLED, "--seed", "7"])
    old, new = (
        {(r["name"], r["num_data"], r["method"]): r["estimate"] for r in rows(path)}
        for path in (evaluated, run)
    )
    assert list(old) == list(new)
    changed = {name for name, n, method in old if old[name, n, method] != new[name, n, method]}
    assert {"nll", "nll_psis", "nelbo", "rate"} <= changed
    assert not {"nll_ais", "bdmc_gap", "nll_exact"} & changed
    after = read_tree(run / "evaluation.nc")["per_datum"]
    assert not np.array_equal(after["log_px"], before["per_datum"]["log_px"])
    assert np.array_equal(after["log_px_ais"], before["per_datum"]["log_px_ais"])
    assert (run / "evaluation.yaml").read_text().count("split: test") == 3


def test_fewer_draws_leave_the_draws_of_more(evaluated: Path, copy: Callable[[Path], Path]) -> None:
    """Both rows stay; the tree, the pictures and the sandwich are those of the larger K."""
    run = copy(evaluated)
    evaluate(run, ["--num-particles", "40", "--num-data", "12"])
    assert [r.num_particles for r in Run(run).results() if r.name == "nll"] == [40, 60, 30]
    tree: Any = read_tree(run / "evaluation.nc")
    assert tree["per_datum"]["draws"].values.tolist() == 12 * [60]
    assert tree["bound_curve"]["particles"].values[-1] == 60
    assert "K = 60" in pictures(run)["figures/bound_curve.png"]


@pytest.mark.slow
def test_a_longer_training_is_another_part(evaluated: Path, copy: Callable[[Path], Path]) -> None:
    run = copy(evaluated)
    assert cli.main(["train", "--resume", str(run), "--epochs", "3"]) == 0
    evaluate(run, FEWER)
    assert rows(evaluated) == [r for r in rows(run) if r["checkpoint"] == "last, epoch 2"]
    part = first_part(run / "evaluation.nc")
    assert part is not None
    assert (part.checkpoint, part.num_data) == ("last, epoch 3", 8)
    folder = "digits-test-12-last-epoch-2"
    assert same_trees(
        read_tree(run / "evaluations" / f"{folder}.nc"), read_tree(evaluated / "evaluation.nc")
    )
    assert (run / "figures" / folder / "sandwich.png").is_file()
    assert [title.partition(" ")[0] for title in sections(run)] == ["8", "12", "8"]


def test_annealing_that_was_stopped_does_not_go_on_with_other_weights(
    trained: Path, copy: Callable[[Path], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = copy(trained)

    def stopped(self: Checkpoint, first: int, block: Any, *, now: bool = False) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoint, "tick", stopped)
        assert cli.main(["evaluate", str(run), *ANNEALED]) == 130
    (left,) = (run / "annealing").iterdir()
    assert cli.main(["train", "--resume", str(run), "--epochs", "3"]) == 0
    with monkeypatch.context() as patch:
        patch.setattr(Checkpoint, "tick", stopped)
        assert cli.main(["evaluate", str(run), *ANNEALED]) == 130
    assert len(set((run / "annealing").iterdir()) - {left}) == 1
    evaluate(run, ANNEALED)
    assert {r["checkpoint"] for r in rows(run)} == {"last, epoch 3"}


def test_means_are_those_of_the_variables_with_the_same_method(
    trained: Path, copy: Callable[[Path], Path]
) -> None:
    """In whatever order: each variable has the method and K of a row, whose mean it has."""
    few, run = ["--num-data", "6"], copy(trained)
    annealed = ["--method", "ais", "--num-distributions", "6", *few]
    evaluate(
        run,
        ["--num-particles", "60", "--proposal", "wider", *few],
        [*annealed, "--num-chains", "4", "--start", "guide", "--posterior-draws", "3"],
        ["--num-particles", "40", "--retry", "local", *few],
        [*annealed, "--num-chains", "3", "--posterior-draws", "2"],
    )
    found = {(r["name"], r["method"], r["num_particles"]): r["estimate"] for r in rows(run)}
    tree = read_tree(run / "evaluation.nc")
    names = {"log_px": ("nll", -1), "log_px_ais": ("nll_ais", -1), "nelbo": ("nelbo", 1)}
    for variable, (name, sign) in {**names, "rate": ("rate", 1)}.items():
        values = tree["per_datum"][variable]
        row = (name, values.attrs["method"], int(values.attrs["num_particles"]))
        assert sign * float(values.mean()) == pytest.approx(found[row]), variable
    curve = tree["rate_distortion"].to_dataset()
    ends = {name: curve[name][-1] for name in ("rate", "distortion")}
    for name, values in ends.items():
        row = (f"{name}_ais", values.attrs["method"], int(values.attrs["num_particles"]))
        assert float(values.mean()) == pytest.approx(found[row])
    log_px = -float(sum(values.mean() for values in ends.values()))
    same = ("nll_ais", *row[1:])
    assert log_px == pytest.approx(-found[same])
    weights = tree["sample_stats"].to_dataset()["log_weight"]
    assert weights.attrs == tree["posterior"]["z"].attrs
    row = ("nll_ais", weights.attrs["method"], int(weights.attrs["num_particles"]))
    mean = (np.logaddexp.reduce(weights.values, 0) - np.log(len(weights))).mean()
    assert mean == pytest.approx(-found[row])


def test_runs_of_earlier_versions_are_read(
    trained: Path, evaluated: Path, copy: Callable[[Path], Path]
) -> None:
    """Results without the new fields, a tree and pictures that record nothing, one evaluation."""
    run = copy(trained)
    fields = {"name": "nll", "estimate": 90.0, "se": None, "num_data": 12, "num_particles": 5}
    (run / "results.json").write_text(json.dumps([{**fields, "seconds": 1.0}]))
    assert load_run(run).results["nll"].estimate == 90.0
    tree = read_tree(evaluated / "evaluation.nc")
    tree.attrs = {}
    tree.to_netcdf(run / "evaluation.nc", engine="h5netcdf")
    shutil.copy(run / "figures" / "training_curves.png", run / "figures" / "khat.png")
    (run / "evaluation.yaml").write_text("method: is\nnum_particles: 5\nnum_data: 30\n")
    evaluate(run, FEWER)
    titles = list(sections(run))
    assert titles[0].startswith("8 data of digits")
    assert titles[1] == "12 data, which an earlier version of pyroae did not record"
    assert (run / "evaluations" / "unrecorded-12.nc").is_file()
    assert (run / "figures" / "unrecorded-12" / "khat.png").is_file()
    assert (run / "figures" / "training_curves.png").is_file()
    assert (run / "evaluation.yaml").read_text().count("num_particles") == 2


def row(name: str, estimate: float, method: str, k: int, error: float = 0.1) -> Result:
    return Result(name, estimate, 1.0, 10, k, 0.1, method, error)


def test_the_sandwich_of_rows() -> None:
    """One ELBO, that of the most draws; a BDMC gap counts for annealing with its settings only."""
    rows = [
        row("nelbo", 95.0, "guide", 100, 0.3),
        row("nelbo", 95.2, "guide", 2000, 0.1),
        row("nll", 91.0, "is, guide", 50),
        row("nll", 90.0, "is, guide", 5000),
        row("nll", 89.5, "is, local", 1000),
        row("nll_ais", 89.4, "ais, 100 distributions", 16),
        row("bdmc_gap", 0.5, "bdmc, 100 distributions", 16),
        row("bdmc_gap", 9.0, "bdmc, 10 distributions", 16),
    ]
    bounds = sandwich_of(rows)
    assert list(bounds) == [
        "ELBO",
        "IWAE, K = 5,000",
        "IS, K = 1,000, local",
        "AIS",
        "AIS + BDMC gap, upper",
    ]
    assert bounds["ELBO"] == (-95.2, pytest.approx(0.196, abs=1e-3))
    assert bounds["AIS + BDMC gap, upper"][0] == pytest.approx(-88.9)
    assert "AIS + BDMC gap, upper" not in sandwich_of([r for r in rows if r.estimate != 0.5])


def test_upper_bounds_in_the_sandwich_say_how_many_data_are_flagged() -> None:
    rows = [
        row("nll", 91.0, "is, guide", 500),
        row("eubo", -90.0, "is, guide", 500),
        row("eubo_flagged", 0.0, "is, guide", 500),
        row("cubo", -90.5, "is, guide", 500, 0.2),
        row("cubo_flagged", 3.0, "is, guide", 500),
    ]
    bounds = sandwich_of(rows)
    assert list(bounds) == ["IWAE, K = 500", "EUBO, upper", "CUBO, upper, 3 flagged"]
    assert bounds["EUBO, upper"] == (-90.0, pytest.approx(0.196, abs=1e-3))
    assert bounds["CUBO, upper, 3 flagged"] == (-90.5, pytest.approx(0.392, abs=1e-3))


def test_an_upper_bound_that_is_not_reported_again_is_gone() -> None:
    """With other draws, or with more of them, most of the 10 data are flagged."""
    before = [row("cubo", -90.5, "is, guide", 500), row("cubo_flagged", 3.0, "is, guide", 500)]
    again = [row("cubo_flagged", 6.0, "is, guide", 500)]
    assert {r.name for r in united(before, again)} == {"cubo_flagged"}
    assert {r.name for r in united(again, before)} == {"cubo", "cubo_flagged"}
    half = [row("cubo_flagged", 5.0, "is, guide", 500)]
    assert {r.name for r in united(before, half)} == {"cubo", "cubo_flagged"}
    more = united(before, [row("cubo_flagged", 6.0, "is, guide", 5000)])
    assert [r.num_particles for r in more if r.name == "cubo"] == [500]
    assert sandwich_of(more) == {}
