"""Successive steps of one graph as one call: a launch on a GPU, a loop of C++ code on a CPU."""

from collections.abc import Callable, Hashable, Sequence
from typing import Any, cast

import torch
from torch import Tensor

from pyroae.compilation.codegen import Graph
from pyroae.compilation.divided_steps import MOST_STEPS, DividedStep
from pyroae.compilation.eager_training import EagerTraining
from pyroae.compilation.graph_calls import GraphCall
from pyroae.compilation.optimizer_steps import Update
from pyroae.objectives.apply import variant_of

Before = Callable[[int], float | None]
"""Called with i before step i, to set the optimizer's rates; returns the step's weight of the KL,
None for no weight.
"""


TakeSteps = Callable[[Sequence[tuple[Tensor, ...]], Before], list[Tensor]]
"""From the arguments of at most `MOST_STEPS` steps to the loss before each, a scalar, in nats."""


def of_several_steps(graph: Graph | None) -> GraphCall | DividedStep | None:
    """Keep a graph that takes several steps in a call.

    Args:
        graph: A graph of a step; None for eager steps.

    Returns:
        The graph; None for another one.
    """
    is_recorded = isinstance(graph, GraphCall) and graph.recorded is not None
    if isinstance(graph, DividedStep) or is_recorded:
        return cast(GraphCall | DividedStep, graph)
    return None


def steps_of(training: EagerTraining, graph: Graph) -> TakeSteps:
    """Make the function that takes steps of a graph.

    Args:
        training: The training.
        graph: The graph of a step.

    Returns:
        The function; it takes several steps in a call where they are divided among threads.
    """

    def take(batches: Sequence[tuple[Tensor, ...]], before: Before) -> list[Tensor]:
        if not isinstance(graph, DividedStep):
            pairs = ((args, training.weights(before(i))) for i, args in enumerate(batches))
            return [graph(*args, *weights)[0] for args, weights in pairs]
        launch = Launch(training, list(zip(*batches, strict=True)))
        for i in range(len(batches)):
            launch.add(graph, i, before(i))
        return launch.run()

    return take


class Launch:
    """Successive steps of one graph, which are one call.

    Args:
        training: The training.
        args: Arguments of the programs, tensors `[S, B, ...]` or sequences of S tensors.

    Attributes:
        graph: The graph of the steps that were added last; None before.
        steps: The numbers of the steps that are not yet taken.
    """

    def __init__(self, training: EagerTraining, args: Sequence[Tensor | Sequence[Tensor]]) -> None:
        self.graph: GraphCall | DividedStep | None = None
        self.steps: list[int] = []
        self._training, self._args = training, args
        self._variant: Hashable = ()
        self._weights: list[float | None] = []
        self._numbers: list[list[list[float]]] = []
        self._noise: list[list[Tensor]] = []

    @property
    def takes_next(self) -> bool:
        """Whether the next step, whose variant of the objective is drawn, belongs to the call."""
        is_full = isinstance(self.graph, DividedStep) and len(self.steps) == MOST_STEPS
        is_same = variant_of(self._training.objective) == self._variant
        return bool(self.steps) and not is_full and is_same

    def add(self, graph: GraphCall | DividedStep, step: int, kl_weight: float | None) -> None:
        """Add a step, whose rates are set.

        Args:
            graph: Its graph, that of the steps before it.
            step: Its row of the arguments.
            kl_weight: Weight of the KL; None for none.
        """
        self.graph, self._variant = graph, variant_of(self._training.objective)
        self._numbers.append(cast(Update, graph.update).numbers(ahead=len(self.steps)))
        self.steps.append(step)
        self._weights.append(kl_weight)
        if isinstance(graph, DividedStep):
            self._noise.append(graph.draw())

    def run(self) -> list[Tensor]:
        """Take the steps that were added, none or several.

        Returns:
            The loss before each step, a scalar, in nats.
        """
        if not self.steps:
            return []
        graph, weights = self.graph, self._weights
        assert graph is not None
        rows = slice(self.steps[0], self.steps[-1] + 1)
        has_weight = weights[0] is not None
        inputs: list[Any] = [
            *(argument[rows] for argument in self._args),
            *self._training.weights(cast(list[float], weights) if has_weight else None),
        ]
        tensors = [inputs[i] for i in graph.where]
        if isinstance(graph, DividedStep):
            losses = graph.run_steps(tensors, self._numbers, self._noise)
        else:
            stacks = [t if isinstance(t, Tensor) else torch.stack(list(t)) for t in tensors]
            losses = graph.run_steps(stacks, self._numbers)[0]
        self.steps, self._weights, self._numbers, self._noise = [], [], [], []
        return list(losses.unbind())
