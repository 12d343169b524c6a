"""The command line: reads options into a configuration, and turns bad input into one sentence and exit status 2.

Nothing here imports torch: `pyroae --help` answers at once. What the commands do is in `commands.py`.
"""

import argparse
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import Field, fields
from difflib import get_close_matches
from importlib import import_module
from types import NoneType, UnionType
from typing import Any, NoReturn, get_args, get_origin, get_type_hints

from pyroae._version import __version__
from pyroae.config import PER_TRAINING, RunConfig, objectives_in, parse_yaml, read_yaml
from pyroae.errors import InterruptedRunError, PyroaeError

EPILOG = """\
examples:
  pyroae demo --out runs/demo
  pyroae train --system vae --data digits --latent 10 --hidden 200,200 --epochs 100 --out runs/vae
  pyroae evaluate runs/vae --num-particles 5000
  pyroae evaluate runs/vae --method is,ais,bdmc,gaps --num-data 100 --retry local
  pyroae sample runs/vae --out samples.png
  pyroae compare --objectives trace-elbo,iwae,dreg --num-particles 1,8 --seeds 3 --budget epochs:100 --out runs/study
"""


ANNEALING: dict[str, tuple[type, str]] = {
    "num_chains": (int, "annealing: chains for each datum (default: 16)"),
    "num_distributions": (int, "annealing: steps from the start to the posterior (default: 1000)"),
    "start": (str, "annealing: where it starts, prior or guide (default: prior)"),
    "schedule": (str, "annealing: sigmoid or linear (default: sigmoid)"),
    "leapfrog_steps": (int, "annealing: of each Hamiltonian move (default: 10)"),
    "target_acceptance": (float, "annealing: of the moves (default: 0.65)"),
    "double": (bool, "annealing: in double precision"),
}
"""Settings of annealing: kind and help."""


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one sentence, with the nearest option that exists."""

    def error(self, message: str) -> NoReturn:
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
        """As argparse does, with unknown options refused by the command that they were given to."""
        parsed, unknown = self.parse_known_args(args, namespace)
        if unknown:
            getattr(parsed, "parser", self).error(f"unrecognized arguments: {' '.join(unknown)}")
        return parsed


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status."""
    parser = make_parser()
    options = vars(parser.parse_args(argv))
    options.pop("parser")
    run, name = options.pop("run"), options.pop("command")
    try:
        run(options)
    except InterruptedRunError as error:
        print(f"pyroae {name}: {error}", file=sys.stderr)
        return 128 + error.signal
    except PyroaeError as error:
        print(f"pyroae {name}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"pyroae {name}: interrupted; what was finished is kept", file=sys.stderr)
        return 130
    return 0


def make_parser() -> Parser:
    """The parser of all commands."""
    parser = Parser(
        prog="pyroae",
        description="Amortized variational inference in Pyro: train, evaluate, compare, draw.",
    )
    parser.formatter_class, parser.epilog = argparse.RawDescriptionHelpFormatter, EPILOG
    parser.add_argument("--version", action="version", version=f"pyroae {__version__}")
    commands = parser.add_subparsers(
        dest="command", required=True, metavar="COMMAND", parser_class=Parser
    )

    demo = _command(
        commands,
        "demo",
        "train a VAE on the embedded digits under two ELBO estimators, evaluate and draw",
    )
    demo.add_argument(
        "--out", default="runs/demo", metavar="DIR", help="study directory (default: runs/demo)"
    )
    demo.add_argument(
        "--overwrite", action="store_true", help="replace what an earlier demo left there"
    )
    demo.add_argument("--epochs", type=int, default=150, help="passes over the data (default: 150)")
    demo.add_argument(
        "--num-particles", type=int, default=5000, help="K of the log-likelihood (default: 5000)"
    )

    train = _command(commands, "train", "train a system; writes a run directory")
    train.add_argument(
        "--config", metavar="FILE", help="YAML with the same names; options win over it"
    )
    train.add_argument("--out", metavar="RUN", help="run directory to write")
    train.add_argument("--overwrite", action="store_true", help="replace the run that is there")
    train.add_argument(
        "--resume",
        nargs="?",
        const="",
        metavar="RUN",
        help="go on with the run (by default that of --out) from where it was saved",
    )
    train.add_argument(
        "--checkpoint",
        choices=("last", "previous"),
        help="the state that --resume goes on from (default: last)",
    )
    _settings(train)

    evaluate = _command(
        commands,
        "evaluate",
        "bound, log-likelihood, rate, distortion, active units; figures; DataTree",
    )
    _run_options(evaluate)
    _evaluate_options(evaluate)

    gradients = _command(
        commands,
        "gradients",
        "SNR, variance, bias and cost of ELBO estimators at the weights of a run",
    )
    _run_options(gradients, split="train", num_data=20)
    gradients.add_argument(
        "--objectives",
        default="iwae,dreg,stl,vimco",
        metavar="A,B",
        help="to compare (default: iwae,dreg,stl,vimco)",
    )
    gradients.add_argument(
        "--num-particles",
        type=_tuple_of(int),
        default=(1, 4, 16, 64, 256),
        metavar="K,K",
        help="default: 1,4,16,64,256",
    )
    gradients.add_argument(
        "--replicates", type=int, default=1000, help="draws of each gradient (default: 1000)"
    )
    gradients.add_argument(
        "--reference",
        metavar="NAME",
        help="what the bias is measured from (default: iwae, or the first)",
    )
    gradients.add_argument(
        "--by", choices=("module",), help="the table shows every module, not only θ and φ"
    )
    gradients.add_argument("--seed", type=int, default=0, help="of the draws (default: 0)")
    gradients.add_argument(
        "--out", metavar="FILE", help="path without suffix of .csv, .nc and .png (default: in RUN)"
    )

    _compare_options(
        _command(
            commands,
            "compare",
            "estimators by what they train: same weights, batches, budget and metric",
        )
    )

    sample = _command(commands, "sample", "draw from the prior and decode")
    sample.add_argument("run_directory", metavar="RUN", help="directory of a trained run")
    sample.add_argument("--num", type=int, default=64, help="how many (default: 64)")
    sample.add_argument("--noise", action="store_true", help="draws of x, not means of p(x|z)")
    sample.add_argument("--seed", type=int, default=0, help="of the draws (default: 0)")
    sample.add_argument(
        "--out", metavar="FILE", help=".png, .npy or .csv (default: RUN/figures/samples.png)"
    )

    reconstruct = _command(commands, "reconstruct", "encode and decode data")
    _run_options(reconstruct)
    reconstruct.add_argument(
        "--out",
        metavar="FILE",
        help=".png, .npy or .csv (default: RUN/figures/reconstructions.png)",
    )

    encode = _command(commands, "encode", "posterior means (and scales) of the latent features")
    _run_options(encode)
    encode.add_argument(
        "--out", metavar="FILE", help=".npy, .csv or .nc (default: RUN/latents.csv)"
    )

    reproduce = _command(
        commands,
        "reproduce",
        "train and evaluate a run again from its directory; compare every figure",
    )
    reproduce.add_argument(
        "run_directory", metavar="RUN", help="directory of a run that was evaluated"
    )
    reproduce.add_argument(
        "--out", metavar="RUN", help="run directory to write (default: RUN-again)"
    )
    reproduce.add_argument("--overwrite", action="store_true", help="replace the run that is there")

    report = _command(commands, "report", "one HTML page of a run: settings, results, figures")
    report.add_argument("run_directory", metavar="RUN", help="directory of a trained run")
    return parser


def _evaluate_options(evaluate: Parser) -> None:
    text = "of the log-likelihood: is, ais, bdmc, exact, quadrature, gaps (default: is, and exact where it is defined)"
    evaluate.add_argument("--method", metavar="M,M", help=text)
    evaluate.add_argument(
        "--num-particles", type=int, default=5000, help="K of importance sampling (default: 5000)"
    )
    text = "stop importance sampling when the error of the mean is below it, at K at the latest"
    evaluate.add_argument("--tolerance", type=float, metavar="NATS", help=text)
    text = "what importance sampling draws from: guide, prior, wider, heavy-tailed, defensive, local (default: guide)"
    evaluate.add_argument("--proposal", default="guide", metavar="NAME", help=text)
    evaluate.add_argument(
        "--retry", metavar="NAME", help="the proposal for data whose k̂ is too high"
    )
    evaluate.add_argument("--seed", type=int, default=0, help="of the draws (default: 0)")
    text = "importance sampling and annealing as compiled code; auto: where it pays (auto true false) (default: auto)"
    evaluate.add_argument(
        "--compile", type=_reader(bool | str)[0], default="auto", metavar="NAME", help=text
    )
    text = "processes that importance sampling and annealing are dealt to; the figures are the same (default: 1)"
    evaluate.add_argument("--devices", type=int, default=1, metavar="N", help=text)
    evaluate.add_argument(
        "--num-nodes", type=int, default=1, metavar="N", help="machines (default: 1)"
    )
    for name, (kind, text) in ANNEALING.items():
        flag = f"--{name.replace('_', '-')}"
        if kind is bool:
            evaluate.add_argument(flag, action="store_true", default=argparse.SUPPRESS, help=text)
        else:
            evaluate.add_argument(
                flag, type=kind, default=argparse.SUPPRESS, metavar=kind.__name__.upper(), help=text
            )


def _compare_options(compare: Parser) -> None:
    compare.add_argument(
        "--config", metavar="FILE", help="YAML with settings of all trainings; options win over it"
    )
    compare.add_argument("--out", metavar="STUDY", help="study directory to write")
    compare.add_argument("--overwrite", action="store_true", help="replace the study that is there")
    text = (
        "go on with the study (by default that of --out); more objectives, K and seeds may be given"
    )
    compare.add_argument("--resume", nargs="?", const="", metavar="STUDY", help=text)
    given: dict[str, Any] = {"default": argparse.SUPPRESS}
    text = "to compare (default: trace-elbo,iwae,dreg)"
    compare.add_argument("--objectives", type=objectives_in, metavar="A,B", help=text, **given)
    compare.add_argument(
        "--num-particles",
        type=_tuple_of(int),
        metavar="K,K",
        help="of each (default: 1,8)",
        **given,
    )
    compare.add_argument(
        "--seeds",
        type=_seeds,
        metavar="N",
        help="how many, or a list A,B of them (default: 3)",
        **given,
    )
    text = "of each training: epochs:N, evaluations:N of the decoder, or seconds:N (default: epochs:20)"
    compare.add_argument("--budget", metavar="KIND:N", help=text, **given)
    compare.add_argument(
        "--score-particles",
        type=int,
        metavar="K",
        help="of the held-out likelihood (default: 5000)",
        **given,
    )
    compare.add_argument(
        "--score-data",
        type=int,
        metavar="N",
        help="the first N held-out data (default: 1000)",
        **given,
    )
    compare.add_argument(
        "--baseline",
        metavar="NAME@K",
        help="what differences are from (default: the first, lowest K)",
    )
    text = "where trainings are run: here, or as tasks of a Ray cluster, with the same figures (default: local)"
    compare.add_argument("--executor", choices=("local", "ray"), default="local", help=text)
    text = "of the Ray cluster: auto, HOST:PORT or ray://HOST:PORT (default: this machine alone)"
    compare.add_argument("--address", metavar="ADDRESS", help=text)
    text = "threads of each training, on Ray also the CPUs that it takes (default: 1)"
    compare.add_argument("--cpus-per-cell", type=int, metavar="N", help=text, **given)
    text = "on Ray, the share of a GPU that each training has, in [0, 1] (default: 1 where there are GPUs)"
    compare.add_argument("--gpus-per-cell", type=float, metavar="X", help=text)
    _settings(compare, but=PER_TRAINING)


def _settings(parser: Parser, but: Sequence[str] = ()) -> None:
    """The settings of a run as options."""
    for field in fields(RunConfig):
        if field.name not in but:
            _option(parser, field, get_type_hints(RunConfig)[field.name])


def _seeds(text: str) -> tuple[int, ...]:
    """As many seeds, or a list of them."""
    return tuple(int(part) for part in text.split(",")) if "," in text else tuple(range(int(text)))


_seeds.__name__ = "number or list of seeds"


def _command(commands: Any, name: str, text: str) -> Parser:
    parser = commands.add_parser(
        name, help=text, description=f"{text[0].upper()}{text[1:]}.", allow_abbrev=False
    )
    parser.set_defaults(run=lambda options: _run(name, options), parser=parser)
    return parser


def _run(name: str, options: dict[str, Any]) -> None:
    if name in ("train", "compare"):
        names = {field.name for field in fields(RunConfig)} - (
            set(PER_TRAINING) if name == "compare" else set()
        )
        flags = {key: options.pop(key) for key in list(options) if key in names}
        file = options.pop("config")
        options["settings"] = {**(read_yaml(file) if file else {}), **flags}
    if name == "evaluate":
        options["annealing"] = {key: options.pop(key) for key in ANNEALING if key in options}
    if name == "compare":
        known = (
            "objectives",
            "num_particles",
            "seeds",
            "budget",
            "score_particles",
            "score_data",
            "cpus_per_cell",
        )
        options["given"] = {key: options.pop(key) for key in known if key in options}
    module = "outputs" if name in ("encode", "reconstruct", "report", "sample") else name
    getattr(import_module(f"pyroae.commands.{module}"), name)(**options)


def _run_options(parser: Parser, split: str = "test", num_data: int | None = None) -> None:
    parser.add_argument("run_directory", metavar="RUN", help="directory of a trained run")
    parser.add_argument(
        "--data", metavar="DATA", help="other data than the run was trained on: a name or a file"
    )
    parser.add_argument(
        "--split",
        choices=("test", "valid", "train"),
        default=split,
        help=f"which part (default: {split})",
    )
    default = f" (default: {num_data})" if num_data else ""
    parser.add_argument(
        "--num-data", type=int, metavar="N", default=num_data, help=f"only the first N{default}"
    )
    parser.add_argument(
        "--checkpoint",
        choices=("best", "last", "previous"),
        help="which weights (default: those the training kept)",
    )


def _option(parser: Parser, field: Field[Any], wanted: Any) -> None:
    """One option of the command line for one field of a configuration."""
    flag, text = f"--{field.name.replace('_', '-')}", field.metadata["help"]
    if wanted is bool:
        parser.add_argument(
            flag, action=argparse.BooleanOptionalAction, default=argparse.SUPPRESS, help=text
        )
        return
    default = field.default if isinstance(field.default, str | int | float) else None
    choices = field.metadata.get("choices") or ()
    text += f" ({' '.join(choices)})" if choices else ""
    text += f" (default: {default})" if default is not None else ""
    read, metavar = _reader(wanted)
    parser.add_argument(flag, type=read, metavar=metavar, default=argparse.SUPPRESS, help=text)


def _reader(wanted: Any) -> tuple[Callable[[str], Any], str]:
    """How the text of an option becomes a value of the wanted type, and what its help calls it."""
    if wanted == bool | str:
        return lambda text: {"true": True, "false": False}.get(text, text), "NAME"
    if get_origin(wanted) is UnionType:
        wanted = next(kind for kind in get_args(wanted) if kind is not NoneType)
    if get_origin(wanted) is tuple:
        return _tuple_of(get_args(wanted)[0]), "A,B"
    if get_origin(wanted) is dict:
        return _mapping, "KEY=VALUE,..."
    return wanted, {int: "N", float: "X", str: "NAME"}[wanted]


def _tuple_of(kind: Callable[[str], Any]) -> Callable[[str], tuple[Any, ...]]:
    def numbers(text: str) -> tuple[Any, ...]:
        return tuple(kind(part) for part in text.split(","))

    numbers.__name__ = "comma-separated numbers"
    return numbers


def _mapping(text: str) -> dict[str, Any]:
    pairs = [pair.partition("=") for pair in text.split(",")]
    if not all(equals for _, equals, _ in pairs):
        raise argparse.ArgumentTypeError(f"'{text}' is not of the form key=value,key=value")
    return {key.strip(): parse_yaml(value) for key, _, value in pairs}


if __name__ == "__main__":
    sys.exit(main())
