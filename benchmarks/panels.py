"""The sections of `benchmarks.speed`: which subjects are compared on which problem, and what is
expected of them.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from benchmarks import fresh
from benchmarks.against import Older, with_older
from benchmarks.problems import Problem
from benchmarks.workers import Subject, Timing, take_turns
from pyroae.objectives import OBJECTIVES

Say = Callable[[str], None]
Fresh = Callable[[int, Say, Older | None], list[Timing]]

OURS, FIT, OURS_EAGER = "pyroae compiled", "pyroae fit, compiled", "pyroae eager"
OURS_DOUBLE = "pyroae compiled, double precision"
SVI, SVI_UNCHECKED = "Pyro SVI Trace_ELBO", "Pyro SVI Trace_ELBO, validation off"
HAND, HAND_ADAM, HAND_EAGER = (
    "hand-written, compiled",
    "hand-written, compiled, Adam too",
    "hand-written, eager",
)
LOOP, STEP = "NumPyro, fori_loop", "NumPyro, jitted step"
RENYI = "NumPyro RenyiELBO(alpha=0), fori_loop"
GEMM, PLAIN, PYTHAE = "matrix products alone", "plain Pyro", "pythae get_nll"
PYRO, TORCH, NUMPYRO = (f"benchmarks.subjects_{name}:" for name in ("pyro", "torch", "numpyro"))

REFERENCE = Problem()
DEEP = Problem(widths=(200, 200), latent=50)
REFERENCE_20 = replace(REFERENCE, batch=20)
SMALL = Problem(widths=(200,), latent=50, batch=20)
LIKELIHOOD = replace(DEEP, num_particles=5000, batch=20)

OF_GAUSSIANS = tuple(
    name for name, make in OBJECTIVES.items() if "continuous" in make(num_particles=4).kinds
)
"""Named objectives that train the VAEs of these problems."""


@dataclass(frozen=True)
class Panel:
    """Timings that are taken in one session of turns, or in fresh processes.

    reference: the subject to which ratios are given. unit: of one step, and how many of it a second
    of a step makes. subjects: those that take turns, `steps` of each at a time where it is given.
    fresh: the measurement in fresh processes, instead.
    """

    name: str
    title: str
    reference: str
    subjects: Sequence[Subject] = ()
    steps: int | None = None
    fresh: Fresh | None = None
    unit: str = "ms a step"
    scale: float = 1e3
    axis: tuple[str, int] | None = None

    def measure(
        self, rounds: int, block: float, say: Say, older: Older | None = None
    ) -> list[Timing]:
        """Time the subjects, and pyroae's own from an older checkout too."""
        if self.fresh is not None:
            return self.fresh(rounds, say, older)
        subjects = with_older(self.subjects, older)
        return take_turns(subjects, rounds, block=block, steps=self.steps, say=say)


@dataclass(frozen=True)
class Target:
    """A ratio, `over` to `under` in the same panel, and its limit; several subjects of a side stand
    for the fastest of them.
    """

    text: str
    section: str
    panel: str
    over: tuple[str, ...]
    under: tuple[str, ...]
    limit: float
    at_least: bool = False


def _subject(name: str, home: str, problem: Problem, cores: int = 0, **settings: Any) -> Subject:
    return Subject(name, home, problem, settings, cores=cores)


# Training.


def training() -> list[Panel]:
    """Elementary VAEs, convolutions, estimators."""
    panels = [
        _training("reference", REFERENCE),
        _training("reference-20", REFERENCE_20),
        _training("deep-20", replace(DEEP, batch=20)),
        _training("deep-100", replace(DEEP, batch=100)),
        _training("small", SMALL),
        _convolutions(),
    ]
    for batch in (20, 100):
        panels += [
            _importance(replace(DEEP, batch=batch, num_particles=k), f"iwae-{batch}-K{k}")
            for k in (1, 8, 50, 64)
        ]
    return [
        *panels,
        *(_objectives(replace(SMALL, num_particles=k), f"objectives-K{k}") for k in (8, 64)),
    ]


def _training(name: str, problem: Problem) -> Panel:
    subjects = [
        _subject(OURS, PYRO + "compiled", problem),
        _subject(FIT, PYRO + "fit", problem),
        _subject(OURS_EAGER, PYRO + "eager", problem),
        _subject(SVI, PYRO + "svi", problem),
        _subject(SVI_UNCHECKED, PYRO + "svi", problem, validate=False),
        _subject("Pyro SVI TraceMeanField_ELBO", PYRO + "svi", problem, loss="TraceMeanField_ELBO"),
        _subject("Pyro SVI JitTrace_ELBO", PYRO + "svi", problem, loss="JitTrace_ELBO"),
        _subject(HAND_EAGER, TORCH + "train", problem),
        _subject(HAND, TORCH + "train", problem, compiled=True),
        _subject(HAND_ADAM, TORCH + "train", problem, compiled=True, adam="compiled"),
        _subject(STEP, NUMPYRO + "step", problem),
        _subject(LOOP, NUMPYRO + "loop", problem),
    ]
    return Panel(name, f"VAE {problem.label}", SVI, subjects)


def _convolutions() -> Panel:
    problem = Problem(widths=(), batch=100)
    subjects = [
        _subject(OURS, PYRO + "compiled", problem),
        _subject(OURS_EAGER, PYRO + "eager", problem),
        _subject(SVI, PYRO + "svi", problem),
        _subject(SVI_UNCHECKED, PYRO + "svi", problem, validate=False),
        _subject(HAND_EAGER, TORCH + "train", problem),
        _subject(HAND, TORCH + "train", problem, compiled=True),
    ]
    return Panel("conv", f"VAE {problem.label}", SVI, subjects)


def _importance(problem: Problem, name: str) -> Panel:
    """IWAE and DReG against a hand-written IWAE and NumPyro's, whose particles are vectorized."""
    iwae, dreg = (replace(problem, objective=objective) for objective in ("iwae", "dreg"))
    subjects = [
        _subject("pyroae iwae", PYRO + "compiled", iwae),
        _subject("pyroae dreg", PYRO + "compiled", dreg),
        _subject(HAND, TORCH + "train", iwae, compiled=True),
        _subject(HAND_ADAM, TORCH + "train", iwae, compiled=True, adam="compiled"),
        _subject(RENYI, NUMPYRO + "loop", iwae),
    ]
    return Panel(name, f"IWAE and DReG, {problem.label}", HAND, subjects)


def _objectives(problem: Problem, name: str) -> Panel:
    """Every objective of Gaussian latents at one K."""
    subjects = [
        _subject(f"pyroae {o}", PYRO + "compiled", replace(problem, objective=o))
        for o in OF_GAUSSIANS
    ]
    return Panel(name, f"all objectives, {problem.label}", "pyroae iwae", subjects)


# Many models at once.


def ensemble() -> list[Panel]:
    """A step of every member: by one graph for all, and by a graph for each in turn."""
    return [_ensemble("small", SMALL, 5), _ensemble("reference", REFERENCE, 5)]


def _ensemble(name: str, problem: Problem, members: int) -> Panel:
    subjects = [
        _subject(
            f"{members} seeds at once", PYRO + "many", problem, members=members, together=True
        ),
        _subject(
            f"{members} seeds in turn", PYRO + "many", problem, members=members, together=False
        ),
        _subject("one seed", PYRO + "many", problem, members=1, together=False),
    ]
    return Panel(name, f"{members} VAEs {problem.label}", f"{members} seeds in turn", subjects)


# Log-likelihood.


def likelihood(short: bool = False) -> list[Panel]:
    """log p(x) at K = 5,000, and the memory that it takes."""
    problem = LIKELIHOOD
    subjects = [
        _subject(OURS_EAGER, PYRO + "likelihood", problem, compile=False),
        _subject(OURS, PYRO + "likelihood", problem, compile=True),
        _subject(PLAIN, PYRO + "plain_likelihood", problem),
        _subject("plain torch.distributions", TORCH + "distributions_likelihood", problem),
        _subject(HAND_EAGER, TORCH + "likelihood", problem),
        _subject(HAND, TORCH + "likelihood", problem, compiled=True),
        _subject(PYTHAE, TORCH + "pythae_likelihood", problem),
        _subject(GEMM, TORCH + "products", problem),
    ]
    title = "IS log-likelihood, 784-200-200-50, K=5,000, {} data at a time"
    many = [each for each in subjects if each.name in (OURS, GEMM)]
    return [
        Panel("is-5000", title.format(20), PLAIN, subjects, 2 if short else 20, unit="ms a datum"),
        *(
            []
            if short
            else [Panel("is-5000-200", title.format(200), GEMM, many, 200, unit="ms a datum")]
        ),
        Panel(
            "memory",
            "growth of peak memory, 4 data",
            f"{fresh.PEAK}{fresh.PARTICLES[0]:,}",
            fresh=lambda rounds, say, older: fresh.memory(min(rounds, 3), say, older),
            unit="MiB",
            scale=1.0,
        ),
    ]


# Annealing.


def annealing() -> list[Panel]:
    """A whole run of annealing, pilot included: images, where products dominate, and digits."""
    images, digits = replace(DEEP, batch=100), Problem((64,), latent=2, batch=40, features=64)
    return [_annealing("images", images, 100), _annealing("digits", digits, 1000)]


def _annealing(name: str, problem: Problem, num_distributions: int) -> Panel:
    settings = {"num_distributions": num_distributions}
    subjects = [
        _subject(OURS_EAGER, PYRO + "annealing", problem, compile=False, **settings),
        _subject(OURS, PYRO + "annealing", problem, compile=True, **settings),
        _subject(OURS_DOUBLE, PYRO + "annealing", problem, compile=True, double=True, **settings),
    ]
    if name == "images":  # small products take less time than their calls from Python
        subjects.append(_subject(GEMM, TORCH + "annealing_products", problem, **settings))
    title = f"AIS, {problem.label}, 16 chains, {num_distributions:,} distributions"
    return Panel(name, title, OURS_EAGER, subjects, steps=1, unit="s a run", scale=1.0)


# Scaling.


def scaling() -> list[Panel]:
    """A step in batch size, particles, width and cores; a log-likelihood in data and cores. The
    peak memory of each process is kept too.
    """
    panels = [_scaled("batch", b, replace(REFERENCE, batch=b)) for b in (16, 64, 128, 512)]
    panels += [_scaled("particles", k, replace(SMALL, num_particles=k)) for k in (1, 8, 64)]
    panels += [_scaled("width", w, replace(REFERENCE, widths=(w,))) for w in (100, 200, 400, 800)]
    panels += [_scaled("cores", c, REFERENCE, cores=c) for c in (1, 2)]
    panels += [_scaled_likelihood("data", n, num_data=n) for n in (10, 40, 160)]
    return [*panels, *(_scaled_likelihood("likelihood-cores", c, cores=c) for c in (1, 2))]


def _scaled(axis: str, value: int, problem: Problem, cores: int = 0) -> Panel:
    subjects = [
        _subject(OURS, PYRO + "compiled", problem, cores),
        _subject(SVI, PYRO + "svi", problem, cores),
        _subject(HAND, TORCH + "train", problem, cores, compiled=True),
        _subject(LOOP, NUMPYRO + "loop", problem, cores),
    ]
    on = f" on {cores} cores" if cores else ""
    return Panel(f"{axis}-{value}", f"step, {problem.label}{on}", SVI, subjects, axis=(axis, value))


def _scaled_likelihood(axis: str, value: int, num_data: int = 40, cores: int = 0) -> Panel:
    problem = replace(LIKELIHOOD, num_particles=1000)
    subjects = [
        _subject("pyroae", PYRO + "likelihood", problem, cores),
        _subject(PLAIN, PYRO + "plain_likelihood", problem, cores),
        _subject(HAND_EAGER, TORCH + "likelihood", problem, cores),
    ]
    on = f", on {cores} cores" if cores else ""
    return Panel(
        f"{axis}-{value}",
        f"IS log-likelihood, K=1,000, {num_data} data at a time{on}",
        PLAIN,
        subjects,
        num_data,
        unit="ms a datum",
        axis=(axis, value),
    )


# Start-up.


def startup() -> list[Panel]:
    """Fresh processes."""
    return [
        Panel(
            "commands",
            "from start to end of a process",
            fresh.TORCH,
            fresh=lambda rounds, say, older: fresh.commands(min(rounds, 7), say, older),
            unit="ms",
        ),
        Panel(
            "first-steps",
            f"fresh processes, {REFERENCE.label}",
            f"{fresh.SVI}: {fresh.FIRST}",
            fresh=lambda rounds, say, older: fresh.first_steps(min(rounds, 5), say, older),
            unit="s",
            scale=1.0,
        ),
    ]


SECTIONS: dict[str, Callable[[], list[Panel]]] = {
    "training": training,
    "ensemble": ensemble,
    "likelihood": likelihood,
    "annealing": annealing,
    "scaling": scaling,
    "startup": startup,
}

# Targets.

_WRITTEN = (HAND, HAND_ADAM)
_PYRO = (SVI, SVI_UNCHECKED)
_BEST = (OURS, OURS_EAGER)

TARGETS = [
    Target(
        "reference VAE against hand-written compiled",
        "training",
        "reference",
        (OURS,),
        _WRITTEN,
        1.05,
    ),
    Target("reference VAE against Pyro SVI", "training", "reference", (OURS,), (SVI,), 0.45),
    Target(
        "reference VAE against Pyro SVI, faster of both",
        "training",
        "reference",
        (OURS,),
        _PYRO,
        0.45,
    ),
    Target("reference VAE against NumPyro's loop", "training", "reference", (OURS,), (LOOP,), 1.0),
    Target("784-200-50 B=20 against Pyro SVI", "training", "small", (OURS,), (SVI,), 0.2),
    Target(
        "784-200-50 B=20 against Pyro SVI, faster of both", "training", "small", (OURS,), _PYRO, 0.2
    ),
    Target("784-200-50 B=20 against NumPyro's loop", "training", "small", (OURS,), (LOOP,), 1.5),
    *(
        Target(
            f"{name} K=64 B={b} against hand-written IWAE",
            "training",
            f"iwae-{b}-K64",
            (f"pyroae {name}",),
            _WRITTEN,
            1.1,
        )
        for name in ("iwae", "dreg")
        for b in (20, 100)
    ),
    *(
        Target(
            f"{name} against iwae, K={k}",
            "training",
            f"objectives-K{k}",
            (f"pyroae {name}",),
            ("pyroae iwae",),
            1.5,
        )
        for k in (8, 64)
        for name in OF_GAUSSIANS
        if name != "iwae" and OBJECTIVES[name](num_particles=k).evaluations == k
    ),
    *(
        Target(
            f"likelihood of {count} data at a time, share of the rate of its matrix products",
            "likelihood",
            panel,
            (GEMM,),
            (OURS,),
            limit,
            True,
        )
        for count, panel, limit in ((20, "is-5000", 0.75), (200, "is-5000-200", 0.85))
    ),
    Target(
        "likelihood, times as fast as plain Pyro",
        "likelihood",
        "is-5000",
        (PLAIN,),
        _BEST,
        2.0,
        True,
    ),
    Target(
        "likelihood, times as fast as pythae", "likelihood", "is-5000", (PYTHAE,), _BEST, 2.0, True
    ),
    Target(
        "annealing of images, share of the rate of its matrix products",
        "annealing",
        "images",
        (GEMM,),
        (OURS,),
        0.7,
        True,
    ),
]
