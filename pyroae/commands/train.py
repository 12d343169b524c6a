"""The command `train`: train a run, or continue it."""

from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric

from pyroae import plots, zoo
from pyroae.autoencoder import Autoencoder
from pyroae.config import WHERE, RunConfig
from pyroae.data.loading import Splits
from pyroae.distributed.fabric import launch_fabric
from pyroae.errors import ConfigError
from pyroae.objectives import parse_objective
from pyroae.objectives.base import ObjectiveBase
from pyroae.plots.drawing import save
from pyroae.runs.contents import versions
from pyroae.runs.loading import fits, same_data, splits_of
from pyroae.runs.run import Run, refuse_taken
from pyroae.runtime.files import locked
from pyroae.runtime.processes import say
from pyroae.training.checkpointing import Keeper
from pyroae.training.fitting import fit
from pyroae.training.preflight import check
from pyroae.training.state import State
from pyroae.training.trainer import FitResult


def train_run(config: RunConfig, path: Path, overwrite: bool) -> tuple[Run, FitResult]:
    """A new run, trained; everything is refused before the directory is made."""
    refuse_taken(path, overwrite)
    splits, system, objective = _prepared(config)
    check(system, splits.train, splits.valid, objective, config.training)
    fabric = launch_fabric(config.training)
    with _writing(fabric, path):
        if fabric.is_global_zero:
            Run.create(path, config, splits, overwrite=overwrite)
        fabric.barrier()
        run = Run(path)
        return run, _trained(run, system, splits, objective, fabric, None)


def resume_run(run: Run, settings: dict[str, Any], checkpoint: str) -> tuple[Run, FitResult]:
    """A run, continued from where it was saved. Raises ConfigError for settings that differ."""
    config = RunConfig.from_mapping({**run.config.to_dict(), **settings})
    for name, value in config.to_dict().items():
        if name not in (*WHERE, "epochs") and value != run.config.to_dict()[name]:
            raise ConfigError(
                f"--resume goes on with the settings of the run: {name} is {run.config.to_dict()[name]} there"
            )
    state = run.state(checkpoint) if run.has_begun else None
    if state is not None and len(state.history) >= config.epochs:
        raise ConfigError(
            f"the run '{run.path}' has finished its {config.epochs} epochs: give more --epochs to go on"
        )
    splits, system, objective = _prepared(config)
    same_data(run, splits)
    if state is not None:
        fits(run, state, system)
    for name, now in versions().items():
        if run.versions.get(name, now) != now:
            say(
                f"the run is of {name} {run.versions[name]}, this is {now}: from here on figures may differ"
            )
    fabric = launch_fabric(config.training)
    with _writing(fabric, run.path):
        if fabric.is_global_zero and config != run.config:
            run.write_config(config, splits)
        run.config = config
        return run, _trained(run, system, splits, objective, fabric, state)


def _writing(fabric: Fabric, path: Path) -> AbstractContextManager[None]:
    """A context in which this process, the first one, has the directory."""
    return locked(path, "run") if fabric.is_global_zero else nullcontext()


def _prepared(config: RunConfig) -> tuple[Splits, Autoencoder, ObjectiveBase]:
    splits = splits_of(config)
    torch.manual_seed(config.seed)
    return (
        splits,
        zoo.from_config(config, splits.train),
        parse_objective(config.estimator, config.num_particles),
    )


def _trained(
    run: Run,
    system: Autoencoder,
    splits: Splits,
    objective: ObjectiveBase,
    fabric: Fabric,
    state: State | None,
) -> FitResult:
    """The training itself: the first process saves."""
    first, config = fabric.is_global_zero, run.config
    with Keeper(
        run.save if first else _nothing, f"pyroae train --resume {run.path}", config.save_minutes
    ) as keeper:
        result = fit(system, splits, objective, config.training, state=state, on_epoch=keeper)
    if first:
        draw_curves(run, result)
    return result


def _nothing(state: State) -> None:
    """What processes other than the first do with a state."""


def draw_curves(run: Run, result: FitResult) -> None:
    """The figure of a training."""
    save(
        plots.training_curves({run.config.estimator: result.history}),
        run.path / "figures" / "training_curves.png",
    )


def train(
    settings: dict[str, Any],
    out: str | None,
    overwrite: bool,
    resume: str | None,
    checkpoint: str | None,
) -> None:
    """Train, or go on with, a run; prints the bound of the weights that were kept."""
    if checkpoint is not None and resume is None:
        raise ConfigError(
            "--checkpoint says from where --resume goes on: name the run with --resume RUN"
        )
    if resume is not None:
        if (
            overwrite
            or (resume and out is not None and Path(out) != Path(resume))
            or not (resume or out)
        ):
            raise ConfigError(
                "--resume goes on with one run in its own directory: name that, and leave out --overwrite"
            )
        run, result = resume_run(Run(resume or str(out)), settings, checkpoint or "last")
    else:
        if out is None:
            raise ConfigError("give --out, the run directory to write")
        run, result = train_run(RunConfig.from_mapping(settings), Path(out), overwrite)
    last = result.history[result.best_epoch - 1] if result.best_epoch else result.history[-1]
    stopped = "stopped early; " if result.stopped_early else ""
    bound = last.valid_nelbo if result.best_epoch else last.train_nelbo
    which = "validation" if result.best_epoch else "training"
    skipped = (
        f"; {result.skipped} steps were left out, their loss or gradient not finite"
        if result.skipped
        else ""
    )
    seconds = f"{result.seconds:.1f} s"
    say(
        f"{stopped}epoch {last.epoch}: {which} negative bound {bound:.3f} nats per datum, {seconds}; {run.path}{skipped}"
    )
