"""The command `train`: train a run, or continue it."""

import math
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from pyroae import plots, zoo
from pyroae.autoencoder import Autoencoder
from pyroae.config import WHERE, RunConfig, recorded, with_imports
from pyroae.data.loading import Splits
from pyroae.distributed.fabric import launch_fabric
from pyroae.errors import ConfigError
from pyroae.objectives import parse_objective
from pyroae.objectives.base import ObjectiveBase
from pyroae.priors import Flat
from pyroae.runs.contents import versions
from pyroae.runs.data_of_run import arguments_in, own_splits, splits_of
from pyroae.runs.default_likelihood import completed
from pyroae.runs.descriptions import standardized_text
from pyroae.runs.loading import find_parameters, fits, own_parameters
from pyroae.runs.loggers import check_loggers, loggers_of
from pyroae.runs.run import EXTENDED, Run, refuse_taken
from pyroae.runtime.files import locked
from pyroae.runtime.processes import say
from pyroae.training.checkpointing import Keeper
from pyroae.training.fitting import fit
from pyroae.training.preflight import check
from pyroae.training.recording import Recorder
from pyroae.training.state import State
from pyroae.training.trainer import FitResult

if TYPE_CHECKING:
    from lightning_fabric import Fabric


@own_parameters()
def train_run(config: RunConfig, path: Path, overwrite: bool) -> tuple[Run, FitResult]:
    """Train a new run; everything is refused before the directory is made.

    Args:
        config: The settings.
        path: The run directory to write.
        overwrite: Whether a run that is there is replaced.

    Returns:
        The run, and the result of its training.

    Raises:
        PyroaeError: For what cannot be trained.
    """
    refuse_taken(path, overwrite)
    check_loggers(config.logger)
    splits, system, objective = _prepared(config, splits_of(config))
    check(system, splits.train, splits.valid, objective, config.training)
    fabric = launch_fabric(config.training)
    with _writing(fabric, path):
        if fabric.is_global_zero:
            Run.create(path, config, splits, overwrite=overwrite)
        fabric.barrier()
        run = Run(path)
        return run, _trained(run, system, splits, objective, fabric, None)


@own_parameters()
def resume_run(run: Run, settings: Mapping[str, Any], checkpoint: str) -> tuple[Run, FitResult]:
    """Continue a run from where it was saved.

    Args:
        run: The run.
        settings: Settings that may differ: more epochs and snapshots, and where it is trained.
        checkpoint: The saved state, `last` or `previous`.

    Returns:
        The run, and the result of its training.

    Raises:
        ConfigError: For settings that differ.
        RunError: For a state that cannot be read.
    """
    settings = with_imports(settings, run.config.imports)
    config = RunConfig.from_mapping({**run.config.to_dict(), **settings})
    for name, value in config.to_dict().items():
        if name not in (*WHERE, *EXTENDED) and value != run.config.to_dict()[name]:
            raise ConfigError(
                f"--resume keeps the settings of the run: {name} is {run.config.to_dict()[name]} "
                "there"
            )
    check_loggers(config.logger)
    state = run.state(checkpoint) if run.has_begun else None
    if state is not None and len(state.history) >= config.epochs:
        raise ConfigError(
            f"the run '{run.path}' has finished its {config.epochs} epochs: give more --epochs to "
            "continue"
        )
    if state is not None:
        _refuse_passed(run, config, state)
    splits, system, objective = _prepared(config, own_splits(run, config))
    if state is not None:
        find_parameters(system, splits.train, config)
        fits(run, state, system)
    for name, now in versions().items():
        if run.versions.get(name, now) != now:
            say(
                f"the run is of {name} {run.versions[name]}, this is {now}: from here on figures "
                "may differ"
            )
    fabric = launch_fabric(config.training)
    with _writing(fabric, run.path):
        if fabric.is_global_zero and config != run.config:
            run.write_config(config, splits)
        run.config = config
        return run, _trained(run, system, splits, objective, fabric, state)


def _refuse_passed(run: Run, config: RunConfig, state: State) -> None:
    """Refuse new snapshots of epochs that the training has passed."""
    new = set(config.snapshots) - set(run.config.snapshots)
    passed = sorted(epoch for epoch in new if epoch <= len(state.history))
    if passed:
        raise ConfigError(
            f"the run '{run.path}' is at {state.where()}: a snapshot after epoch {passed[0]} can "
            "no longer be taken"
        )


def _writing(fabric: "Fabric", path: Path) -> AbstractContextManager[None]:
    """A context in which this process, the first one, has the directory."""
    return locked(path, "run") if fabric.is_global_zero else nullcontext()


def _prepared(config: RunConfig, splits: Splits) -> tuple[Splits, nn.Module, ObjectiveBase]:
    torch.manual_seed(config.seed)
    return (
        splits,
        zoo.system_from(config, splits.train),
        parse_objective(config.estimator, config.num_particles),
    )


def _trained(
    run: Run,
    system: nn.Module,
    splits: Splits,
    objective: ObjectiveBase,
    fabric: "Fabric",
    state: State | None,
) -> FitResult:
    """The training itself: the first process saves."""
    first, config = fabric.is_global_zero, run.config
    step = 0 if state is None else state.progressed.step
    loggers = loggers_of(config.logger, run.path / "logs", step) if first else ()
    recorder, status = Recorder(loggers, config.to_dict()), "failed"

    def save(state: State) -> None:
        run.save(state)
        if len(state.history) in config.snapshots and not state.progressed.position:
            _record_pictures(recorder, system, splits, config, state.progressed.step)

    try:
        with Keeper(
            save if first else _nothing, f"pyroae train --resume {run.path}", config.save_minutes
        ) as checkpoints:
            result = fit(
                *(system, splits, objective, config.training),
                state=state,
                on_epoch=checkpoints,
                logger=recorder,
            )
        if first:
            draw_curves(run, result)
            draw_data(run, splits)
            _record_pictures(recorder, system, splits, config, result.history[-1].step)
        status = "success"
    finally:
        recorder.finalize(status)
    return result


def _record_pictures(
    recorder: Recorder, system: nn.Module, splits: Splits, config: RunConfig, step: int
) -> None:
    """Record reconstructions and samples of a system of the zoo, with loggers that take figures."""
    if not isinstance(system, Autoencoder) or system.condition or config.strategy == "fsdp":
        return
    data = splits.valid or splits.train
    recorder.picture("reconstructions", lambda: plots.reconstructions(system, data.x[:10]), step)
    if not isinstance(system.prior, Flat):
        recorder.picture("samples", lambda: plots.samples(system), step)


def _nothing(state: State) -> None:
    """What processes other than the first do with a state."""


def draw_curves(run: Run, result: FitResult) -> None:
    """Draw the figure of a training into RUN/figures.

    Args:
        run: The run.
        result: The result of its training.
    """
    from pyroae.plots.drawing import save

    save(
        plots.training_curves({run.config.estimator: result.history}),
        run.path / "figures" / "training_curves.png",
    )


def draw_data(run: Run, splits: Splits) -> None:
    """Draw the first training data into RUN/figures; of a program its first argument.

    Args:
        run: The run.
        splits: Its data.
    """
    from pyroae.plots.drawing import save

    train, x = splits.train, arguments_in(splits.train)[0]
    if x.is_floating_point() and x.dim() > 1:
        columns, labels = getattr(train, "columns", ()), getattr(train, "labels", None)
        figure = plots.examples(x, train.shape, columns=columns, labels=labels)
        save(figure, run.path / "figures" / "data.png")


def train(
    settings: Mapping[str, Any],
    out: str | None,
    overwrite: bool,
    resume: str | None,
    checkpoint: str | None,
) -> None:
    """Train or continue a run; print the bound of the weights that were kept.

    Args:
        settings: Settings of a RunConfig.
        out: The run directory to write.
        overwrite: Whether a run that is there is replaced.
        resume: The run to continue; an empty text means `out`.
        checkpoint: The saved state to continue from, `last` or `previous`.

    Raises:
        PyroaeError: For what cannot be trained.
    """
    settings = recorded(settings)
    if checkpoint is not None and resume is None:
        raise ConfigError(
            "--checkpoint says where --resume continues from: name the run with --resume RUN"
        )
    if resume is not None:
        path = resumed("run", out, overwrite, resume)
        run, result = resume_run(Run(path), settings, checkpoint or "last")
    else:
        if out is None:
            raise ConfigError("give --out, the run directory to write")
        config = RunConfig.from_mapping(settings)
        refuse_unused(config)
        refuse_taken(Path(out), overwrite)
        chosen = completed(config)
        if chosen.sentence:
            say(chosen.sentence)
        run, result = train_run(chosen.config, Path(out), overwrite)
    say(_summary(run, result))


def refuse_unused(config: RunConfig) -> None:
    """Refuse a setting that is changed and has no effect on the system of the configuration.

    Args:
        config: The settings of a new run.

    Raises:
        ConfigError: For the first such setting.

    >>> refuse_unused(RunConfig(system="vae", sparsity=2.0))
    Traceback (most recent call last):
    pyroae.errors.ConfigError: sparsity makes no difference for the system 'vae': leave it out ...
    """
    for name in zoo.unused_settings(config):
        if getattr(config, name) != getattr(RunConfig, name):
            raise ConfigError(
                f"{name} makes no difference for the system '{config.system}': leave it out or "
                "choose another --system"
            )


def resumed(what: str, out: str | None, overwrite: bool, resume: str) -> Path:
    """Return the directory that `--resume` names.

    Args:
        what: What is resumed, a run or a study.
        out: The value of `--out`.
        overwrite: Whether `--overwrite` is given, which is refused.
        resume: The value of `--resume`; an empty text means that of `--out`.

    Returns:
        The directory.

    Raises:
        ConfigError: If no directory is named, or two are.

    >>> resumed("run", "runs/vae", False, "")
    PosixPath('runs/vae')
    """
    is_other = bool(resume) and out is not None and Path(out) != Path(resume)
    if overwrite or is_other or not (resume or out):
        raise ConfigError(
            f"--resume continues one {what} in its own directory: name that, and leave out "
            "--overwrite"
        )
    return Path(resume or str(out))


def _summary(run: Run, result: FitResult) -> str:
    last = result.history[result.best_epoch - 1] if result.best_epoch else result.history[-1]
    stopped = "stopped early; " if result.stopped_early else ""
    is_validated = not math.isnan(last.valid_nelbo)
    bound = last.valid_nelbo if is_validated else last.train_nelbo
    which = "validation" if is_validated else "training"
    skipped = (
        f"; {result.skipped} steps were left out, their loss or gradient not finite"
        if result.skipped
        else ""
    )
    return (
        f"{stopped}{len(result.history)} epochs, {result.seconds:.1f} s; weights of epoch "
        f"{last.epoch}: {which} negative bound {bound:.3f} nats per datum"
        f"{standardized_text(run.config)}; {run.path}{skipped}"
    )
