"""Exact sums over discrete sites of a guide.

With y_1, …, y_S the joint values of the summed sites of a datum, and draws z_ks of all other sites
given y_s,

    L = (1/K) Σ_k Σ_s q(y_s | ·) log w_ks,   w_ks = p(x, y_s, z_ks) / (q(y_s | ·) q(z_ks | y_s, ·))

which is run as S·K particles. The gradient follows the paths of z and every q(y_s | ·): no score
term is needed. The joint values are the product of the supports of all elements: those of several
sites, of nested plates and of events.

For the importance-weighted bound the sum would be within the weight, w̄_k = Σ_s q(y_s | ·) w_ks, in
which q(y_s | ·) cancels: it would not be trained. Therefore only the ELBO sums; the other
estimators draw y.

References:
    Kingma, Rezende, Mohamed & Welling 2014, Semi-Supervised Learning with Deep Generative Models.
"""

import math
from collections import Counter
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from pyro.poutine.indep_messenger import CondIndepStackFrame
from pyro.poutine.messenger import Messenger
from torch import Tensor

from pyroae.errors import ConfigError, ProgramError
from pyroae.objectives.bounds import ELBO, BoundFunction
from pyroae.objectives.gradients import GRADIENTS, Coefficients, Gradient
from pyroae.objectives.scores import has_path
from pyroae.programs.paired_traces import Traces
from pyroae.programs.particles import has_particles
from pyroae.programs.sites import Site, base_distribution, is_discrete
from pyroae.programs.supports import (
    Elements,
    elements_of,
    joint_values,
    size_words,
    states_of,
    total_of,
)
from pyroae.weights import LogWeights, reduce_log_weights

MOST = 2**12
"""The largest number of joint values of a datum that are summed, by default."""


@GRADIENTS.register("enumerate")
@dataclass(frozen=True)
class Enumerate(Gradient):
    """The derivative of the ELBO in which all discrete sites of the guide are summed.

        L = (1/K) Σ_k Σ_s q(y_s | x) [log p(x, y_s, z_ks) − log q(y_s, z_ks | x)]

    Value and gradient are exact where all latent sites are discrete. Continuous sites need a path
    gradient, and are drawn K times for each joint value y_s.

    Args:
        limit: The largest number of joint values of a datum; a guide with more is refused.

    Raises:
        ConfigError: `limit` is below 1.

    References:
        Kingma, Rezende, Mohamed & Welling 2014, Semi-Supervised Learning with Deep Generative
            Models.

    >>> Enumerate().unbiased(ELBO(1))
    True
    """

    limit: int = MOST

    takes_moving_support: ClassVar[bool] = True
    takes_globals: ClassVar[bool] = True

    def __post_init__(self) -> None:
        """Check the limit."""
        if not isinstance(self.limit, int) or self.limit < 1:
            raise ConfigError(f"limit must be a whole number of at least 1, not {self.limit!r}")

    def check(self, bound: BoundFunction) -> None:
        """Refuse every bound but the ELBO."""
        if not isinstance(bound, ELBO):
            raise ConfigError(
                f"enumerate sums the ELBO over discrete sites; {type(bound).__name__} is a "
                "function of K weights, whose mean is a sum over tuples of K values: use "
                "elbo+enumerate"
            )

    def coefficients(self, bound: BoundFunction, log_weight: Tensor) -> Coefficients:
        """Return c_k for θ and for P_k − s_k."""
        slope = bound.slope(log_weight)
        return Coefficients(slope, whole=slope)


@dataclass(frozen=True)
class Enumeration:
    """The sites of a guide whose values are summed.

    Attributes:
        parts: The elements of each site; empty if nothing is summed.
        plate: The data plate; None for a program without one.
        is_whole: Whether the guide has no other draws.
    """

    parts: tuple[Elements, ...] = ()
    plate: CondIndepStackFrame | None = None
    is_whole: bool = False

    @property
    def names(self) -> list[str]:
        """The names of the sites."""
        return [part.name for part in self.parts]

    @property
    def total(self) -> int:
        """S, the number of joint values."""
        return total_of(self.parts)

    def repeats(self, num_particles: int) -> int:
        """Return the number of runs for each joint value: K, or 1 where there is no other draw."""
        return 1 if self.is_whole else num_particles

    def handler(self, num_particles: int) -> "Values":
        """Return a handler that gives the guide the joint values in place of draws.

        Args:
            num_particles: K, the draws of all other sites for each joint value.

        Returns:
            A handler for one run with S·K particles.
        """
        return Values(self, self.repeats(num_particles))


def marked_in(traces: Traces) -> Enumeration:
    """Find the marked sites of a guide that can be summed.

    A site is summed if its elements have finitely many states that are known, and no mask. If one
    of the marked sites is not like that, or there are more than `MOST` joint values, none is.

    Args:
        traces: A run of model and guide in which the sites are drawn.

    Returns:
        The sites.
    """
    found = [
        _elements(traces, name, site)
        for name, site in traces.sites(traces.guide, observed=False)
        if site["infer"].get("enumerate")
    ]
    parts = tuple(part for part in found if isinstance(part, Elements))
    is_possible = len(parts) == len(found) and total_of(parts) <= MOST
    return _enumeration(traces, parts) if is_possible else Enumeration()


def discrete_in(traces: Traces, limit: int) -> Enumeration:
    """Find all discrete sites of a guide, marked or not.

    Args:
        traces: A run of model and guide in which the sites are drawn.
        limit: The largest number of joint values.

    Returns:
        The sites.

    Raises:
        ProgramError: Names a discrete site that cannot be summed, and says how many joint values
            there are where they are more than `limit`.
    """
    parts = []
    for name, site in traces.draws():
        if is_discrete(site["fn"]) or site["infer"].get("enumerate"):
            part = _elements(traces, name, site)
            if isinstance(part, str):
                raise ProgramError(f"enumerate cannot sum over the guide's site '{name}': {part}")
            parts.append(part)
    found = _enumeration(traces, tuple(parts))
    if found.total > limit:
        raise ProgramError(
            f"{size_words(found.parts)} per datum, more than the limit of {limit:,} of enumerate: "
            f"set a higher limit, or use an estimator that draws them, such as vimco"
        )
    return found


def _enumeration(traces: Traces, parts: tuple[Elements, ...]) -> Enumeration:
    is_whole = bool(parts) and len(parts) == sum(1 for _ in traces.draws())
    return Enumeration(parts, traces.plate, is_whole)


def _elements(traces: Traces, name: str, site: Site) -> Elements | str:
    """The elements of a site; in words why they cannot be summed."""
    fn, num_data = site["fn"], 1 if traces.plate is None else traces.plate.size
    if has_particles(site):
        num_data *= traces.num_particles
    if not traces.is_local(site):
        return "it lies outside the data plate"
    if site["mask"] is not None:
        return "it has a mask"
    if fn.batch_shape.numel() % num_data:
        return f"its batch shape {tuple(fn.batch_shape)} has no element for each datum"
    kind = type(base_distribution(fn)).__name__
    return elements_of(name, fn, num_data) or f"its values are not known to be finite ({kind})"


class Values(Messenger):
    """Give particle s·K + k of a guide the s-th joint value of the summed sites.

    Args:
        enumeration: The sites.
        num_particles: K.
    """

    def __init__(self, enumeration: Enumeration, num_particles: int) -> None:
        super().__init__()
        self.parts, self.plate = enumeration.parts, enumeration.plate
        self.names, self.repeats = set(enumeration.names), num_particles
        self._runs: Counter[str] = Counter()

    def _pyro_sample(self, msg: Any) -> None:
        name, fn = msg["name"], msg["fn"]
        if name not in self.names or msg["value"] is not None:
            return
        states, in_one_run = states_of(fn), has_particles(msg)
        assert states is not None
        first = 0 if in_one_run else self._runs[name]
        count = fn.batch_shape[0] if in_one_run else 1
        self._runs[name] += 1
        particles = torch.arange(first, first + count, device=states.device)
        chosen = states[joint_values(self.parts, particles // self.repeats)[name]]
        shape = [*fn.batch_shape, *fn.event_shape]
        one_datum = list(shape)
        for frame in msg["cond_indep_stack"]:
            if self.plate is not None and frame.name == self.plate.name:
                one_datum[len(fn.batch_shape) + self.plate.dim] = 1
        msg["value"] = chosen.reshape(one_datum).expand(shape)


def check_others(traces: Traces, enumeration: Enumeration, objective: str) -> None:
    """Refuse draws beside the summed sites that carry no path gradient.

    Args:
        traces: A run of model and guide.
        enumeration: The sites that are summed.
        objective: The name of the objective, for the message.

    Raises:
        ProgramError: The guide has such a draw.
    """
    for name, site in traces.draws():
        if name not in enumeration.names and not has_path(site["fn"]):
            summed = " and ".join(f"'{one}'" for one in enumeration.names)
            raise ProgramError(
                f"{objective} sums over the site {summed} exactly, and needs a path gradient at "
                f"every other draw; the guide's site '{name}' "
                f"({type(base_distribution(site['fn'])).__name__}) has none: mark it with "
                'infer={"enumerate": "parallel"} too, or leave the marks out'
            )


def log_probabilities(traces: Traces, weights: LogWeights, enumeration: Enumeration) -> Tensor:
    """Return log q(y_s | ·) of the joint values.

    Args:
        traces: A run with S·K particles.
        weights: Its log-weights.
        enumeration: The sites that are summed.

    Returns:
        Log-probabilities in nats, without scales, shape `[S, K, N]`.
    """
    terms = [
        traces.reduce(traces.guide.nodes[name], weights.densities[name], exponent=1.0)
        for name in enumeration.names
    ]
    return sum(terms[1:], terms[0]).unflatten(0, (enumeration.total, -1))


def expected(log_weight: Tensor, log_q: Tensor) -> Tensor:
    """Return the expectation of the log-weights under q(y | ·).

        Σ_s q(y_s) log w_ks,   without the values of probability 0

    Args:
        log_weight: log w_ks, shape `[S, K, N]`.
        log_q: log q(y_s | ·), shape `[S, K, N]`.

    Returns:
        The expectations in nats, shape `[K, N]`.

    >>> half = torch.tensor([0.5, 0.5]).log().reshape(2, 1, 1)
    >>> expected(torch.tensor([1.0, 3.0]).reshape(2, 1, 1), half)
    tensor([[2.]])
    """
    return (log_q.exp() * torch.where(log_q == -math.inf, 0.0, log_weight)).sum(0)


def summed_out(
    traces: Traces, enumeration: Enumeration, objective: str
) -> tuple[LogWeights, Tensor]:
    """Return the ELBO of each datum with sites summed exactly.

    Args:
        traces: A run with S·K particles under `enumeration.handler`.
        enumeration: The sites that are summed.
        objective: The name of the objective, for messages.

    Returns:
        The log-weights, and Σ_s q(y_s | ·) log w_ks in nats, shape `[K, N]`.

    Raises:
        ProgramError: The guide has a draw beside these sites that carries no path gradient.
    """
    check_others(traces, enumeration, objective)
    weights = reduce_log_weights(traces)
    log_q = log_probabilities(traces, weights, enumeration)
    return weights, expected(weights.log_weight.unflatten(0, log_q.shape[:2]), log_q)
