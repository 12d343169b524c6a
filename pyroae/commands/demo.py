"""The command `demo`: a VAE on the embedded digits under two ELBO estimators."""

from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table

from pyroae import plots
from pyroae.commands.evaluate import evaluate_run
from pyroae.commands.train import train_run
from pyroae.comparison.scores import Score
from pyroae.config import EvaluationSettings, RunConfig, Scoring
from pyroae.evaluation.summary import Evaluation
from pyroae.plots.drawing import save
from pyroae.runs.data_of_run import splits_of
from pyroae.runs.run import refuse_taken
from pyroae.runtime.processes import say
from pyroae.studies.curves import placed
from pyroae.studies.scoring import corrected
from pyroae.training.trainer import FitResult


def demo(out: str, overwrite: bool, epochs: int, num_particles: int) -> None:
    """Train a VAE on the embedded digits under two ELBO estimators, evaluate and draw.

    Args:
        out: The study directory to write; each training has a run directory in it.
        overwrite: Whether what an earlier demo left there is replaced.
        epochs: Passes over the data.
        num_particles: K of the log-likelihood.

    Raises:
        RunError: If the directory holds runs already.
    """
    study = Path(out)
    base = RunConfig(
        latent=10, epochs=epochs, schedule="cosine", lr=3e-3, hidden=(200, 200), batch_size=100
    )
    rows = {name: base.but(objective=name) for name in ("trace-elbo", "analytic-kl")}
    flat = {"two-dimensional": base.but(objective="analytic-kl", latent=2)}
    for name in {**rows, **flat}:
        refuse_taken(study / name, overwrite)
    results, histories, scores = {}, {}, {}
    for name, config in {**rows, **flat}.items():
        say(f"{name}: a VAE with {config.latent} latent units on the digits, {epochs} epochs")
        run, trained = train_run(config, study / name, overwrite)
        held_out = splits_of(run.config).test
        assert held_out is not None
        found = evaluate_run(run, held_out, EvaluationSettings(num_particles=num_particles))
        results[name], histories[name] = (found, trained), trained.history
        if name in rows:
            assert found.likelihood is not None
            scores[name] = corrected(
                found.likelihood,
                trained.system,
                placed(trained.system, held_out.x),
                Scoring(num_particles=num_particles, num_data=None),
            )
    curves = plots.training_curves({name: histories[name] for name in rows})
    save(curves, study / "figures" / "training_curves.png")
    points = {
        name: tuple(found.results[of].estimate for of in ("rate", "distortion"))
        for name, (found, _) in results.items()
    }
    save(plots.rate_distortion(points), study / "figures" / "rate_distortion.png")
    Console().print(_comparison({name: results[name] for name in rows}, scores, num_particles))
    say(
        "NLL: corrected by local Gaussian fits to the posterior of every datum; correction: what "
        "they add to importance sampling from the guide"
    )
    say(
        f"pictures: {study}/figures, {study}/*/figures; one page per run: {study}/*/report.html; "
        f"DataTree: {study}/*/evaluation.nc"
    )


def _comparison(
    results: dict[str, tuple[Evaluation, FitResult]], scores: dict[str, Score], num_particles: int
) -> Table:
    """The demo's table: one row per objective."""
    table = Table(
        title=f"held-out digits, nats per datum ± SE, K = {num_particles}",
        box=box.SIMPLE_HEAD,
        padding=0,
    )
    columns = ("objective", "ELBO", "NLL", "correction", "rate", "distortion", "active", "s")
    for column in columns:
        table.add_column(column, justify="left" if column == "objective" else "right", no_wrap=True)
    for name, (found, trained) in results.items():
        of = found.results
        score = scores[name]
        cells = [
            f"{-of['nelbo'].estimate:.2f} ± {of['nelbo'].se:.2f}",
            f"{score.nll:.2f} ± {of['nll'].se:.2f}",
            f"{score.shift.value:+.3f}",
        ]
        cells += [f"{of[key].estimate:.2f}" for key in ("rate", "distortion")]
        table.add_row(name, *cells, f"{of['active_units'].estimate:.0f}", f"{trained.seconds:.1f}")
    return table
