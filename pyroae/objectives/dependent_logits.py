"""Find a site of a guide whose logits depend on other draws of the guide, by a trial run."""

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import Any

import torch
from pyro import poutine
from pyro.poutine.messenger import Messenger
from torch import Tensor

from pyroae.objectives.surrogates import graph_of
from pyroae.programs.discrete_variables import discrete_site
from pyroae.programs.paired_traces import Traces
from pyroae.programs.particles import has_particles, is_draw
from pyroae.programs.sites import is_delta
from pyroae.programs.trial_runs import is_close, trial_mode
from pyroae.runtime.randomness import fork_random

TRIAL_PARTICLES = 8
"""Particles of the trial run."""


class SpreadStates(Messenger):
    """Give the binary and one-hot sites of a trial run states that differ as much as they can.

    The first particle has the first state everywhere, the second the last one, and those of the
    others are drawn with equal probabilities.
    """

    def __init__(self) -> None:
        super().__init__()
        self._runs: dict[str, int] = {}

    def _pyro_sample(self, msg: Any) -> None:
        site = discrete_site(msg["fn"]) if is_draw(msg) and msg["value"] is None else None
        if site is None:
            return
        equal = site.at(torch.zeros_like(site.variables.logits))
        states, ends = equal.hard(equal.noise()), equal.ends()
        if has_particles(msg):
            states = torch.cat([ends[0][:1], ends[1][:1], states[2:]])
        else:
            run = self._runs[msg["name"]] = self._runs.get(msg["name"], -1) + 1
            states = ends[run] if run < 2 else states
        shape = msg["fn"].batch_shape + msg["fn"].event_shape
        msg["value"] = site.pack(states).expand(shape)


class Leaves(Messenger):
    """Make the draws of a run leaves of the autograd graph.

    Attributes:
        values: The draws.
    """

    def __init__(self) -> None:
        super().__init__()
        self.values: list[Tensor] = []

    def _pyro_post_sample(self, msg: Any) -> None:
        value = msg["value"]
        if is_draw(msg) and not is_delta(msg) and torch.is_floating_point(value):
            msg["value"] = value.detach().requires_grad_()
            self.values.append(msg["value"])


def dependent_site(
    run: Callable[..., Traces],
    logits_in: Callable[[Traces], Mapping[str, Tensor]],
    args: tuple[Any, ...],
) -> str | None:
    """Return the first site whose logits depend on other draws.

    A dependence is seen in the autograd graph, also where its weights are 0 at present, and in
    logits that differ between particles, as where a draw is an index.

    Args:
        run: Runs guide and model, given the number of particles and a handler.
        logits_in: The logits of the sites of a run by name, with the particles in front.
        args: Positional arguments of the programs.

    Returns:
        The name of the site; None where there is none.
    """
    device = next((a.device for a in args if isinstance(a, Tensor)), torch.device("cpu"))
    leaves = Leaves()
    without_effects = (fork_random(device), trial_mode(training=True), torch.enable_grad())
    with ExitStack() as stack:
        for context in (*without_effects, poutine.block(), leaves):
            stack.enter_context(context)
        found = logits_in(run(num_particles=TRIAL_PARTICLES, handler=SpreadStates()))
    draws = {id(value) for value in leaves.values}
    for name, logits in found.items():
        of_draws = any(id(getattr(node, "variable", None)) in draws for node in graph_of(logits))
        if of_draws or not is_close(logits, logits[:1].expand_as(logits)):
            return name
    return None
