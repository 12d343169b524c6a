"""An instance of each public class, with thousands of data: for the tests of their `repr`."""

import atexit
from collections.abc import Callable
from functools import partial
from pathlib import Path
from shutil import rmtree
from tempfile import mkdtemp
from typing import Any

import numpy as np
import torch
from torch import Tensor

import pyroae
from pyroae import config, data, objectives, priors, testing, zoo
from pyroae.autoencoder import M2
from pyroae.comparison.outcomes import Cell, Difference, Outcome, Point
from pyroae.comparison.results import Comparison
from pyroae.comparison.scores import Correction, Interval, Score
from pyroae.data.conditions import Conditioning
from pyroae.data.loading import Splits
from pyroae.evaluation import calibration, inference_gaps
from pyroae.evaluation.adaptive_quadrature import QuadratureEstimate
from pyroae.evaluation.annealing.estimates import BDMC, AISEstimate, SiteValues
from pyroae.evaluation.annealing.rate_distortion import RateDistortion
from pyroae.evaluation.diagnostics import Diagnostics
from pyroae.evaluation.gradient_lab.measure import Curves, OfGroups, Results
from pyroae.evaluation.gradient_lab.slopes import Slope, SNRCurve
from pyroae.evaluation.gradient_lab.statistics import Bias, GradientStatistics
from pyroae.evaluation.importance.above import UpperBound
from pyroae.evaluation.importance.likelihood import LikelihoodEstimate
from pyroae.evaluation.importance.streams import BoundCurve, Smoothed
from pyroae.evaluation.imputation import Imputation
from pyroae.evaluation.local import LocalGaussian
from pyroae.evaluation.mutual_information import Estimate, Information, Unit
from pyroae.evaluation.predictive_checks import CheckedStatistic, PredictiveCheck
from pyroae.evaluation.results import Result, ResultList
from pyroae.evaluation.results import Results as Figures
from pyroae.evaluation.site_draws import PredictiveDraws
from pyroae.evaluation.summary import Evaluation
from pyroae.linear_gaussian import maximum_likelihood
from pyroae.papers import PAPERS, Work
from pyroae.programs.pair import Pair
from pyroae.runs import Run
from pyroae.runs.snapshots import Snapshots
from pyroae.studies.loading import TrainedCell
from pyroae.testing.checks import Checks
from pyroae.training.lockstep import FitResults
from pyroae.training.state import Epoch, History

N = 2000


def normal(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64)


def rand(*shape: int) -> Tensor:
    return torch.rand(*shape, dtype=torch.float64)


def upper() -> UpperBound:
    return UpperBound(normal(N) - 80, rand(N), normal(2, N), normal(N), rand(N) < 0.1)


def smoothed() -> Smoothed:
    return Smoothed(normal(N) - 80, normal(2, N), rand(N))


def bound_curve() -> BoundCurve:
    return BoundCurve(2 ** torch.arange(13), normal(13) - 80, rand(13))


def likelihood() -> LikelihoodEstimate:
    draws, ess = torch.full((N,), 5000), 5000 * rand(N)
    log_px, interval = normal(N) - 80, normal(2, N)
    return LikelihoodEstimate(
        *(log_px, 0.1 * rand(N), interval, ess, log_px + 0.01, smoothed(), draws, bound_curve()),
        *(None, 12.3, upper(), upper()),
    )


def rate_distortion() -> RateDistortion:
    r, d, e, f, g = (rand(51, N) for _ in range(5))
    return RateDistortion(
        torch.linspace(0, 1, 51), *(r, d, e, f, g), normal(2, 51, N), normal(2, 51, N), rand(51, N)
    )


def annealed() -> AISEstimate:
    return AISEstimate(
        *(normal(N) - 80, rand(N), 16 * rand(N), normal(16, N), rand(10, N), rand(10, N)),
        *(config.AISSettings(), 7300.0, rate_distortion()),
        *(SiteValues({"z": normal(16, 2, N, 20), "a long name of a site": normal(16, 2, N)}),),
        rand(N),
    )


def bidirectional() -> BDMC:
    sites = SiteValues({"x": normal(N, 30)})
    return BDMC(annealed(), normal(N) - 79, rand(N), normal(16, N), sites, sites, 10.0)


def per_datum() -> inference_gaps.PerDatum:
    return inference_gaps.PerDatum(normal(N), rand(N))


def family() -> inference_gaps.FamilyGaps:
    return inference_gaps.FamilyGaps(per_datum(), per_datum(), per_datum(), per_datum())


def gaps() -> pyroae.Gaps:
    families: Any = {"diagonal": family(), "full-rank": family()}
    parts = (per_datum(), per_datum(), per_datum())
    return pyroae.Gaps(*parts, families, rand(N), 5.0, torch.arange(300))


def quadrature() -> QuadratureEstimate:
    return QuadratureEstimate(normal(N) - 80, rand(N), rand(N) < 0.9, torch.full((N,), 900), 2.0)


def information() -> Information:
    one = Estimate(12.345678, 0.123456)
    units = tuple(Unit(i, 0.123456, 0.987654, i % 2 == 0) for i in range(200))
    return Information(one, one, one, one, (one, one), units, N, 3.0)


def diagnostics() -> Diagnostics:
    sites = tuple(f"z{i % 9}" for i in range(200))
    rates = {f"z{i}": 1 / 3 for i in range(9)}
    reasons = ("site 'z1' is of a distribution whose marginals are not known " * 3,) * 5
    parts = (normal(N), normal(N), rand(200), rand(200), 0.01, torch.tensor(0.1))
    return Diagnostics(*parts, reasons, sites, rates)


def figures() -> list[Result]:
    names = [f"figure_{i}" for i in range(60)]
    where = ("ais, 1000 distributions, hmc of 10 steps", 0.1, "digits", "test", "best, epoch 57")
    method, error, *rest = where
    return [Result(n, 90.2, 0.7, N, 5000, 1.0, method, error, *rest) for n in names]


def evaluation() -> Evaluation:
    rows = [Result("nll", 90.18, 0.77, N, 5000, 1.0, "is, guide"), *figures()]
    return Evaluation(
        *(Figures((row.name, row) for row in rows), diagnostics(), likelihood(), annealed()),
        bidirectional(),
        normal(N),
        quadrature(),
        gaps(),
        information(),
        "a reason " * 30,
    )


def statistics() -> GradientStatistics:
    bias = Bias(0.1, 0.05, 0.0, 0.2, 3.0)
    parts = (normal(50_000), rand(50_000), rand(200), 1.5, 0.1, bias)
    return GradientStatistics(*parts, 1000, 0.01, 800)


def gradients() -> Results:
    groups = ("θ", "φ", "a group with a long name", *(f"encoder.{i}" for i in range(20)))
    found = OfGroups(dict.fromkeys(groups, statistics()))
    return Results({"iwae": found, "dreg": found})


def snr_curve() -> SNRCurve:
    ks = tuple(2**i for i in range(12))
    return SNRCurve(ks, (statistics(),) * len(ks), Slope(0.5, 0.4, 0.6))


def imputation() -> Imputation:
    a, b, c, d = (normal(N, 12) for _ in range(4))
    return Imputation(a, b, c, d, normal(5, N, 12), rand(N, 12) < 0.1, 30 * rand(N))


def statistic() -> CheckedStatistic:
    return CheckedStatistic(0.123456789, normal(200), rand(N), rand(784))


def predictive() -> PredictiveCheck:
    names = ["mean", "sd", *(f"a statistic of the user, number {i}" for i in range(30))]
    return PredictiveCheck("posterior_predictive", "x", {name: statistic() for name in names})


def site_draws() -> PredictiveDraws:
    data, means, replicates, new = normal(N, 3), normal(N, 3), normal(20, N, 3), normal(20, N, 3)
    return PredictiveDraws(
        "x", (3,), ("continuous", "count", "category"), data, means, replicates, new, False
    )


def quantity(name: str = "z[0]") -> calibration.Quantity:
    from pyroae.evaluation.calibration.results import Interval, Tests

    one, p = Interval(0.5, 0.4, 0.6), Tests(0.1, 0.2, 0.3)
    return calibration.Quantity(name, 500, one, one, (one, one, one), p, p, "shifted low")


def calibrated() -> pyroae.Calibration:
    quantities = tuple(quantity(f"z[{i}]") for i in range(50))
    settings = config.CalibrationSettings()
    return pyroae.Calibration(quantities, rand(500, 50), rand(500), settings, 3.0)


def epochs(count: int = 500) -> History:
    return History(Epoch(i + 1, 10 * i, 0.3 * i, 80.1, 81.2, 70.3, 10.9) for i in range(count))


def vae() -> pyroae.Autoencoder:
    return zoo.vae((28, 28), latent=20)


def fit_result() -> pyroae.FitResult:
    return pyroae.FitResult(vae(), epochs(), 480, True, 3.0, 7)


def state() -> pyroae.State:
    weights = vae().state_dict()
    return pyroae.State(weights, {"state": weights}, {}, list(epochs()), weights, 480)


def correction() -> Correction:
    index = torch.arange(0, N, 2)
    return Correction("local", index, normal(1000) - 80, rand(1000), rand(1000) < 0.9)


def score() -> Score:
    return Score(normal(N) - 80, rand(N), rand(N), 99 * rand(N), rand(N) < 0.9, correction(), 5000)


def outcomes(count: int = 1000) -> tuple[Outcome, ...]:
    """Of ten objectives with three K and two seeds, with learning curves."""
    points = tuple(Point(i, i, i / 3, i, 80 + i / 7) for i in range(40))
    names = ("nelbo", "rate", "distortion", "active_units")
    return tuple(
        Outcome(
            Cell(f"objective-{i}", k, seed),
            Score(-80 - rand(count), rand(count)),
            dict.fromkeys(names, 1 / 3),
            *(20, 1000, 10**9, 1 / 3, points),
        )
        for i in range(10)
        for k in (1, 8, 64)
        for seed in range(2)
    )


def dataset() -> pyroae.Dataset:
    """As large as the images of MNIST, with one number in memory."""
    x = torch.zeros(1).expand(60_000, 784)
    labels, c = np.zeros(60_000, dtype=np.int64), torch.zeros(1).expand(60_000, 10)
    names = tuple(map(str, range(10)))
    return pyroae.Dataset("mnist", x, (28, 28), labels, True, condition=c, condition_names=names)


def splits() -> Splits:
    return Splits(dataset(), dataset(), None, "0123456789abcdef", "dynamic")


def settings() -> pyroae.RunConfig:
    """As many settings as possible that are not the default."""
    given: dict[str, Any] = dict(
        **{"data": "a/long/path/" * 20, "value_range": (0.0, 1.0), "channels": "first"},
        **{"binarize": "none", "valid_fraction": 0.2, "test_fraction": 0.3, "split_seed": 1},
        **{"missing": True, "objective": "iwae", "num_particles": 50, "latent": (20, 10, 5)},
        **{"hidden": (300, 200, 100), "activation": "relu", "prior": "laplace:rate=2", "lr": 0.1},
        **{"epochs": 500, "max_steps": 10, "max_seconds": 1.5, "batch_size": 50, "seed": 3},
        **{"optimizer": "AdamW", "optimizer_args": {"weight_decay": 0.1}, "schedule": "cosine"},
        **{"grad_clip": 1.0, "kl_warmup": 3, "patience": 5, "keep": "last", "snapshots": (0, 1)},
    )
    return pyroae.RunConfig(**given)


def run() -> Run:
    path, digits = Path(mkdtemp()), data.load("digits")
    atexit.register(rmtree, path)
    made = Run.create(path / "run", pyroae.RunConfig(), digits)
    made.write_results(figures())
    return made


def loaded_run() -> pyroae.LoadedRun:
    rows = Figures((row.name, row) for row in figures())
    kept = Snapshots(tuple(range(100)), lambda epoch: vae())
    return pyroae.LoadedRun(settings(), vae(), splits(), epochs(), rows, kept)


def checks() -> Checks:
    detail = "differs by 5.68e-14, found 276.151, expected 276.151 (CategoricalToy)"
    return Checks(testing.Check(f"assertion {i % 40}", i % 9 > 0, detail) for i in range(120))


def log_weights() -> pyroae.LogWeights:
    a, b, c = (normal(64, N) for _ in range(3))
    return pyroae.LogWeights(a, b, c, 1.0, normal(64), None, {"z": normal(64, N)})


def paper() -> Any:
    return PAPERS["burda-2016"]()


def paper_result() -> Any:
    return paper().unmeasured("full")


def bound() -> pyroae.Bound:
    return pyroae.Bound(torch.tensor(-123456.789), torch.tensor(-1.0, requires_grad=True) * 2)


def observed() -> Any:
    import pyro.distributions as dist

    base = dist.Normal(torch.zeros(N, 784), torch.ones(N, 784)).to_event(1)
    return pyroae.likelihoods.Observed(base, torch.ones(N, 784, dtype=torch.bool))


def table(make: Callable[[], Any], container: type) -> Callable[[], Any]:
    return lambda: container([make()] * 100)


INSTANCES: dict[type, Callable[[], Any]] = {
    BDMC: bidirectional,
    AISEstimate: annealed,
    pyroae.Autoencoder: vae,
    pyroae.Bound: bound,
    pyroae.Budget: lambda: pyroae.Budget("epochs", 20),
    pyroae.Calibration: calibrated,
    pyroae.Comparison: lambda: Comparison(outcomes()),
    pyroae.Compiled: lambda: pyroae.compile(vae().model, vae().guide, pyroae.TraceELBO(8)),
    pyroae.Dataset: dataset,
    Diagnostics: diagnostics,
    Evaluation: evaluation,
    pyroae.FitResult: fit_result,
    pyroae.Gaps: gaps,
    Imputation: imputation,
    Information: information,
    pyroae.Keeper: lambda: pyroae.Keeper(print, "the same call " * 20),
    LikelihoodEstimate: likelihood,
    pyroae.LoadedRun: loaded_run,
    pyroae.LoadedStudy: lambda: pyroae.LoadedStudy(Path("study"), Comparison(outcomes()), {}),
    pyroae.Local: lambda: pyroae.Local(vae().guide),
    pyroae.LogWeights: log_weights,
    pyroae.Mixture: lambda: pyroae.Mixture((vae().guide, vae().guide)),
    pyroae.Objective: lambda: objectives.Objective(
        objectives.IWAE(8), objectives.DoublyReparameterized()
    ),
    PredictiveCheck: predictive,
    PredictiveDraws: site_draws,
    QuadratureEstimate: quadrature,
    RateDistortion: rate_distortion,
    pyroae.RunConfig: settings,
    Splits: splits,
    pyroae.State: state,
    pyroae.TrainConfig: lambda: settings().training,
    pyroae.Variant: lambda: pyroae.Variant(partial(zoo.vae, (28, 28), 20), {"lr": 0.01}),
    M2: lambda: M2((28, 28), latent=20, classes=10),
    data.Arguments: lambda: data.Arguments((normal(N, 3), torch.arange(N))),
    objectives.Coefficients: lambda: objectives.Coefficients(normal(64, N), normal(64, N)),
    objectives.TwoBounds: objectives.TwoBounds,
    testing.Check: lambda: checks()[0],
    inference_gaps.PerDatum: per_datum,
    inference_gaps.FamilyGaps: family,
    calibration.Quantity: quantity,
    Run: run,
    Snapshots: lambda: loaded_run().snapshots,
    pyroae.likelihoods.Observed: observed,
    pyroae.likelihoods.Mixed: lambda: zoo.vae(3, latent=1).likelihood,
    # classes of what public functions return, which no package exports by name
    **{Checks: checks, Results: gradients, OfGroups: lambda: gradients()["iwae"]},
    **{SNRCurve: snr_curve, GradientStatistics: statistics, CheckedStatistic: statistic},
    Curves: lambda: Curves({"iwae": dict.fromkeys(map(str, range(30)), snr_curve())}),
    **{UpperBound: upper, Smoothed: smoothed, BoundCurve: bound_curve, History: epochs},
    **{SiteValues: lambda: annealed().posterior, Figures: lambda: evaluation().results},
    **{ResultList: lambda: ResultList(figures()), Result: lambda: figures()[0]},
    **{Score: score, Correction: correction, Outcome: lambda: outcomes()[0]},
    FitResults: table(fit_result, FitResults),
    Difference: lambda: Difference(Interval(0.1, 0.0, 0.2), normal(5), False, 0.01),
    type(Comparison(outcomes()).ranking()): lambda: Comparison(outcomes()).ranking(),
    TrainedCell: lambda: TrainedCell(vae(), epochs(), outcomes()[0]),
    LocalGaussian: lambda: LocalGaussian(
        *(normal(N, 5), normal(N, 5, 5), normal(N), normal(N), rand(N), 12)
    ),
    Pair: lambda: Pair(vae().model, vae().guide),
    Estimate: lambda: Estimate(1.0, 0.1),
    Unit: lambda: information().units[0],
    Conditioning: Conditioning,
    type(maximum_likelihood(normal(20, 3), 1)): lambda: maximum_likelihood(normal(200, 50), 20),
    type(paper()): paper,
    type(paper().scales["full"]): lambda: paper().scales["full"],
    Work: lambda: Work("short", Path("runs")),
    priors.GaussianWeights: lambda: priors.GaussianWeights(1.0, 100),
    type(priors.PRIORS): lambda: objectives.OBJECTIVES,
    type(paper_result()): paper_result,
    type(paper_result().rows[0]): lambda: paper_result().rows[0],
    type(paper_result().claims[0]): lambda: paper_result().claims[0],
}
"""How an instance of a class is made; a class without arguments makes its own."""
