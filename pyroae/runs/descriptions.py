"""What the report of a run says in words: summary, model, data, training, commands."""

import math
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

import torch

from pyroae import zoo
from pyroae.config import AISSettings, EvaluationSettings, Part, RunConfig, read_yaml
from pyroae.config.evaluation import POSTERIOR_DRAWS
from pyroae.errors import PyroaeError
from pyroae.evaluation.importance.streams import LEAST_ESS
from pyroae.evaluation.results import Result, by_name
from pyroae.runs.data_of_run import binarization_of
from pyroae.runs.page import number
from pyroae.runs.parts import EvaluatedPart
from pyroae.runs.run import Run
from pyroae.runtime.randomness import fork_random
from pyroae.runtime.short_text import duration, shape_text, with_error
from pyroae.training.state import Epoch

Rows = list[tuple[str, str, str]]
"""Rows of a table: name, value, and a help text or nothing."""


OF_MODEL = ("system", "program", "latent", "hierarchy", "map", "hidden", "activation", "tied")
"""Settings that the table of the model has."""


HOW_READ = (
    *("labels", "array", "scale", "value_range", "channels", "condition", "num_labels"),
    "missing",
)
"""Settings that the table of the data has."""


CHOICES = ("prior", "posterior", "likelihood", "corruption")
"""The four choices."""


OF_TRAINING = (
    *("epochs", "max_steps", "max_seconds", "batch_size", "optimizer", "lr", "optimizer_args"),
    *("schedule", "grad_clip", "kl_warmup", "patience", "keep", "seed", "precision"),
)
"""Settings that the table of the training has."""


UNITS = {
    "lr": "for a loss in nats per datum",
    "grad_clip": "nats per datum",
    "max_seconds": "s",
    "kl_warmup": "epochs",
    "patience": "epochs",
}
"""What a number of a setting is in."""


HEADLINES = {
    "nll_exact": "in closed form",
    "nll_quadrature": "by quadrature",
    "nll": "by importance sampling with {K} draws per datum",
    "nll_ais": "by annealing with {K} chains per datum",
}
"""Results that the summary may name first, and how they were computed."""


def summary_of(
    run: Run, parts: Mapping[EvaluatedPart, list[Result]], history: Sequence[Epoch]
) -> list[str]:
    """Say in a few sentences what the run has reached, and how reliable that is.

    Args:
        run: The run.
        parts: Its results by part, the first one first.
        history: Its epochs.

    Returns:
        The sentences.
    """
    part, rows = next(iter(parts.items()), (EvaluatedPart(), []))
    results = by_name(rows)
    headline = next((results[name] for name in HEADLINES if name in results), None)
    bound = results.get("nelbo")
    if headline is None and bound is None:
        return [trained_of(run, history), f"Not evaluated yet: `pyroae evaluate {run.path.name}`."]
    sentences = []
    if headline is not None:
        how = HEADLINES[headline.name].replace("{K}", f"{headline.num_particles:,}")
        sentences.append(f"NLL of {part.num_data:,} {part.split or 'held-out'} data, {how}: ")
        sentences[0] += f"{_with_error(headline)} nats per datum (mean ± SE)."
    if bound is not None:
        sentences.append(f"Negative ELBO: {_with_error(bound)} nats per datum.")
    return [" ".join(sentences), *_units(run.config), *_reliability(headline, results)]


def _units(config: RunConfig) -> list[str]:
    """What the densities of standardized data are of."""
    if config.scale != "standard":
        return []
    if config.program is not None:
        return ["The data are standardized: densities are of the standardized values."]
    return [
        "The data are standardized. log p(x), bounds and distortion of the evaluation are "
        "densities in the units of the data file; those along the training, squared errors and "
        "pictures are of standardized values."
    ]


def _with_error(row: Result) -> str:
    return with_error(row.estimate, row.se).replace("-", "−")


def _reliability(headline: Result | None, results: Mapping[str, Result]) -> list[str]:
    """How far the NLL can be trusted, in plain words."""
    if headline is None or headline.name in ("nll_exact", "nll_quadrature"):
        return []
    if headline.name == "nll_ais":
        return []
    flags = results.get("unreliable")
    if flags is None:
        return ["With so few draws there is no k̂: the error of the NLL cannot be trusted."]
    count, total = round(flags.estimate), flags.num_data
    if not count:
        return [
            f"Reliable: for all {total:,} data no single draw dominates the importance weights "
            f"(k̂ below its limit, ESS of {LEAST_ESS:.0f} or more)."
        ]
    sentence = (
        f"Not reliable for {count:,} of {total:,} data: a few draws dominate their importance "
        f"weights (k̂ above its limit, or ESS below {LEAST_ESS:.0f}), so that their NLL may be "
        "wrong. More draws, `--retry local` or `--method ais` help."
    )
    if "nll_ais" in results:
        sentence += f" Annealing gives {_with_error(results['nll_ais'])} nats per datum."
    return [sentence]


def trained_of(run: Run, history: Sequence[Epoch]) -> str:
    """Say how long a run was trained, and how good the weights are that were kept.

    Args:
        run: The run.
        history: Its epochs.

    Returns:
        A sentence.
    """
    if not history:
        return "No epoch is finished yet."
    last, kept = history[-1], min(run.kept_epoch, len(history)) or len(history)
    text = f"{last.epoch:,} epochs, {last.step:,} steps, {duration(last.seconds)} of training."
    best = history[kept - 1]
    which = "training" if math.isnan(best.valid_nelbo) else "validation"
    value = best.train_nelbo if math.isnan(best.valid_nelbo) else best.valid_nelbo
    return (
        f"{text} The weights of epoch {kept} were kept; their negative bound on the {which} data "
        f"is {number(value, 2)} nats per datum{standardized_text(run.config)}."
    )


def standardized_text(config: RunConfig) -> str:
    """Return a remark for a figure of the training.

    Args:
        config: The settings of the run.

    Returns:
        That it is of standardized values; empty for other data.
    """
    return " of standardized values" if config.scale == "standard" else ""


def model_of(run: Run) -> Rows:
    """Describe the model and the guide.

    Args:
        run: The run.

    Returns:
        The system with its maps, the four choices as they are, and the number of parameters.
    """
    rows = _rows(run.config, OF_MODEL)
    if run.config.program is not None:
        return [row for row in rows if row[0] == "program"]
    try:
        with fork_random(torch.device("cpu"), 0):
            system = zoo.from_config(run.config, run.shape, len(run.condition_names))
    except PyroaeError:
        return rows + _rows(run.config, CHOICES)
    choices = [(name, repr(getattr(system, name)), help_of(name)) for name in CHOICES]
    counts = [sum(p.numel() for p in part.parameters()) for part in (system, system.encoder)]
    about = f"{counts[0]:,}, of which {counts[1]:,} in the encoder"
    return [*rows, *choices, ("parameters", about, "")]


def data_of(run: Run) -> Rows:
    """Describe the data.

    Args:
        run: The run.

    Returns:
        Source, shape, sizes of the parts, and how values were changed.
    """
    rows = [("source", run.config.data, ""), ("shape of a datum", shape_text(run.shape), "")]
    if run.sizes:
        sizes = ", ".join(f"{name} {size:,}" for name, size in run.sizes.items())
        rows.append(("data", sizes, "numbers of data for training, validation and test"))
    rows.append(("binarization", binarization_of(run.config), help_of("binarize")))
    rows += _rows(run.config, HOW_READ)
    return [*rows, ("fingerprint", run.fingerprint, "a checksum of the values")]


def optimization_of(config: RunConfig) -> Rows:
    """Describe the training.

    Args:
        config: The settings of a run.

    Returns:
        Its settings, without those that have no effect.
    """
    return _rows(config, OF_TRAINING)


def settings_of(config: RunConfig) -> Rows:
    """List all settings.

    Args:
        config: The settings of a run.

    Returns:
        A row for each.
    """
    return [(name, str(value), help_of(name)) for name, value in config.to_dict().items()]


def commands_of(run: Run) -> list[str]:
    """Return the commands that repeat a run.

    Args:
        run: The run.

    Returns:
        Shell commands; those of the evaluations as evaluation.yaml records them.
    """
    name = shlex.quote(run.path.resolve().name)
    file = run.path / "evaluation.yaml"
    read: Mapping[str, Any] = read_yaml(file) if file.is_file() else {}
    again = f"{name}-again"
    evaluations = read.get("evaluations", [read] if read else [])
    commands = [
        f"pyroae train --config {name}/config.yaml --out {again}",
        *(f"pyroae evaluate {again}{_flags(options)}" for options in evaluations),
    ]
    if read:
        commands += [f"# or all of it, with a comparison of every figure:\npyroae reproduce {name}"]
    return commands


def _flags(options: Mapping[str, Any]) -> str:
    """The options of an evaluation that differ from their defaults, as flags."""
    defaults: dict[str, Any] = {}
    annealing = AISSettings(posterior_draws=POSTERIOR_DRAWS)
    for settings in (EvaluationSettings(), annealing, Part()):
        defaults |= {field.name: getattr(settings, field.name) for field in fields(settings)}
    given = {**options, **options.get("annealing", {})}
    words = []
    for name, value in given.items():
        if name in ("annealing", "imports") or value == defaults.get(name):
            continue
        flag = f"--{name.replace('_', '-')}"
        words.append(flag if value is True else f"{flag} {shlex.quote(str(value))}")
    words += [f"--import {shlex.quote(module)}" for module in options.get("imports", ())]
    return "".join(f" {word}" for word in words)


def _rows(config: RunConfig, names: Sequence[str]) -> Rows:
    """Rows of settings; one that is not set, or has no effect, is left out."""
    unused = zoo.unused_settings(config)
    rows = []
    for name in names:
        value = getattr(config, name)
        if (not value and name != "seed") or name in unused:
            continue
        text = ", ".join(map(str, value)) if isinstance(value, tuple) else str(value)
        unit = f" {UNITS[name]}" if name in UNITS and value else ""
        rows.append((name.replace("_", " "), text + unit.replace(" for", ", for"), help_of(name)))
    return rows


def help_of(name: str) -> str:
    """Return the help text of a setting of a run.

    Args:
        name: The setting.

    Returns:
        The text; empty for another name.
    """
    return next((str(f.metadata.get("help", "")) for f in fields(RunConfig) if f.name == name), "")
