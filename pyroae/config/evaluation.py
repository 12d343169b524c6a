"""What is evaluated, and how: settings of `evaluate` and of annealing, and the part of the data."""

import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Self

from pyroae.config.checks import at_least_one, check_compile, one_of, option
from pyroae.config.text import objectives_in
from pyroae.errors import ConfigError, unknown_name
from pyroae.runtime.short_repr import Settings

METHODS = ("is", "ais", "bdmc", "exact", "quadrature", "gaps")
"""Ways to the log-likelihood."""


PROPOSALS = ("guide", "prior", "wider", "heavy-tailed", "defensive", "local")
"""Names of proposals made from a model and its guide."""


STARTS = ("prior", "guide")
"""Where the path of annealing starts."""


PATHS = ("sigmoid", "linear")
"""How the temperatures of annealing are spaced."""


CHECKPOINTS = ("best", "last", "previous")
"""Names of the weights of a run, beside its snapshots."""


POSTERIOR_DRAWS = 20
"""Draws of the posterior per chain that an evaluation by annealing keeps."""


ALL = "all"
"""The name of all snapshots and the weights that the training kept."""


@dataclass(frozen=True, repr=False)
class Part(Settings):
    """A part of the data, and the weights that it is put to.

    Attributes:
        data: Other data than those of the run, as `--data` names them; None for the run's own.
        split: The part: test, valid or train.
        num_data: How many of the first data; None for all.
        checkpoint: The weights: best, last, previous or the snapshot of an epoch, as epoch-10 or
            10; `all` for every snapshot and the kept weights; None for the kept weights alone.

    Raises:
        ConfigError: For an unknown part or checkpoint, and for less than one datum.

    >>> Part(checkpoint="lest")
    Traceback (most recent call last):
    pyroae.errors.ConfigError: unknown checkpoint 'lest': did you mean 'last'? Known: best, ...
    """

    data: str | None = option(None, "other data than the run was trained on: a name or a file")
    split: str = option("test", "which part", ("test", "valid", "train"))
    num_data: int | None = option(None, "only the first N")
    checkpoint: str | None = option(
        None,
        "which weights; all: those of every snapshot (default: those the training kept)",
        (*CHECKPOINTS, "epoch-N", ALL),
    )

    def __post_init__(self) -> None:
        one_of("split", self.split, ("test", "valid", "train"))
        if self.num_data is not None:
            at_least_one("num_data", self.num_data)
        if self.checkpoint is not None and snapshot_epoch(self.checkpoint) is None:
            known = (*CHECKPOINTS, ALL)
            if self.checkpoint not in known:
                raise unknown_name("checkpoint", self.checkpoint, (*known, "epoch-N"))


def snapshot_epoch(name: str) -> int | None:
    """Read the epoch of a snapshot from its name.

    Args:
        name: The name of a checkpoint.

    Returns:
        The epoch; None for a name that is not of a snapshot.

    >>> [snapshot_epoch(name) for name in ("epoch-0010", "epoch-10", "10", "last")]
    [10, 10, 10, None]
    """
    found = re.fullmatch(r"(?:epoch-)?(\d+)", name, re.ASCII)
    return None if found is None else int(found[1])


def snapshot_name(epoch: int) -> str:
    """Return the name of the snapshot of an epoch.

    Args:
        epoch: The epoch, 0 for the initial weights.

    Returns:
        The name, which is that of its file in RUN/checkpoints too.

    >>> snapshot_name(10)
    'epoch-0010'
    """
    return f"epoch-{epoch:04d}"


@dataclass(frozen=True, repr=False)
class GradientSettings(Settings):
    """What gradients are compared, and how they are measured.

    Attributes:
        objectives: The estimators, each a name with its settings, or BOUND+GRADIENT.
        num_particles: Numbers of particles K.
        replicates: Draws of each gradient.
        reference: The objective that the bias is measured from; by default iwae, or the first.
            "enumerate" may be given although it is not compared: it is exact for discrete latents.
        seed: Seed of the draws.
        control_steps: Steps on what an objective learns, at the weights of the run, before its
            gradients are measured.

    >>> GradientSettings().names
    ('iwae', 'dreg', 'stl', 'vimco')
    """

    objectives: str = option("iwae,dreg,stl,vimco", "estimators to compare")
    num_particles: tuple[int, ...] = option((1, 4, 16, 64, 256), "numbers of particles K")
    replicates: int = option(1000, "draws of each gradient")
    reference: str | None = option(
        None, "what the bias is measured from (default: iwae, or the first; enumerate: exact)"
    )
    seed: int = option(0, "of the draws")
    control_steps: int = option(500, "steps on a baseline that an objective learns, beforehand")

    @property
    def names(self) -> tuple[str, ...]:
        """The text of each objective."""
        return objectives_in(self.objectives)


@dataclass(frozen=True, repr=False)
class AISSettings(Settings):
    """The path of annealing, and the moves along it.

    Attributes:
        num_chains: C, chains per datum.
        num_distributions: T, the steps from β = 0 to 1.
        start: Where the path starts, at the "prior" or at the "guide".
        schedule: "sigmoid" is σ(4(2t/T − 1)) rescaled to 0 to 1, denser at both ends, or "linear".
        leapfrog_steps: Leapfrog steps of each Hamiltonian move.
        target_acceptance: The mean acceptance probability that step sizes are tuned to.
        double: Whether to run in double precision.
        posterior_draws: S, draws of p(z|x) that `ais` keeps of each chain after the path; 0 for
            none.
        thinning: Hamiltonian moves at β = 1 for each of these draws.

    Raises:
        ConfigError: For values out of range and unknown names.

    References:
        Wu et al. 2017, On the quantitative analysis of decoder-based generative models.

    >>> AISSettings(num_distributions=4, schedule="linear").betas
    [0.0, 0.25, 0.5, 0.75, 1.0]
    """

    num_chains: int = option(16, "annealing: chains per datum")
    num_distributions: int = option(1000, "annealing: steps from the start to the posterior")
    start: str = option("prior", "annealing: where it starts", STARTS)
    schedule: str = option("sigmoid", "annealing: spacing of the temperatures", PATHS)
    leapfrog_steps: int = option(10, "annealing: of each Hamiltonian move")
    target_acceptance: float = option(0.65, "annealing: of the moves")
    double: bool = option(False, "annealing: in double precision")
    posterior_draws: int = option(0, "ais: draws of the posterior to keep per chain; 0: none")
    thinning: int = option(5, "ais: Hamiltonian moves per draw of the posterior")

    def __post_init__(self) -> None:
        counts = {"num_chains": 1, "num_distributions": 1, "leapfrog_steps": 1}
        counts |= {"posterior_draws": 0, "thinning": 1}
        for name, least in counts.items():
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                raise ConfigError(
                    f"{name} must be a whole number of at least {least}, not {value!r}"
                )
        if self.posterior_draws and self.num_distributions == 1:
            raise ConfigError(
                "posterior_draws needs num_distributions of at least 2: with 1 there are no moves, "
                "and no step size for draws of the posterior; give posterior_draws=0"
            )
        if not 0 < self.target_acceptance < 1:
            raise ConfigError(
                f"target_acceptance must lie between 0 and 1, not {self.target_acceptance!r}"
            )
        one_of("start", str(self.start), STARTS)
        one_of("schedule", str(self.schedule), PATHS)

    @property
    def posterior_moves(self) -> int:
        """The number of moves at β = 1 that the posterior draws take."""
        return self.posterior_draws * self.thinning

    @property
    def betas(self) -> list[float]:
        """The inverse temperatures from β_0 = 0 to β_T = 1, T + 1 numbers."""
        at = [t / self.num_distributions for t in range(self.num_distributions + 1)]
        if self.schedule == "linear":
            return at
        low, high = _sigmoid(-4.0), _sigmoid(4.0)
        inner = [(_sigmoid(4 * (2 * t - 1)) - low) / (high - low) for t in at[1:-1]]
        return [0.0, *inner, 1.0]


def _sigmoid(value: float) -> float:
    return 1 / (1 + math.exp(-value))


@dataclass(frozen=True, repr=False)
class EvaluationSettings(Settings):
    """What is evaluated, and how.

    Attributes:
        methods: Of `is` (importance sampling), `ais`, `bdmc`, `exact`, `quadrature` and `gaps`; by
            default `is` and `exact`, where the system has them.
        num_particles: K of importance sampling, at most where there is a tolerance.
        tolerance: Error of the mean, in nats per datum, below which importance sampling stops.
        proposal: What importance sampling draws from: guide, prior, wider, heavy-tailed,
            defensive or local.
        retry: The proposal for data whose k̂ is too high; None for no second attempt.
        annealing: Settings of `ais` and `bdmc`; by default with `POSTERIOR_DRAWS` draws of the
            posterior per chain.
        seed: Seed of the draws.
        checkpoints: A folder in which annealing keeps its work, from which a stopped one resumes.
        compile: Whether `is`, `ais` and `bdmc` are compiled code; "auto" where it pays.

    Raises:
        ConfigError: For unknown names and numbers below 1.

    >>> EvaluationSettings(proposal="widder")
    Traceback (most recent call last):
    pyroae.errors.ConfigError: unknown proposal 'widder': did you mean 'wider'? Known: guide, ...
    """

    methods: tuple[str, ...] | None = option(
        None,
        "of the log-likelihood (default: is, and exact where it is defined)",
        METHODS,
        flag="--method",
    )
    num_particles: int = option(5000, "K of importance sampling")
    tolerance: float | None = option(
        None, "stop importance sampling when the error of the mean, in nats, is below it"
    )
    proposal: str = option("guide", "what importance sampling draws from", PROPOSALS)
    retry: str | None = option(None, "the proposal for data whose k̂ is too high", PROPOSALS)
    annealing: AISSettings = field(
        default_factory=lambda: AISSettings(posterior_draws=POSTERIOR_DRAWS)
    )
    seed: int = option(0, "of the draws")
    checkpoints: Path | None = None
    compile: bool | str = option(
        "auto",
        "importance sampling and annealing as compiled code; auto: where it pays",
        ("auto", "true", "false"),
    )

    def __post_init__(self) -> None:
        for method in self.methods or ():
            one_of("method", method, METHODS)
        at_least_one("num_particles", self.num_particles)
        for name in (self.proposal, self.retry):
            if name is not None:
                one_of("proposal", name, PROPOSALS)
        check_compile(self.compile)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Make settings from names and values, as the command line and evaluation.yaml give them.

        Args:
            values: Settings by name; `method` or `methods` as a text with commas, or as a list;
                those of annealing in a mapping `annealing`, or beside the others.

        Returns:
            The settings.

        Raises:
            ConfigError: For what the class refuses.

        >>> EvaluationSettings.from_dict({"method": "is,ais", "num_chains": 4}).annealing.num_chains
        4
        """
        own = {f.name: values[f.name] for f in fields(cls) if f.name in values}
        methods = values.get("method", own.get("methods"))
        if isinstance(methods, str):
            methods = [name.strip() for name in methods.split(",")]
        along: dict[str, Any] = {"posterior_draws": POSTERIOR_DRAWS}
        along |= {f.name: values[f.name] for f in fields(AISSettings) if f.name in values}
        along |= dict(values.get("annealing") or {})
        given = {"methods": None if methods is None else tuple(methods)}
        return cls(**{**own, **given, "annealing": AISSettings(**along)})

    def to_dict(self) -> dict[str, Any]:
        """Return names and values, ready for YAML, without the folder of checkpoints."""
        methods = None if self.methods is None else ",".join(self.methods)
        values = {k: v for k, v in asdict(self).items() if k not in ("methods", "checkpoints")}
        return {"method": methods, **values}
