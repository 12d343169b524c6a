"""What a run is made of: frozen dataclasses and their YAML. Plain data: nothing here needs torch."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from types import UnionType
from typing import Any, Self, Union, get_args, get_origin, get_type_hints

import yaml

from pyroae.errors import ConfigError, unknown_name

SYSTEMS = ("linear-ae", "ae", "sparse-ae", "denoising-ae", "ppca", "vae", "discrete-vae")


DATASETS = ("digits", "mnist", "fashion-mnist", "kmnist", "emnist", "omniglot")


BINARIZATIONS = ("none", "threshold", "dynamic", "static")


OBJECTIVES = (
    *(
        "trace-elbo",
        "analytic-kl",
        "beta-elbo",
        "stl",
        "iwae",
        "iwae-stl",
        "dreg",
        "rws",
        "rws-dreg",
    ),
    *("renyi", "miwae", "ciwae", "piwae", "jvi", "vimco", "score", "tvo"),
)


BOUNDS = ("elbo", "iwae", "renyi", "miwae", "ciwae", "jvi", "tvo")


GRADIENTS = (
    *("pathwise", "sticking-the-landing", "doubly-reparameterized", "score"),
    *("wake-sleep", "wake-sleep-doubly-reparameterized", "covariance", "two-bounds"),
)


ACTIVATIONS = ("tanh", "relu", "elu", "gelu", "silu", "softplus", "sigmoid")


SCHEDULES = ("constant", "cosine", "linear", "burda")


MAPS = ("mlp", "conv", "linear")


PER_TRAINING = (
    "objective",
    "bound",
    "gradient",
    "num_particles",
    "seed",
    "epochs",
    "max_steps",
    "max_seconds",
)
"""Settings that differ between the trainings of a comparison, or that its budget gives."""


WHERE = ("accelerator", "data_root", "devices", "num_nodes", "strategy", "save_minutes")
"""Settings that say where and how a run is carried out, not what it comes to."""


RECORD = ("fingerprint", "shape", "versions")
"""What config.yaml of a run holds beside its settings."""


def option(default: Any, text: str, choices: tuple[str, ...] = ()) -> Any:
    """A dataclass field with its help text, and the names it accepts."""
    return field(default=default, metadata={"help": text, "choices": choices})


@dataclass(frozen=True)
class TrainConfig:
    """How a model is trained; every figure is checked when it is given.

    >>> TrainConfig(epochs=5, kl_warmup=10)
    Traceback (most recent call last):
    pyroae.errors.ConfigError: kl_warmup of 10 epochs is longer than the training of 5: the KL weight would never reach 1
    """

    epochs: int = option(50, "passes over the training data")
    max_steps: int | None = option(None, "stop after so many steps, in the middle of an epoch too")
    max_seconds: float | None = option(
        None, "stop after so many seconds of training, validation not counted"
    )
    batch_size: int = option(100, "data in one step")
    optimizer: str = option("Adam", "any optimizer of torch.optim, by name")
    lr: float = option(1e-3, "learning rate, for a loss in nats per datum")
    optimizer_args: dict[str, Any] = field(
        default_factory=dict, metadata={"help": "further arguments of the optimizer"}
    )
    schedule: str = option("constant", "learning rate over the epochs", SCHEDULES)
    grad_clip: float | None = option(None, "largest gradient norm, in nats per datum")
    kl_warmup: int = option(0, "epochs over which the weight of the KL grows from 0 to 1")
    patience: int | None = option(
        None, "stop after so many epochs without a better validation bound"
    )
    keep: str = option(
        "best", "the weights that stay: of the best validation bound, or the last", ("best", "last")
    )
    seed: int = option(
        0, "of the order of the data and every draw; on the command line of the initial weights too"
    )
    accelerator: str = option("auto", "device, in Lightning Fabric's names: auto, cpu, cuda, mps")
    compile: bool | str = option(
        "auto", "the step as compiled code; auto: in a long training", ("auto", "true", "false")
    )
    precision: str = option("32-true", "in Lightning Fabric's names: 32-true, 64-true, bf16-mixed")
    devices: int = option(
        1, "processes of a machine, each with a device of its own; -1 for all there are"
    )
    num_nodes: int = option(1, "machines")
    strategy: str = option(
        "auto", "how processes share the work: ddp, fsdp or another of Lightning Fabric's names"
    )
    nonfinite: str = option(
        "stop", "on a loss or gradient that is NaN or infinite", ("stop", "skip")
    )
    save_minutes: float = option(5.0, "minutes between checkpoints within an epoch")

    def __post_init__(self) -> None:
        _check_types(self)
        for name in ("epochs", "batch_size"):
            _at_least(name, getattr(self, name), 1)
        for name in ("kl_warmup", "seed"):
            _at_least(name, getattr(self, name), 0)
        _at_least("num_nodes", self.num_nodes, 1)
        if self.devices != -1:
            _at_least("devices", self.devices, 1)
        for name in ("lr", "grad_clip", "patience", "max_steps", "max_seconds", "save_minutes"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ConfigError(f"{name} must be positive, not {value}")
        if not isinstance(self.compile, bool) and self.compile != "auto":
            raise ConfigError(f"compile takes auto, true or false, not '{self.compile}'")
        _one_of("schedule", self.schedule, SCHEDULES)
        _one_of("keep", self.keep, ("best", "last"))
        _one_of("nonfinite", self.nonfinite, ("stop", "skip"))
        if self.nonfinite == "skip" and self.optimizer.lower() == "lbfgs":
            raise ConfigError(
                "nonfinite='skip' needs an optimizer that takes one gradient a step, not LBFGS"
            )
        if self.kl_warmup > self.epochs:
            raise ConfigError(
                f"kl_warmup of {self.kl_warmup} epochs is longer than the training of {self.epochs}: "
                "the KL weight would never reach 1"
            )

    @property
    def is_distributed(self) -> bool:
        """Whether there may be more than one process."""
        return self.devices != 1 or self.num_nodes != 1


@dataclass(frozen=True)
class RunConfig(TrainConfig):
    """All that is needed to run a training again; `RUN/config.yaml` holds it."""

    system: str = option("vae", "what to train", SYSTEMS)
    data: str = option(
        "digits", "a known dataset, or the path of a .npy, .npz, .csv or .parquet file", ()
    )
    data_root: str = option("data", "folder in which torchvision keeps its datasets")
    value_range: tuple[float, ...] | None = option(None, "LOW,HIGH of the data, mapped to 0,1")
    binarize: str | None = option(
        None, "grey to black and white; by default dynamic under a Bernoulli", BINARIZATIONS
    )
    valid_fraction: float = option(0.1, "share of the training data held out for validation")
    test_fraction: float = option(
        0.1, "share of data without a test set of its own held out for evaluation"
    )
    split_seed: int = option(0, "of the splits and of the fixed binary draws")
    objective: str = option(
        "trace-elbo", "ELBO estimator, as name, name:key=value or BOUND+GRADIENT", OBJECTIVES
    )
    bound: str | None = option(
        None, "bound of an estimator without a name, as name or name:key=value", BOUNDS
    )
    gradient: str | None = option(
        None, "gradient that goes with --bound (default: pathwise)", GRADIENTS
    )
    num_particles: int = option(1, "draws of z per datum in the objective")
    latent: int = option(20, "dimension of z")
    map: str | None = option(None, "form of encoder and decoder", MAPS)
    hidden: tuple[int, ...] | None = option(
        None, "widths of the encoder's hidden layers; the decoder's in reverse"
    )
    activation: str = option("tanh", "between layers", ACTIVATIONS)
    tied: bool = option(False, "decoder weights are the encoder's, transposed")
    prior: str | None = option(None, "p(z), as name or name:key=value, for example laplace:rate=2")
    posterior: str | None = option(
        None, "q(z|x): point, diagonal, exact-linear, bernoulli or categorical:categories=10"
    )
    likelihood: str | None = option(
        None, "p(x|z): bernoulli, continuous-bernoulli or normal:scale=0.1"
    )
    corruption: str | None = option(
        None, "of the guide's input: masking:probability=0.25, gaussian, salt-and-pepper"
    )
    sparsity: float = option(
        1.0, "rate of the Laplace prior of a sparse autoencoder: its L1 penalty"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("latent", "num_particles"):
            _at_least(name, getattr(self, name), 1)
        _at_least("split_seed", self.split_seed, 0)
        _one_of("system", self.system, SYSTEMS)
        _check_objective(self)
        _one_of("activation", self.activation, ACTIVATIONS)
        if self.binarize is not None:
            _one_of("binarization", self.binarize, BINARIZATIONS)
        if self.map is not None:
            _one_of("map", self.map, MAPS)
        for width in self.hidden or ():
            _at_least("hidden", width, 1)
        for name in ("valid_fraction", "test_fraction"):
            if not 0 <= getattr(self, name) < 1:
                raise ConfigError(f"{name} must be in [0, 1), not {getattr(self, name)}")
        if self.value_range is not None and not (
            len(self.value_range) == 2 and self.value_range[0] < self.value_range[1]
        ):
            raise ConfigError(
                f"value_range takes two numbers, LOW below HIGH, not {self.value_range}"
            )

    @property
    def estimator(self) -> str:
        """The objective as one text: a name with its settings, or BOUND+GRADIENT.

        >>> RunConfig(bound="jvi:order=2", gradient="doubly-reparameterized").estimator
        'jvi:order=2+doubly-reparameterized'
        """
        return (
            self.objective if self.bound is None else f"{self.bound}+{self.gradient or 'pathwise'}"
        )

    @property
    def training(self) -> TrainConfig:
        """The part that `fit` takes."""
        return TrainConfig(**{f.name: getattr(self, f.name) for f in fields(TrainConfig)})

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any]) -> Self:
        """A configuration from names and values, as YAML gives them.

        >>> RunConfig.from_mapping({"system": "vae", "hidden": [200, 200]}).hidden
        (200, 200)
        """
        known = {f.name for f in fields(cls)}
        ready: dict[str, Any] = {}
        for name, value in values.items():
            key = str(name).replace("-", "_")
            if key not in known:
                raise unknown_name("setting", str(name), sorted(known))
            ready[key] = tuple(value) if isinstance(value, list) else value
        return cls(**ready)

    @classmethod
    def from_yaml(cls, path: str | Path, **flags: Any) -> Self:
        """Read a YAML file; `flags` win over what it says. Raises ConfigError where it is no such file."""
        return cls.from_mapping({**read_yaml(path), **flags})

    def to_dict(self) -> dict[str, Any]:
        """Names and values, ready for YAML."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}

    def but(self, **changes: Any) -> Self:
        """The same configuration with some values changed."""
        return replace(self, **changes)


class _Loader(yaml.SafeLoader):
    """YAML with the numbers that people write: in YAML 1.1 `1e-3` would be text."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"),
    list("-+0123456789."),
)


def parse_yaml(text: str) -> Any:
    """The value that a YAML text writes. Raises ConfigError where it is none.

    >>> parse_yaml("1e-3"), parse_yaml("[3, 4]"), parse_yaml("true")
    (0.001, [3, 4], True)
    """
    try:
        return yaml.load(text, _Loader)
    except yaml.YAMLError as error:
        raise ConfigError(f"not YAML: {' '.join(str(error).split())}") from None


def read_yaml(path: str | Path) -> dict[str, Any]:
    """The mapping in a YAML file; a run's own record (fingerprint, shape, versions) is left out."""
    try:
        content = parse_yaml(Path(path).read_text())
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"cannot read the configuration {path}: {getattr(error, 'strerror', None) or error}"
        ) from None
    except ConfigError as error:
        raise ConfigError(f"the configuration {path} is {error}") from None
    if not isinstance(content, dict):
        raise ConfigError(f"the configuration {path} holds no settings of the form 'name: value'")
    return {k: v for k, v in content.items() if k not in RECORD}


def pair_of(objective: str) -> tuple[str, str] | None:
    """The texts of bound and gradient in BOUND+GRADIENT; None for the name of an objective.

    >>> pair_of("renyi:alpha=-1e+1+score:baseline=none"), pair_of("renyi:alpha=1e+1")
    (('renyi:alpha=-1e+1', 'score:baseline=none'), None)
    """
    bound, plus, gradient = next(iter(re.findall(r"^(.*?)(\+)([a-z].*)$", objective)), ("", "", ""))
    return (bound, gradient) if plus else None


def objectives_in(text: str) -> tuple[str, ...]:
    """The objectives of a list such as `--objectives` takes: commas also stand between the settings of one.

    >>> objectives_in("iwae,renyi:alpha=0.5,num_particles=4,jvi:order=2+doubly-reparameterized")
    ('iwae', 'renyi:alpha=0.5,num_particles=4', 'jvi:order=2+doubly-reparameterized')
    """
    return tuple(part.strip() for part in re.split(r",(?=\s*[a-z-]+\s*(?:[:,+]|$))", text))


def check_objective_names(objective: str) -> None:
    """Raises ConfigError for an objective, bound or gradient that does not exist."""
    pair = pair_of(objective)
    for kind, text, known in (
        (("bound", pair[0], BOUNDS), ("gradient", pair[1], GRADIENTS))
        if pair
        else (("objective", objective, OBJECTIVES),)
    ):
        _one_of(kind, text.partition(":")[0].strip(), known)


def _check_objective(config: RunConfig) -> None:
    if config.bound is None and config.gradient is not None:
        raise ConfigError(
            f"the gradient '{config.gradient}' needs its bound, as in --bound iwae --gradient {config.gradient}"
        )
    if config.bound is not None and config.objective != "trace-elbo":
        raise ConfigError(
            f"give either the objective '{config.objective}' or the bound '{config.bound}', not both"
        )
    check_objective_names(config.estimator)


def _check_types(config: TrainConfig) -> None:
    for name, wanted in get_type_hints(type(config)).items():
        if not _fits(getattr(config, name), wanted):
            text = getattr(wanted, "__name__", str(wanted)).replace("NoneType", "None")
            raise ConfigError(f"{name} takes {text}, not {getattr(config, name)!r}")


def _fits(value: Any, wanted: Any) -> bool:
    origin = get_origin(wanted)
    if origin in (UnionType, Union):
        return any(_fits(value, option) for option in get_args(wanted))
    if origin is tuple:
        return isinstance(value, tuple) and all(_fits(v, get_args(wanted)[0]) for v in value)
    if wanted is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if wanted is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, origin or wanted)


def _at_least(name: str, value: int, least: int) -> None:
    if value < least:
        raise ConfigError(f"{name} must be at least {least}, not {value}")


def _one_of(kind: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise unknown_name(kind, value, known)


def compared(names: Sequence[str], ks: Sequence[int]) -> None:
    """Raises ConfigError for objectives, to be compared at each K, that do not exist or have a K of their own."""
    for name in names:
        check_objective_names(name)
        if "num_particles=" in name.replace(" ", ""):
            raise ConfigError(f"--num-particles gives every K: leave num_particles out of '{name}'")
    if not ks or min(ks) < 1:
        raise ConfigError(f"num_particles must be at least 1, not {min(ks, default='none')}")


def at_least_one(name: str, value: int) -> None:
    """Raises ConfigError for a count below 1."""
    if value < 1:
        raise ConfigError(f"{name} must be at least 1, not {value}")
