"""The command line: options become settings, and bad input one sentence and exit status 2.

Nothing here imports torch: `pyroae --help` answers at once. Options of settings are derived from
the dataclasses of `pyroae.config`; what the commands do is in `pyroae.commands`.
"""

import argparse
import gc
import os
import re
import shlex
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import Field, fields
from difflib import get_close_matches
from importlib import import_module
from types import NoneType, UnionType
from typing import Any, NoReturn, get_args, get_origin, get_type_hints

from pyroae._version import __version__
from pyroae.config import (
    OF_DATA,
    PER_TRAINING,
    AISSettings,
    CalibrationSettings,
    EvaluationSettings,
    GradientSettings,
    Part,
    RunConfig,
    Scoring,
    objectives_in,
    parse_yaml,
    read_yaml,
)
from pyroae.config.evaluation import POSTERIOR_DRAWS
from pyroae.errors import InterruptedRunError, PyroaeError
from pyroae.names import import_all, located, names_of
from pyroae.runtime.signals import interruption, stoppable

EPILOG = """\
examples:
  pyroae demo --out runs/demo
  pyroae train --system vae --data digits --latent 10 --hidden 200,200 --epochs 100 --out runs/vae
  pyroae train --import my_module.py --likelihood my-likelihood --out runs/own
  pyroae train --program my_module.py:build --data my-data --out runs/program
  pyroae evaluate runs/vae --num-particles 5000
  pyroae evaluate runs/vae --method is,ais,bdmc,gaps --num-data 100 --retry local
  pyroae sample runs/vae --out samples.png
  pyroae compare --objectives trace-elbo,iwae,dreg --num-particles 1,8 --seeds 3 \\
    --budget epochs:100 --out runs/study
"""


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one sentence, with the nearest option that exists.

    Its options are gathered in groups: `grouped` returns those of a group in a mapping.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.groups: dict[str, tuple[str, str]] = {}

    def error(self, message: str) -> NoReturn:
        """Print one sentence and exit with status 2.

        Args:
            message: The sentence, as argparse has it.
        """
        choice = re.search(r"invalid choice: '(.+?)' \(choose from (.*)\)", message)
        if choice:
            word, known = choice[1], re.findall(r"[\w-]+", choice[2])
        else:
            word = next((w for w in message.split() if w.startswith("--")), "").partition("=")[0]
            known = [option for action in self._actions for option in action.option_strings]
        near = (
            get_close_matches(word, known, n=1)
            if choice or message.startswith("unrecognized")
            else []
        )
        hint = f"; did you mean {near[0]}?" if near else ""
        self.exit(2, f"{self.prog}: {message}{hint}\n")

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parse as argparse does; an unknown option is refused by the command it was given to.

        Args:
            args: The words of the command line; by default those of the process.
            namespace: Where options are written; a new one by default.

        Returns:
            The options.
        """
        parsed, unknown = self.parse_known_args(args, namespace)
        if unknown:
            getattr(parsed, "parser", self).error(f"unrecognized arguments: {' '.join(unknown)}")
        return parsed

    def settings(
        self, group: str, kind: type, *but: str, lists: bool = False, **defaults: Any
    ) -> None:
        """Add an option for each field of a dataclass that has a help text.

        Args:
            group: The group that the options are gathered in.
            kind: The dataclass.
            *but: Fields to leave out.
            lists: Whether a number may be given as a list A,B of several.
            **defaults: Default values that differ from those of the dataclass.
        """
        hints = get_type_hints(kind)
        for field in fields(kind):
            if field.name not in but and "help" in field.metadata:
                key = f"{group}.{field.name}"
                self.groups[key] = group, field.name
                _add_option(self, key, field, hints[field.name], defaults.get(field.name), lists)

    def in_group(self, group: str, flag: str, **options: Any) -> None:
        """Add one option to a group; it is absent where it is not given.

        Args:
            group: The group.
            flag: The option.
            **options: The arguments of `add_argument`.
        """
        name = flag.removeprefix("--").replace("-", "_")
        self.groups[f"{group}.{name}"] = group, name
        self.add_argument(flag, dest=f"{group}.{name}", default=argparse.SUPPRESS, **options)

    def grouped(self, options: Mapping[str, Any]) -> dict[str, Any]:
        """Gather options in their groups.

        Args:
            options: The options that are given, by name.

        Returns:
            Options without a group by name, and a mapping for each group.
        """
        gathered: dict[str, Any] = {group: {} for group, _ in self.groups.values()}
        for key, value in options.items():
            group, name = self.groups.get(key, (None, key))
            (gathered if group is None else gathered[group])[name] = value
        return gathered


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: The words of the command line; by default those of the process.

    Returns:
        The exit status: 0, 2 for bad input, 130 or 128 and the signal's number where interrupted.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    options = vars(make_parser().parse_args(words))
    of_command, name = options.pop("parser"), options.pop("command")
    options = of_command.grouped(options)
    kept, how = _kept(name, options), _again(name, words)
    try:
        with stoppable(how, kept):
            _run(name, options)
    except InterruptedRunError as error:
        if name in REPEATED:  # its trainings have commands of their own to resume them
            error = interruption(error.signal, kept, how)
        print(f"pyroae {name}: {error}", file=sys.stderr)
        return 128 + error.signal
    except PyroaeError as error:
        print(f"pyroae {name}: {error}", file=sys.stderr)
        return 2
    return 0


REPEATED = ("demo", "reproduce")
"""Commands that train, and start from the beginning when they were stopped."""


def _kept(name: str, options: Mapping[str, Any]) -> str:
    """What is kept of a command that was stopped, and what the same command does then."""
    methods = str(options["settings"].get("methods")) if name == "evaluate" else ""
    if "ais" in methods or "bdmc" in methods:
        return "the annealing so far is saved; continue with"
    return "what was written before is kept; start again with"


def _again(name: str, words: Sequence[str]) -> str:
    """The command that goes on where a command was stopped."""
    overwrite = ["--overwrite"] if name in REPEATED and "--overwrite" not in words else []
    return shlex.join(["pyroae", *words, *overwrite])


def _run(name: str, options: dict[str, Any]) -> None:
    """Import the user's modules, make settings of the options, and run the command."""
    imports = tuple(map(located, options.pop("imports", ())))
    import_all(imports)
    if name == "data":
        options["settings"] = {**options["settings"], **({"imports": imports} if imports else {})}
    elif "config" in options:
        file = options.pop("config")
        settings = {**(read_yaml(file) if file else {}), **options["settings"]}
        written = settings.get("imports") or ()
        written = (written,) if isinstance(written, str) else tuple(written)
        options["settings"] = {**settings, **({"imports": (*written, *imports)} if imports else {})}
    elif name == "evaluate":
        options["settings"] = EvaluationSettings.from_dict(options["settings"])
        options["imports"] = imports
    elif name == "calibrate":
        options["settings"] = CalibrationSettings(**options["settings"])
    elif name == "gradients":
        options["settings"] = GradientSettings(**options["settings"])
    if "part" in options:
        options["part"] = Part(**options["part"])
    if name == "papers":
        paper_list = import_module("pyroae.commands.paper_list")
        if options.pop("listed"):
            return paper_list.list_papers()
        paper_list.check_papers(options["names"])
    with loading(name):
        module = import_module(_module_of(name))
    getattr(module, name)(**options)


@contextmanager
def loading(name: str) -> Iterator[None]:
    """Say on stderr that a command is loaded, while torch is imported, if it is not there yet.

    The garbage collector rests meanwhile, and leaves alone afterwards what was imported.

    Args:
        name: The name of the command.

    Yields:
        None.
    """
    if "torch" in sys.modules:
        yield
        return
    text = f"pyroae {name}: loading torch and Pyro"
    is_terminal = sys.stderr.isatty()
    is_first = os.environ.get("RANK", os.environ.get("LOCAL_RANK", "0")) == "0"
    if is_first:
        print(text, end="" if is_terminal else "\n", file=sys.stderr, flush=True)
    gc.disable()
    try:
        yield
        gc.freeze()
    finally:
        gc.enable()
        if is_first and is_terminal:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)


def _module_of(name: str) -> str:
    """The module that has the function of a command."""
    if name == "papers":
        return "pyroae.papers.command"
    is_output = name in ("encode", "reconstruct", "report", "sample")
    return f"pyroae.commands.{'outputs' if is_output else name}"


def make_parser() -> Parser:
    """Return the parser of all commands.

    Returns:
        The parser; its namespace holds the command's name and the command's own parser.
    """
    parser = Parser(
        prog="pyroae",
        description="Amortized variational inference in Pyro: train, evaluate, compare, draw.",
    )
    parser.formatter_class, parser.epilog = argparse.RawDescriptionHelpFormatter, EPILOG
    parser.add_argument("--version", action="version", version=f"pyroae {__version__}")
    commands = parser.add_subparsers(
        dest="command", required=True, metavar="COMMAND", parser_class=Parser
    )
    for name, (text, add_options) in COMMANDS.items():
        command: Parser = commands.add_parser(
            name, help=text, description=f"{text[0].upper()}{text[1:]}.", allow_abbrev=False
        )
        command.set_defaults(parser=command)
        add_options(command)
        _add_import(command)
    return parser


def _add_run(parser: Parser) -> None:
    parser.add_argument("run_directory", metavar="RUN", help="directory of a trained run")


def _demo(demo: Parser) -> None:
    demo.add_argument(
        "--out", default="runs/demo", metavar="DIR", help="study directory (default: runs/demo)"
    )
    demo.add_argument(
        "--overwrite", action="store_true", help="replace what an earlier demo left there"
    )
    _add_int(demo, "--epochs", "passes over the data", 150)
    _add_int(demo, "--num-particles", "K of the log-likelihood", 5000)


def _train(train: Parser) -> None:
    train.add_argument(
        "--config", metavar="FILE", help="YAML with the same names; options win over it"
    )
    train.add_argument("--out", metavar="RUN", help="run directory to write")
    train.add_argument("--overwrite", action="store_true", help="replace the run that is there")
    _add_resume(train, "RUN", "continue the run (by default that of --out) from where it was saved")
    train.add_argument(
        "--checkpoint",
        choices=("last", "previous"),
        help="the state that --resume continues from (default: last)",
    )
    train.settings("settings", RunConfig, "imports")


def _data(data: Parser) -> None:
    data.add_argument(
        "source", metavar="DATA", help="a dataset, a file or a folder, as --data of train takes it"
    )
    used = (*OF_DATA, "system", "likelihood")
    others = [f.name for f in fields(RunConfig) if f.name not in used or f.name == "data"]
    data.settings("settings", RunConfig, *others)
    data.add_argument("--out", metavar="FILE", help="picture of the first data: .png, .pdf or .svg")


def _evaluate(evaluate: Parser) -> None:
    _add_run(evaluate)
    evaluate.settings("part", Part)
    evaluate.settings("settings", EvaluationSettings)
    evaluate.settings("settings", AISSettings, posterior_draws=POSTERIOR_DRAWS)
    _add_int(evaluate, "--devices", "processes that importance sampling and annealing share", 1)
    _add_int(evaluate, "--num-nodes", "machines", 1)


def _gradients(gradients: Parser) -> None:
    _add_run(gradients)
    gradients.settings("part", Part, split="train", num_data=20)
    gradients.settings("settings", GradientSettings)
    gradients.add_argument(
        "--by", choices=("module",), help="the table shows every module, not only θ and φ"
    )
    gradients.add_argument(
        "--out", metavar="FILE", help="path without suffix of .csv, .nc and .png (default: in RUN)"
    )


def _calibrate(calibrate: Parser) -> None:
    _add_run(calibrate)
    calibrate.settings("part", Part)
    calibrate.settings("settings", CalibrationSettings)
    text = "replace a calibration with other settings"
    calibrate.add_argument("--overwrite", action="store_true", help=text)


def _compare(compare: Parser) -> None:
    compare.add_argument(
        "--config", metavar="FILE", help="YAML with settings of all trainings; options win over it"
    )
    compare.add_argument("--out", metavar="STUDY", help="study directory to write")
    compare.add_argument("--overwrite", action="store_true", help="replace the study that is there")
    _add_resume(
        compare,
        "STUDY",
        "continue the study (by default that of --out); more objectives, K and seeds may be given",
    )
    _study_options(compare)
    compare.add_argument(
        "--baseline",
        metavar="NAME@K",
        help="what differences are from (default: the first, lowest K)",
    )
    _add_place(compare, ", each with --cpus-per-cell threads")
    compare.settings("settings", RunConfig, "imports", "logger", *PER_TRAINING, lists=True)


def _add_place(parser: Parser, threads: str = "") -> None:
    """The options that say where trainings run."""
    parser.in_group(
        "place",
        "--executor",
        choices=("local", "ray"),
        help="where trainings run: here, or as tasks of a Ray cluster, with the same figures "
        "(default: local)",
    )
    text = (
        f"trainings side by side on this machine{threads} (default: as many as there are cores for "
        "in a study of 5,000 steps, else 1)"
    )
    parser.in_group("place", "--jobs", type=int, metavar="N", help=text)
    text = "of the Ray cluster: auto, HOST:PORT or ray://HOST:PORT (default: this machine alone)"
    parser.in_group("place", "--address", metavar="ADDRESS", help=text)
    text = "on Ray, the share of a GPU per training, in [0, 1] (default: 1 where there are GPUs)"
    parser.in_group("place", "--gpus-per-cell", type=float, metavar="X", help=text)


def _study_options(compare: Parser) -> None:
    for flag, read, metavar, text in (
        ("--objectives", objectives_in, "A,B", "to compare (default: trace-elbo,iwae,dreg)"),
        ("--num-particles", _tuple_of(int), "K,K", "of each (default: 1,8)"),
        ("--seeds", _seeds, "N", "how many, or a list A,B of them (default: 3)"),
        (
            "--budget",
            str,
            "KIND:N",
            "of each training: epochs:N, evaluations:N of the decoder, or seconds:N "
            "(default: epochs:20)",
        ),
        (
            "--cpus-per-cell",
            int,
            "N",
            "threads of each training, on Ray also the CPUs that it takes (default: 1)",
        ),
    ):
        compare.in_group("given", flag, type=read, metavar=metavar, help=text)
    text = "also compare every value of a setting; may be repeated, for all combinations"
    compare.in_group("given", "--vary", action="append", metavar="NAME=A,B", help=text)
    text = (
        "the part of the data on which numeric settings with several values, as --lr A,B, are tuned"
    )
    compare.in_group("given", "--tune-on", choices=("valid",), help=text)
    compare.settings("scoring", Scoring)


def _sample(sample: Parser) -> None:
    _add_run(sample)
    _add_int(sample, "--num", "how many", 64)
    sample.add_argument("--noise", action="store_true", help="draws of x, not means of p(x|z)")
    _add_int(sample, "--seed", "of the draws", 0)
    sample.add_argument(
        "--label", metavar="LABEL", help="draw for this label (default: for each label)"
    )
    _add_out(sample, ".png, .npy or .csv (default: RUN/figures/samples.png)")


def _reconstruct(reconstruct: Parser) -> None:
    _add_run(reconstruct)
    reconstruct.settings("part", Part)
    _add_out(reconstruct, ".png, .npy or .csv (default: RUN/figures/reconstructions.png)")


def _encode(encode: Parser) -> None:
    _add_run(encode)
    encode.settings("part", Part)
    _add_out(encode, ".npy, .csv or .nc (default: RUN/latents.csv)")


def _impute(impute: Parser) -> None:
    _add_run(impute)
    impute.add_argument(
        "--data", metavar="FILE", required=True, help="data whose missing values are filled"
    )
    impute.add_argument(
        "--out",
        metavar="FILE",
        required=True,
        help=".csv or .parquet with the filled table; .npz with errors and intervals too",
    )
    _add_int(impute, "--num-particles", "draws of z per datum", 1000)
    _add_int(impute, "--num-imputations", "multiple imputations, below the means in the table", 0)
    _add_int(impute, "--seed", "of the draws", 0)
    impute.add_argument("--checkpoint", metavar="NAME", help="which weights (default: the kept)")


def _reproduce(reproduce: Parser) -> None:
    reproduce.add_argument(
        "run_directory", metavar="RUN", help="directory of a run that was evaluated"
    )
    reproduce.add_argument(
        "--out", metavar="RUN", help="run directory to write (default: RUN-again)"
    )
    reproduce.add_argument("--overwrite", action="store_true", help="replace the run that is there")


FIGURES = {
    "rate-distortion": "rate–distortion curves by annealing (evaluate --method ais)",
}
"""The figures of `pyroae plot`: what each shows."""


def _plot(plot: Parser) -> None:
    text = "; ".join(f"{name}: {about}" for name, about in FIGURES.items())
    plot.add_argument("figure", metavar="FIGURE", choices=FIGURES, help=text)
    plot.add_argument("runs", metavar="RUN", nargs="+", help="directories of evaluated runs")
    _add_out(plot, ".png, .pdf or .svg (default: FIGURE.png)")


def _papers(papers: Parser) -> None:
    papers.add_argument("names", metavar="NAME", nargs="*", help="papers, or all of them: all")
    papers.add_argument(
        "--scale",
        choices=("short", "full"),
        default="short",
        help="orderings in minutes, or the schedule of the paper (default: short)",
    )
    papers.add_argument(
        "--rows", metavar="TEXT", default="", help="only rows whose label has these words"
    )
    papers.add_argument(
        "--data-root",
        metavar="DIR",
        default=RunConfig.data_root,
        help=f"folder in which torchvision keeps its datasets (default: {RunConfig.data_root})",
    )
    papers.add_argument(
        "--out",
        metavar="DIR",
        default="runs/papers",
        help="folder of all results; what is finished there is not measured again "
        "(default: runs/papers)",
    )
    papers.add_argument(
        "--overwrite", action="store_true", help="remove what was measured at this scale first"
    )
    papers.add_argument(
        "--list", dest="listed", action="store_true", help="list the papers and their times"
    )
    _add_place(papers)


COMMANDS: dict[str, tuple[str, Callable[[Parser], None]]] = {
    "demo": (
        "train a VAE on the embedded digits under two ELBO estimators, evaluate and draw",
        _demo,
    ),
    "train": ("train a system or a program; writes a run directory", _train),
    "data": ("how data would be read, split, scaled and modelled", _data),
    "evaluate": (
        "bound, log-likelihood, rate, distortion, active units; figures; DataTree",
        _evaluate,
    ),
    "gradients": (
        "SNR, variance, bias and cost of ELBO estimators at the weights of a run",
        _gradients,
    ),
    "calibrate": (
        "whether the posterior is calibrated on data that the model simulates (VSBC, SBC)",
        _calibrate,
    ),
    "compare": (
        "estimators by what they train: same weights, batches, budget and metric",
        _compare,
    ),
    "sample": ("draw from the prior and decode", _sample),
    "reconstruct": ("encode and decode data", _reconstruct),
    "encode": ("posterior means (and scales) of the latent features", _encode),
    "impute": ("fill the missing values of a table", _impute),
    "reproduce": (
        "train and evaluate a run again from its directory; compare every figure",
        _reproduce,
    ),
    "plot": ("several evaluated runs in one figure", _plot),
    "papers": (
        "published tables again: measured beside the printed numbers, with verdicts",
        _papers,
    ),
    "report": (
        "one HTML page of a run or a study: settings, results, figures",
        _add_run,
    ),
}
"""The commands: what each does, and the function that adds its options."""


def _add_import(parser: Parser) -> None:
    """The option of all commands by which a user's own choices have names."""
    field = next(field for field in fields(RunConfig) if field.name == "imports")
    parser.add_argument(
        field.metadata["flag"],
        dest=field.name,
        action="append",
        default=argparse.SUPPRESS,
        metavar="MODULE",
        help=field.metadata["help"],
    )


def _add_out(parser: Parser, text: str) -> None:
    parser.add_argument("--out", metavar="FILE", help=text)


def _add_int(parser: Parser, flag: str, text: str, default: int) -> None:
    text = f"{text} (default: {default})"
    parser.add_argument(flag, type=int, default=default, metavar="N", help=text)


def _add_resume(parser: Parser, metavar: str, text: str) -> None:
    parser.add_argument("--resume", nargs="?", const="", metavar=metavar, help=text)


def _add_option(
    parser: Parser,
    key: str,
    field: Field[Any],
    hint: Any,
    default: Any = None,
    lists: bool = False,
) -> None:
    """One option of the command line for one field of a dataclass."""
    flag = field.metadata.get("flag") or f"--{field.name.replace('_', '-')}"
    text, names = field.metadata["help"], field.metadata.get("choices") or ()
    shared: dict[str, Any] = {"dest": key, "default": argparse.SUPPRESS}
    if default is not None:
        shared["default"] = default
    if hint is bool:
        parser.add_argument(flag, action=argparse.BooleanOptionalAction, help=text, **shared)
        return
    default = field.default if default is None else default
    names = names_of(field.metadata.get("kind", "")) or names
    text += f" ({' '.join(names)})" if names else ""
    if isinstance(default, tuple) and default:
        default = ",".join(map(str, default))
    text += f" (default: {default})" if isinstance(default, str | int | float) else ""
    read, metavar = _reader(hint)
    if lists and read in (int, float):
        read, metavar = _one_or_several(read), f"{metavar},{metavar}"
    parser.add_argument(flag, type=read, metavar=metavar, help=text, **shared)


def _seeds(text: str) -> tuple[int, ...]:
    """As many seeds, or a list of them."""
    return tuple(int(part) for part in text.split(",")) if "," in text else tuple(range(int(text)))


_seeds.__name__ = "number or list of seeds"


def _reader(hint: Any) -> tuple[Callable[[str], Any], str]:
    """How the text of an option becomes a value of that type, and what its help calls it."""
    if hint == bool | str:
        return lambda text: {"true": True, "false": False}.get(text, text), "NAME"
    if hint == int | tuple[int, ...]:
        return _layers, "N,N"
    if get_origin(hint) is UnionType:
        hint = next(kind for kind in get_args(hint) if kind is not NoneType)
    if get_origin(hint) is tuple:
        return _tuple_of(get_args(hint)[0]), "A,B"
    if get_origin(hint) is dict:
        return _mapping, "KEY=VALUE,..."
    return hint, {int: "N", float: "X", str: "NAME"}[hint]


def _tuple_of(kind: Callable[[str], Any]) -> Callable[[str], tuple[Any, ...]]:
    def items(text: str) -> tuple[Any, ...]:
        return tuple(kind(part.strip()) for part in text.split(","))

    items.__name__ = "comma-separated names" if kind is str else "comma-separated numbers"
    return items


def _one_or_several(kind: Callable[[str], Any]) -> Callable[[str], Any]:
    items = _tuple_of(kind)

    def read(text: str) -> Any:
        return items(text) if "," in text else kind(text)

    read.__name__ = kind.__name__
    return read


def _layers(text: str) -> int | tuple[int, ...]:
    """A size, or the sizes of several layers."""
    return tuple(int(part) for part in text.split(",")) if "," in text else int(text)


_layers.__name__ = "number or comma-separated numbers"


def _mapping(text: str) -> dict[str, Any]:
    pairs = [pair.partition("=") for pair in text.split(",")]
    if not all(equals for _, equals, _ in pairs):
        raise argparse.ArgumentTypeError(f"'{text}' is not of the form key=value,key=value")
    return {key.strip(): parse_yaml(value) for key, _, value in pairs}


if __name__ == "__main__":
    sys.exit(main())
