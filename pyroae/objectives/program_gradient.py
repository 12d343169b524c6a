"""Gradients that run the programs in their own way, such as those with coupled draws."""

from abc import abstractmethod
from typing import TYPE_CHECKING, Any

from torch import Tensor

from pyroae.objectives.base import Bound
from pyroae.objectives.bounds import BoundFunction
from pyroae.objectives.gradients import Coefficients, Gradient
from pyroae.programs.sites import Program

if TYPE_CHECKING:
    from pyroae.objectives.pair import Objective


class ProgramGradient(Gradient):
    """A gradient that is not given by coefficients of one run: it runs the programs itself.

    To add one, write a frozen dataclass with `estimate_on` and register it with
    `@GRADIENTS.register("name")`. `objective.run` runs guide and model under a handler, and
    `objective.check` refuses programs that have no bound per datum.
    """

    @abstractmethod
    def estimate_on(
        self,
        objective: "Objective",
        model: Program,
        guide: Program,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Bound:
        """Return the bound and the surrogate of the programs.

        Args:
            objective: The pair of a bound and this gradient.
            model: A Pyro program p(z) p(x|z).
            guide: A Pyro program q(z|x) with the same latent sites.
            args: Positional arguments of both programs.
            kwargs: Keyword arguments of both programs.

        Returns:
            The bound over all data, in nats, and its surrogate, both of shape `[]`.

        Raises:
            ProgramError: The estimator does not apply to the program; the message names the site.
        """

    def coefficients(self, bound: BoundFunction, log_weight: Tensor) -> Coefficients:
        """Return c_k for θ; φ has no coefficients of its own."""
        return Coefficients(bound.slope(log_weight))
