"""All the ways to log p(x) against each other, and the command that runs them."""

import json
import math
import re
import shutil
from pathlib import Path
from typing import Any

import arviz
import numpy as np
import pytest
import torch

from pyroae import zoo
from pyroae.cli import main
from pyroae.config import AISSettings, TrainConfig
from pyroae.config.evaluation import METHODS, POSTERIOR_DRAWS, EvaluationSettings
from pyroae.data.loading import load
from pyroae.errors import ConfigError, ProgramError
from pyroae.evaluation.adaptive_quadrature import quadrature
from pyroae.evaluation.annealing import checkpoint
from pyroae.evaluation.annealing.block import Block
from pyroae.evaluation.annealing.bounds import ais, bdmc
from pyroae.evaluation.exact import exact_log_likelihood
from pyroae.evaluation.importance.likelihood import log_likelihood
from pyroae.evaluation.inference_gaps import gaps
from pyroae.evaluation.mutual_information import information
from pyroae.evaluation.summary import evaluate
from pyroae.nn import MLP
from pyroae.programs.traces import prior_of
from pyroae.training.fitting import fit
from tests.evaluation.importance import test_proposals
from tests.pictures import leave_out_pictures

EVERY = ",".join(METHODS)
SHORT = ["--num-distributions", "12", "--num-chains", "4", "--leapfrog-steps", "3"]
SHORT += ["--thinning", "1"]
SMALL = ["--data", "digits", "--latent", "2", "--epochs", "20", "--lr", "3e-3"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A VAE with two latent units on the digits, trained for as long as a test may take."""
    path = tmp_path_factory.mktemp("runs")
    assert main(["train", "--system", "vae", *SMALL, "--hidden", "50", "--out", f"{path}/vae"]) == 0
    return path


def test_quadrature_importance_sampling_and_annealing_agree_datum_by_datum() -> None:
    """A trained nonlinear decoder with two latent units: within 0.02 nats a datum."""
    torch.manual_seed(0)
    digits = load("digits", binarize="static")
    assert digits.test is not None
    vae = zoo.vae(digits.train, latent=2, encoder=MLP((50,)))
    fit(vae, digits, config=TrainConfig(epochs=20, lr=3e-3))
    x = digits.test.x[:8]
    exact = quadrature(vae.model, vae.guide, x)
    sampled = log_likelihood(vae.model, vae.guide, x, num_particles=50_000, seed=0)
    settings = AISSettings(64, 100, start="guide", leapfrog_steps=5, double=True)
    annealed = ais(vae.model, vae.guide, x, settings=settings, seed=0)
    assert bool(exact.converged.all())
    assert (sampled.log_px - exact.log_px).abs().max() < 0.02
    assert (annealed.log_px - exact.log_px).abs().max() < 0.02
    both = bdmc(vae.model, None, x, settings=AISSettings(16, 30), seed=0)
    assert -4 * both.mean_gap_se < both.mean_gap < 0.5
    elbo = -evaluate(vae, x, EvaluationSettings(("is",), 100)).diagnostics.nelbo
    assert (exact.log_px - elbo).mean() > 0.05  # there was something to find


def test_one_command_does_it_all(
    runs: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    leave_out_pictures(monkeypatch, keep=("extremes", "likelihood_per_datum"))
    monkeypatch.setenv("COLUMNS", "120")  # labels in one line each
    assert (
        main(
            [
                "evaluate",
                str(runs / "vae"),
                "--num-data",
                "12",
                "--method",
                "is,ais,bdmc,quadrature,gaps",
                *SHORT,
            ]
        )
        == 0
    )
    said = capsys.readouterr().out
    results = {row["name"]: row for row in json.loads((runs / "vae" / "results.json").read_text())}
    for name in (
        "nll",
        "nll_psis",
        "nll_jackknife",
        "eubo",
        "cubo",
        "nll_ais",
        "nll_quadrature",
        "bdmc_lower",
        "bdmc_upper",
        "bdmc_gap",
    ):
        assert math.isfinite(results[name]["estimate"]), name
    assert results["nll"]["estimate"] == pytest.approx(
        results["nll_quadrature"]["estimate"], abs=0.05
    )
    gap = sum(results[name]["estimate"] for name in ("amortization_gap", "approximation_gap"))
    assert gap == pytest.approx(results["inference_gap"]["estimate"], abs=1e-9)
    for words in (
        "AIS + BDMC gap, upper",
        "log p(x) ≲ EUBO",
        "CUBO: an upper bound as K → ∞ only",
        "IWAE, K = 50",
        "mutual information, lower",
        "acceptance",
        "k̂",
    ):
        assert words in said
    tree = arviz.from_netcdf(runs / "vae" / "evaluation.nc")
    data = tree["per_datum"].to_dataset()
    assert data.sizes["datum"] == 12
    np.testing.assert_allclose(-data["log_px"].mean(), results["nll"]["estimate"], rtol=1e-6)
    assert {
        "khat",
        "log_px_low",
        "cubo_se",
        "eubo_flagged",
        "log_px_ais",
        "log_px_quadrature",
        "approximation_gap_full_rank",
    } <= set(data.data_vars)
    gaps_of = tree["simulated"]["upper"] - tree["simulated"]["lower"]
    np.testing.assert_allclose(float(gaps_of.mean()), results["bdmc_gap"]["estimate"], rtol=1e-5)
    assert tree["posterior"]["z"].sizes["draw"] == POSTERIOR_DRAWS
    assert tree["sample_stats"]["log_weight"].dims == ("weighted_chain", "datum")
    tree.close()
    figures = {file.stem for file in (runs / "vae" / "figures").glob("*.png")}
    assert {
        "sandwich",
        "bound_curve",
        "khat",
        "extremes",
        "rate_distortion",
        "likelihood_per_datum",
    } <= figures
    assert not (runs / "vae" / "annealing").exists()


@pytest.mark.slow
def test_the_option_compile_reaches_importance_sampling_and_annealing(
    runs: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The same figures with and without it, by graphs run as they are traced."""
    made: list[str] = []
    for module in ("importance.compiled", "annealing.chunks"):

        def kept(graph: Any, inputs: Any, module: str = module, **settings: bool) -> Any:
            made.append(module)
            return graph

        monkeypatch.setattr(f"pyroae.evaluation.{module}.inductor", kept)
    found = []
    for word in ("true", "false", "auto"):
        flags = ["--num-data", "3", "--method", "is,ais,bdmc", *SHORT, "--compile", word]
        assert main(["evaluate", str(runs / "vae"), *flags]) == 0
        rows = json.loads((runs / "vae" / "results.json").read_text())
        found.append({row["name"]: row["estimate"] for row in rows})
        assert made == ["importance.compiled"] + 2 * ["annealing.chunks"]
    for name in ("nll", "nll_ais", "bdmc_lower", "bdmc_upper"):
        assert found[0][name] == pytest.approx(found[1][name], abs=1e-3), name
        assert found[2][name] == found[1][name]
    assert main(["evaluate", str(runs / "vae"), "--compile", "yes"]) == 2
    assert "compile takes auto, true or false, not 'yes'" in capsys.readouterr().err


@pytest.mark.slow
def test_the_sandwich_is_in_order_and_holds_the_exact_value(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    leave_out_pictures(monkeypatch)
    flags = ["--num-data", "15", "--method", "is,ais,exact", "--num-distributions", "40"]
    flags += ["--leapfrog-steps", "5", "--thinning", "1", "--double"]
    ppca = ["--system", "ppca", "--likelihood", "normal", "--out", str(tmp_path)]
    assert main(["train", *SMALL, *ppca]) == 0
    assert main(["evaluate", str(tmp_path), *flags]) == 0
    printed = capsys.readouterr().out.partition("Monte Carlo")[2]
    rows = re.findall(r"^ *([A-Z\w].*?) +(-\d+\.\d+)", printed, re.MULTILINE)
    bounds = {name: float(value) for name, value in rows}
    exact = bounds["exact"]
    assert bounds["ELBO"] < bounds["IWAE, K = 50"] < exact + 0.02
    assert bounds["IWAE, K = 5,000"] == pytest.approx(exact, abs=0.02)
    assert bounds["AIS"] == pytest.approx(exact, abs=0.5)


def test_an_annealing_that_was_stopped_goes_on(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C, the same command again, and the same figures."""
    leave_out_pictures(monkeypatch)
    shutil.copytree(runs / "vae", tmp_path / "vae")
    flags = ["evaluate", str(tmp_path / "vae"), "--num-data", "5", "--method", "ais", *SHORT]
    assert main(flags) == 0
    whole = json.loads((tmp_path / "vae" / "results.json").read_text())
    monkeypatch.setattr(checkpoint, "SAVE_EVERY", 0.0)
    tick, left = checkpoint.Checkpoint.tick, [9]

    def stopped(self: checkpoint.Checkpoint, first: int, block: Block, *, now: bool) -> None:
        tick(self, first, block, now=now)
        left[0] -= 1
        if left[0] == 0:
            raise KeyboardInterrupt

    monkeypatch.setattr(checkpoint.Checkpoint, "tick", stopped)
    assert main(flags) == 130
    assert list((tmp_path / "vae" / "annealing").rglob("ais.safetensors"))
    assert main(flags) == 0
    again = json.loads((tmp_path / "vae" / "results.json").read_text())
    estimates = [{row["name"]: row["estimate"] for row in rows} for rows in (whole, again)]
    assert estimates[0] == estimates[1]


BAD = {
    "method": (["--method", "iss"], "unknown method 'iss': did you mean 'is'?"),
    "proposal": (["--proposal", "locl"], "unknown proposal 'locl': did you mean 'local'?"),
    "retry": (["--retry", "nothing"], "unknown proposal 'nothing'"),
    "tolerance": (
        ["--tolerance", "0"],
        "a tolerance must be positive and finite, in nats, not 0.0",
    ),
    "particles": (["--num-particles", "0"], "num_particles must be at least 1, not 0"),
    "chains": (
        ["--method", "ais", "--num-chains", "0"],
        "num_chains must be a whole number of at least 1, not 0",
    ),
    "start": (["--method", "ais", "--start", "posterior"], "unknown start 'posterior'"),
    "schedule": (["--method", "ais", "--schedule", "cosine"], "unknown schedule 'cosine'"),
    "acceptance": (
        ["--method", "ais", "--target-acceptance", "1"],
        "target_acceptance must lie between 0 and 1",
    ),
    "exact": (["--method", "exact"], "closed forms need a linear-Gaussian system"),
}


@pytest.mark.parametrize("case", list(BAD))
def test_bad_input_is_one_sentence(
    case: str, runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags, words = BAD[case]
    before = (
        (runs / "vae" / "results.json").read_bytes()
        if (runs / "vae" / "results.json").exists()
        else b""
    )
    assert main(["evaluate", str(runs / "vae"), "--num-data", "5", *flags]) == 2
    error = capsys.readouterr().err.strip()
    assert words in error
    assert "\n" not in error.splitlines()[-1]
    after = (
        (runs / "vae" / "results.json").read_bytes()
        if (runs / "vae" / "results.json").exists()
        else b""
    )
    assert before == after


def test_quadrature_is_refused_for_many_latents_and_annealing_for_discrete_ones() -> None:
    x = (torch.rand(4, 16) < 0.5).float()
    with pytest.raises(
        ConfigError, match="quadrature is for 1, 2 or 3 latent dimensions per datum, not 5"
    ):
        evaluate(zoo.vae(16, latent=5), x, EvaluationSettings(("quadrature",)))
    with pytest.raises(ProgramError, match="the latent site 'z' is discrete"):
        evaluate(zoo.discrete_vae(16, latent=3), x, EvaluationSettings(("ais",)))


def test_few_particles_have_no_khat_and_say_so(
    runs: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    leave_out_pictures(monkeypatch)
    assert main(["evaluate", str(runs / "vae"), "--num-data", "5", "--num-particles", "20"]) == 0
    assert "no k̂, which needs K ≥ 25: no error can be trusted" in capsys.readouterr().out


@pytest.mark.slow
def test_the_same_functions_on_a_program_with_two_sites_and_nested_plates() -> None:
    """Program, guide and arguments of tests/evaluation/importance/test_proposals.py, against the
    value integrated by hand.
    """
    data = test_proposals.program_data()
    data = (data[0].double(), data[1])
    truth = test_proposals.by_hand(*data)
    model, guide = test_proposals.model, test_proposals.guide
    settings = AISSettings(16, 40, leapfrog_steps=5)
    torch.set_default_dtype(torch.float64)
    try:
        annealed = ais(model, None, data, settings=settings, seed=0)
        both = bdmc(model, None, data, settings=settings, seed=0)
        summed = quadrature(model, guide, data)
        lost = gaps(model, guide, data, num_particles=1000, steps=100, seed=0)
        knows = information(model, guide, data, seed=0)
        prior = log_likelihood(model, prior_of(model), data, num_particles=20_000, seed=0)
    finally:
        torch.set_default_dtype(torch.float32)
    assert (summed.log_px - truth).abs().max() < 1e-3
    assert bool(((annealed.log_px - truth).abs() < 5 * annealed.se + 0.01).all())
    assert both.mean_gap > -4 * both.mean_gap_se
    assert bool(((lost.log_px.values - truth).abs() < 5 * lost.log_px.se + 0.01).all())
    assert bool((lost.inference.values > -5 * lost.inference.se - 0.01).all())
    assert knows.lower.value <= math.log(7) + 1e-9
    assert bool(((prior.log_px - truth).abs() < 5 * prior.se + 0.01).all())


def test_exact_values_reach_the_gaps() -> None:
    system, x = zoo.ppca(6, 2), torch.randn(5, 6)
    found = evaluate(system, x, EvaluationSettings(("exact", "gaps")))
    assert found.gaps is not None
    torch.testing.assert_close(found.gaps.log_px.values, exact_log_likelihood(system, x))
    assert found.likelihood is None
    assert "exact" in found.sandwich()


@pytest.mark.slow
def test_mnist_sandwich(mnist_root: Path) -> None:
    """The reference VAE, 50 epochs of MNIST: ELBO ≤ IWAE-50 ≤ IWAE-5000 ≤ AIS ≤ upper, on 100 test
    images.

    The table of docs/benchmarks/likelihood.md, in runs/mnist-vae.
    """
    path = Path("runs/mnist-vae")
    if not (path / "checkpoints" / "last.safetensors").is_file():
        data = ["--data", "mnist", "--data-root", str(mnist_root)]
        net = [
            "--latent",
            "50",
            "--hidden",
            "200,200",
            "--activation",
            "tanh",
            "--batch-size",
            "100",
            "--lr",
            "1e-3",
        ]
        assert (
            main(["train", "--system", "vae", *data, *net, "--epochs", "50", "--out", str(path)])
            == 0
        )
    flags = ["--num-data", "100", "--method", "is,ais,bdmc,gaps", "--num-distributions", "1000"]
    assert main(["evaluate", str(path), *flags]) == 0
    found = {row["name"]: row for row in json.loads((path / "results.json").read_text())}
    tree = arviz.from_netcdf(path / "evaluation.nc")
    data = tree["per_datum"].to_dataset()
    elbo, sampled, annealed = (
        float(data[name].mean()) for name in ("nelbo", "log_px", "log_px_ais")
    )
    error = float(np.sqrt((data["log_px_ais_se"] ** 2).sum())) / 100
    assert -elbo < sampled < annealed + 2 * error
    assert found["bdmc_gap"]["estimate"] > -2 * found["bdmc_gap"]["se"]
    tree.close()
