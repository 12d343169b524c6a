"""Evaluations of standardized data are in the units of the file."""

import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch.distributions import MultivariateNormal

from pyroae.cli import main
from pyroae.runs.loading import load_run
from pyroae.runs.run import Run

pytestmark = pytest.mark.usefixtures("few_pictures", "short_pilot")

METHODS = "is,exact,quadrature,ais,bdmc,gaps"


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of a linear-Gaussian system on a table with columns of very different units."""
    folder = tmp_path_factory.mktemp("units")
    noise = np.random.default_rng(0)
    z = noise.normal(size=(80, 1))
    x = z * [2.0, -1.0, 0.5] + 0.5 * noise.normal(size=(80, 3))
    table = x * [100.0, 0.01, 5.0] + [1000.0, 0.0, 20.0]
    file = folder / "table.csv"
    np.savetxt(file, table, delimiter=",", header="a,b,c", comments="", fmt="%.9g")
    words = f"train --data {file} --system ppca --scale standard --latent 1 --epochs 3 --lr 0.01"
    assert main([*words.split(), "--batch-size", "32", "--out", str(folder / "run")]) == 0
    methods = f"--method {METHODS} --num-particles 400 --num-distributions 15 --num-chains 8"
    assert main(["evaluate", str(folder / "run"), *methods.split()]) == 0
    return folder / "run"


def exact_in_the_file(path: Path) -> tuple[torch.Tensor, Any]:
    """Log p(x) by the normal density of the values as the file has them, `[N]`."""
    found: Any = load_run(path)
    by = found.data.standardization
    weight, bias, scale = (part.double().detach() for part in found.system.linear_gaussian())
    weight, bias = weight * by.deviation[:, None], bias * by.deviation + by.mean
    noise = torch.diag((scale * by.deviation).square())
    x = by.inverse(found.data.test.x.double())
    return MultivariateNormal(bias, weight @ weight.T + noise).log_prob(x), by


def test_every_estimate_is_the_density_in_the_units_of_the_file(trained: Path) -> None:
    log_px, by = exact_in_the_file(trained)
    nll = -log_px.mean().item()
    shift = by.deviation.log().sum().item()
    assert abs(shift) > 1  # so that standardized densities fail
    rows = {row.name: row for row in Run(trained).results()}
    assert rows["nll_exact"].estimate == pytest.approx(nll, abs=1e-4)
    assert rows["nll_quadrature"].estimate == pytest.approx(nll, abs=1e-3)
    for name in ("nll", "nll_jackknife", "nll_psis", "nll_50", "nll_ais"):
        assert rows[name].estimate == pytest.approx(nll, abs=0.15), name
    assert rows["nll_exact"].se == pytest.approx(log_px.std().item() / math.sqrt(len(log_px)))
    elbo = rows["nll_exact"].estimate + rows["inference_gap"].estimate
    assert rows["nelbo"].estimate == pytest.approx(elbo, abs=1e-6)
    parts = rows["distortion"].estimate + rows["rate"].estimate
    assert rows["nelbo"].estimate == pytest.approx(parts, abs=1e-6)
    assert rows["bdmc_lower"].estimate < rows["bdmc_upper"].estimate + 0.5
    assert abs(rows["bdmc_lower"].estimate + nll) < abs(shift) - 0.5


def test_the_datatree_has_values_and_densities_in_the_units_of_the_file(trained: Path) -> None:
    import xarray

    log_px, by = exact_in_the_file(trained)
    found: Any = load_run(trained)
    tree: Any
    with xarray.open_datatree(trained / "evaluation.nc") as tree:
        x = tree["observed_data"]["x"].values
        np.testing.assert_allclose(x, by.inverse(found.data.test.x).numpy(), rtol=1e-5)
        for group in ("prior_predictive", "posterior_predictive"):
            mean = tree[group]["x"].mean(("chain", "draw", "datum")).values
            assert abs(mean[0] - 1000) < 200, group
        of = tree["per_datum"]
        np.testing.assert_allclose(of["log_px_exact"].values, log_px.numpy(), atol=1e-3)
        weights = tree["sample_stats_guide"]
        draws = weights["log_weight"].mean("sample").values
        np.testing.assert_allclose(-draws.mean(), of["nelbo"].values.mean(), atol=0.3)
        total = weights["log_lik"] + weights["log_prior"] - weights["log_q"]
        np.testing.assert_allclose(weights["log_weight"].values, total.values, atol=1e-3)
        curve = tree["rate_distortion"]
        last = curve["rate"].values[-1] + curve["distortion"].values[-1]
        np.testing.assert_allclose(-last, of["log_px_ais"].values, atol=1e-4)


def test_the_files_say_what_the_densities_are_of(
    trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["evaluate", str(trained), "--num-particles", "50"]) == 0
    assert "in the units of the data file" in capsys.readouterr().out
    page = (trained / "report.html").read_text()
    assert "in the units of the data file" in page
    assert "nats per datum of standardized values" in page
    assert json.loads((trained / "results.json").read_text())


def test_other_data_have_the_columns_of_the_training_by_name(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = pd.read_csv(trained.parent / "table.csv")
    table.to_csv(tmp_path / "same.csv", index=False)
    table[["c", "a", "b"]].to_csv(tmp_path / "turned.csv", index=False)
    table.rename(columns={"c": "d"}).to_csv(tmp_path / "other.csv", index=False)
    for file in ("same", "turned"):
        words = f"evaluate {trained} --data {tmp_path / file}.csv --method exact"
        assert main(words.split()) == 0
    rows = {
        row.data.partition(",")[0]: row for row in Run(trained).results() if row.name == "nll_exact"
    }
    assert rows["turned"].estimate == pytest.approx(rows["same"].estimate, abs=1e-6)
    capsys.readouterr()
    assert main(["evaluate", str(trained), "--data", str(tmp_path / "other.csv")]) != 0
    assert "no column 'c'" in capsys.readouterr().err


def test_training_data_that_changed_scale_no_other_data(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    shutil.copytree(trained, run)
    table = trained.parent / "table.csv"
    before = table.read_text()
    shutil.copy(table, tmp_path / "new.csv")
    try:
        table.write_text("a,b,c\n" + "".join(f"{i}.5,{i * 2},{i * 3}.5\n" for i in range(80)))
        capsys.readouterr()
        assert main(["evaluate", str(run), "--data", str(tmp_path / "new.csv")]) != 0
        assert "have changed since the run" in capsys.readouterr().err
        assert main(["sample", str(run), "--out", str(tmp_path / "new-samples.csv")]) != 0
    finally:
        table.write_text(before)
