"""What a run is made of: its system or program, its data, its objective and its training."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, Self

from pyroae.config.checks import at_least, one_of, option
from pyroae.config.text import check_objective_names, loggers_in
from pyroae.config.training import TrainConfig
from pyroae.errors import ConfigError, unknown_name
from pyroae.names import check_name, import_all, located
from pyroae.runtime.settings_text import program_parts, read_yaml

BINARIZATIONS = ("none", "threshold", "dynamic", "static")
"""How data become black and white."""


CHANNELS = ("first", "last", "grey")
"""Where images have their channels, or that colours become grey."""


SCALES = ("none", "255", "standard")
"""How values are scaled: as stored, divided by 255, or mean 0 and standard deviation 1."""


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


WHERE = (
    *("accelerator", "data_root", "devices", "imports", "logger", "num_nodes", "strategy"),
    "save_minutes",
)
"""Settings of where and how a run is carried out, on which its figures do not depend."""


SEMI_SUPERVISED = "m2"
"""The system that learns from labels of which some are missing."""


OF_DATA = (
    *("data", "data_root", "labels", "array", "value_range", "scale", "channels", "binarize"),
    *("valid_fraction", "test_fraction", "split_seed", "condition", "num_labels", "missing"),
)
"""Settings of the data, which all trainings of a comparison share."""


OF_SYSTEM = (
    *("system", "latent", "hierarchy", "map", "hidden", "activation", "tied"),
    *("prior", "posterior", "likelihood", "corruption", "sparsity", "classification"),
)
"""Settings of a system of the zoo, which a program does not have."""


@dataclass(frozen=True, repr=False)
class RunConfig(TrainConfig):
    """All that is needed to run a training again; `RUN/config.yaml` holds it.

    The modules of `imports` and of `program` are imported when a configuration is made, before
    any name is looked up.

    Attributes:
        imports: A user's modules that register choices: names of modules or paths of .py files.
        program: A user's model and guide, as MODULE, MODULE:NAME or MODULE:NAME:key=value.
        system: What is trained where there is no program.
        data: The name of a dataset with its settings, or the path of a file.
        data_root: The folder of torchvision's datasets.
        labels: The column of a table, or the array of a file, that holds the labels; or none.
        array: The array of a file that holds the data.
        value_range: LOW and HIGH of the data, which are mapped to 0 and 1. Where it is None, grey
            levels of type uint8 are mapped from [0, 255], but counts and codes are left as stored.
        scale: In place of `value_range`: none, 255 or standard.
        channels: Where images have their channels, for shapes that do not tell: first or last; or
            grey, which converts colours to grey.
        binarize: How grey data become black and white; by default dynamic under a Bernoulli.
        valid_fraction: Share of the training data held out for validation.
        test_fraction: Share held out for evaluation of data without a test set of their own.
        split_seed: Seed of the splits and of the fixed binary draws.
        condition: What the data are conditioned on: `labels`, or columns of a table.
        num_labels: Labels of the training data that M2 sees, as many of each class; by default all.
        missing: Whether NaN, and an empty cell of a table, is a missing value.
        objective: The ELBO estimator: a name with its settings, or BOUND+GRADIENT.
        bound: The bound of an estimator without a name.
        gradient: The gradient for `bound`; by default pathwise.
        num_particles: K, draws of z per datum in the objective.
        latent: m, the dimension of z; of several layers m_1, m_2, ..., from the data upwards.
        hierarchy: The maps between layers of z, and the order of the guide.
        map: The form of encoder and decoder.
        hidden: Widths of the encoder's hidden layers; the decoder's are in reverse order.
        activation: The activation between layers.
        tied: Whether the decoder's weights are the encoder's, transposed.
        prior: p(z), as `name` or `name:key=value`; so are the next three.
        posterior: q(z|x).
        likelihood: p(x|z).
        corruption: The corruption of the guide's input.
        sparsity: λ, the rate of the Laplace prior of a sparse autoencoder, and the threshold of
            its codes.
        classification: The weight of the classification loss of M2: α = weight · N / N_labelled.
        logger: Loggers that record the training beside metrics.csv, as `csv,tensorboard`.

    Raises:
        ConfigError: For a value of another type or out of range, an unknown name, a module that
            cannot be imported, and settings that exclude each other.

    >>> RunConfig(objective="trace-elbow")
    Traceback (most recent call last):
    pyroae.errors.ConfigError: unknown objective 'trace-elbow': did you mean 'trace-elbo'? ...
    """

    imports: tuple[str, ...] = option(
        (), "your module or .py file with choices of your own; may be repeated", flag="--import"
    )
    program: str | None = option(
        None, "your model and guide in place of a system: MODULE:NAME, or FILE.py:NAME"
    )
    system: str = option("vae", "what to train", kind="system")
    data: str = option(
        "digits",
        "a dataset, or the path of a file (.npy .npz .csv .parquet .h5 ...) or a folder of images",
        kind="dataset",
    )
    data_root: str = option("data", "folder in which torchvision keeps its datasets")
    labels: str | None = option(
        None, "column or array that holds the labels, or none (default: label, target, class or y)"
    )
    array: str | None = option(
        None, "array that holds the data, of a file with several (default: x or data, or by shape)"
    )
    value_range: tuple[float, ...] | None = option(
        None, "LOW,HIGH of the data, mapped to 0,1; 0,1 leaves values as stored"
    )
    scale: str | None = option(
        None, "values as stored, divided by 255, or of mean 0 and standard deviation 1", SCALES
    )
    channels: str | None = option(
        None, "of images: first or last, if the shape does not tell; or grey", CHANNELS
    )
    binarize: str | None = option(
        None, "grey to black and white; by default dynamic under a Bernoulli", BINARIZATIONS
    )
    valid_fraction: float = option(0.1, "share of the training data held out for validation")
    test_fraction: float = option(
        0.1, "share of data without a test set of its own held out for evaluation"
    )
    split_seed: int = option(0, "of the splits and of the fixed binary draws")
    condition: str | None = option(
        None, "what x and z are conditioned on: labels, or COLUMN[,COLUMN...] of a table"
    )
    num_labels: int | None = option(
        None, "labels of the training data that m2 sees, as many of each class (default: all)"
    )
    missing: bool = option(
        False, "whether NaN, and an empty cell, is a missing value, which is left out of the bound"
    )
    objective: str = option(
        "trace-elbo", "ELBO estimator, as name, name:key=value or BOUND+GRADIENT", kind="objective"
    )
    bound: str | None = option(
        None, "bound of an estimator without a name, as name or name:key=value", kind="bound"
    )
    gradient: str | None = option(
        None, "gradient that goes with --bound (default: pathwise)", kind="gradient"
    )
    num_particles: int = option(1, "draws of z per datum in the objective")
    latent: int | tuple[int, ...] = option(
        20, "dimension of z; of several layers A,B from the data upwards"
    )
    hierarchy: str | None = option(
        None, "guide of several layers, for example top-down:widths=[100]", kind="hierarchy"
    )
    map: str | None = option(None, "form of encoder and decoder", kind="map")
    hidden: tuple[int, ...] | None = option(
        None, "widths of the encoder's hidden layers; the decoder's in reverse"
    )
    activation: str = option("tanh", "between layers", kind="activation")
    tied: bool = option(False, "decoder weights are the encoder's, transposed")
    prior: str | None = option(
        None, "p(z), as name or name:key=value, for example laplace:rate=2", kind="prior"
    )
    posterior: str | None = option(
        None, "q(z|x), for example categorical:categories=10", kind="posterior"
    )
    likelihood: str | None = option(
        None, "p(x|z), for example normal:scale=optimal", kind="likelihood"
    )
    corruption: str | None = option(
        None, "of the guide's input, for example masking:probability=0.25", kind="corruption"
    )
    sparsity: float = option(
        0.25, "rate of the Laplace prior of a sparse autoencoder: its L1 penalty and threshold"
    )

    classification: float = option(
        0.1, "weight of the classification loss of m2, times N / N_labelled"
    )

    logger: str | None = option(
        None, "also record the training with A,B, each as name or name:key=value", kind="logger"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        import_all(self.modules)
        for text in loggers_in(self.logger):
            check_name("logger", text)
        at_least("num_particles", self.num_particles, 1)
        self._check_layers()
        at_least("split_seed", self.split_seed, 0)
        for kind in ("system", "activation", "map", "hierarchy"):
            if getattr(self, kind) is not None:
                check_name(kind, getattr(self, kind))
        self._check_objective()
        self._check_program()
        self._check_labels()
        if self.binarize is not None:
            one_of("binarization", self.binarize, BINARIZATIONS)
        if self.scale is not None:
            one_of("scale", self.scale, SCALES)
            if self.value_range is not None:
                raise ConfigError(f"give either the scale {self.scale} or a value_range, not both")
        if self.channels is not None:
            one_of("place of channels", self.channels, CHANNELS)
        for width in self.hidden or ():
            at_least("hidden", width, 1)
        for name in ("valid_fraction", "test_fraction"):
            if not 0 <= getattr(self, name) < 1:
                raise ConfigError(f"{name} must be in [0, 1), not {getattr(self, name)}")
        if self.value_range is not None and not (
            len(self.value_range) == 2 and self.value_range[0] < self.value_range[1]
        ):
            raise ConfigError(
                f"value_range takes two numbers, LOW below HIGH, not {self.value_range}"
            )

    def _check_layers(self) -> None:
        sizes = (self.latent,) if isinstance(self.latent, int) else self.latent
        if not sizes:
            raise ConfigError("latent takes the size of at least one layer, not an empty list")
        for size in sizes:
            at_least("latent", size, 1)

    def _check_objective(self) -> None:
        if self.bound is None and self.gradient is not None:
            raise ConfigError(
                f"the gradient '{self.gradient}' needs its bound, as in --bound iwae "
                f"--gradient {self.gradient}"
            )
        if self.bound is not None and self.objective != "trace-elbo":
            raise ConfigError(
                f"give either the objective '{self.objective}' or the bound '{self.bound}', "
                "not both"
            )
        check_objective_names(self.estimator)

    def _check_program(self) -> None:
        defaults = {f.name: f.default for f in fields(self)}
        for name in OF_SYSTEM if self.program is not None else ():
            if getattr(self, name) != defaults[name]:
                raise ConfigError(
                    f"the program '{self.program}' is the whole of model and guide: leave out "
                    f"{name}, or write settings of the program as MODULE:NAME:key=value"
                )

    def _check_labels(self) -> None:
        is_m2 = self.system == SEMI_SUPERVISED and self.program is None
        if is_m2 and self.condition not in (None, "labels"):
            raise ConfigError(
                f"{self.system} learns from labels: leave out the condition '{self.condition}'"
            )
        if self.num_labels is not None and not is_m2:
            raise ConfigError(
                f"num_labels hides labels from {SEMI_SUPERVISED}; {self.system} uses all or none"
            )
        if self.classification < 0:
            raise ConfigError(f"classification must be at least 0, not {self.classification}")

    @property
    def modules(self) -> tuple[str, ...]:
        """The user's modules, that of the program last."""
        if self.program is None:
            return self.imports
        return (*self.imports, program_parts(self.program)[0])

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
        """The settings that `fit` takes."""
        return TrainConfig(**{f.name: getattr(self, f.name) for f in fields(TrainConfig)})

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any]) -> Self:
        """Make a configuration from names and values, as YAML gives them.

        Args:
            values: Settings by name; lists become tuples.

        Returns:
            The configuration.

        Raises:
            ConfigError: For a name that is no setting, and for what the class refuses.

        >>> RunConfig.from_mapping({"system": "vae", "hidden": [200, 200]}).hidden
        (200, 200)
        """
        names = {f.name for f in fields(cls)}
        ready: dict[str, Any] = {}
        for name, value in values.items():
            key = str(name).replace("-", "_")
            if key not in names:
                raise unknown_name("setting", str(name), sorted(names))
            ready[key] = tuple(value) if isinstance(value, list) else value
        if ready.get("scale") == 255:  # a number in YAML
            ready["scale"] = "255"
        if isinstance(ready.get("imports"), str):
            ready["imports"] = (ready["imports"],)
        return cls(**ready)

    @classmethod
    def from_yaml(cls, path: str | Path, **flags: Any) -> Self:
        """Read a YAML file.

        Args:
            path: The file.
            **flags: Settings that replace those of the file.

        Returns:
            The configuration.

        Raises:
            ConfigError: If it cannot be read, or for what the class refuses.
        """
        return cls.from_mapping({**read_yaml(path), **flags})

    def to_dict(self) -> dict[str, Any]:
        """Return names and values, ready for YAML: tuples as lists."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}

    def but(self, **changes: Any) -> Self:
        """Return the same configuration with some values changed.

        Args:
            **changes: New values by name.

        Returns:
            The new configuration, checked.
        """
        return replace(self, **changes)


def with_imports(settings: Mapping[str, Any], before: Sequence[str]) -> dict[str, Any]:
    """Return settings whose `imports` follow those that were recorded before.

    Args:
        settings: Names and values, of which `imports` may be new.
        before: The recorded modules; one that has the name of a new module is left out, as it was
            moved.

    Returns:
        The settings; unchanged where no module is new.

    >>> with_imports({"imports": ("/new/a.py",)}, ["/old/a.py", "b"])
    {'imports': ('b', '/new/a.py')}
    """
    new = tuple(settings.get("imports", ()))
    stems = {Path(one).stem for one in new}
    old = [one for one in before if Path(one).stem not in stems]
    return {**settings, "imports": (*old, *new)} if new else dict(settings)


def recorded(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings as they are recorded, with absolute paths of modules.

    Args:
        settings: Names and values of a configuration.

    Returns:
        The same, where `imports` and `program` do not depend on the working directory.
    """
    imports = settings.get("imports", ())
    imports = (imports,) if isinstance(imports, str) else imports
    changed: dict[str, Any] = {"imports": tuple(dict.fromkeys(map(located, imports)))}
    if isinstance(settings.get("program"), str):
        changed["program"] = located(settings["program"])
    return {**settings, **(changed if changed["imports"] or "program" in changed else {})}
