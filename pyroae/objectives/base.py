"""What every objective is: a `pyro.infer.ELBO` that turns one run of model and guide into a bound and a surrogate."""

from abc import abstractmethod
from typing import Any, NamedTuple, final

from pyro import poutine
from pyro.infer import ELBO
from torch import Tensor

from pyroae.errors import ConfigError, ProgramError
from pyroae.registry import Registry
from pyroae.weights import Program, Traces, base_distribution, plate_nesting, run

OBJECTIVES: "Registry[Objective]" = Registry("objective")


class Bound(NamedTuple):
    """value: the bound itself over all data, in nats, comparable across estimators.

    surrogate: what to ascend; its gradient is the estimator of the bound's gradient.
    """

    value: Tensor
    surrogate: Tensor


class Objective(ELBO):
    """An ELBO estimator that works in `pyro.infer.SVI`, as `objective(model, guide)`, and in `pyroae.fit`.

    No `.item()`, no host synchronization and no data-dependent branch between the draws and the gradient.
    To add one, define `estimate`. num_particles: draws of z per datum, vectorized.
    """

    def __init__(self, num_particles: int = 1) -> None:
        if not isinstance(num_particles, int) or num_particles < 1:
            raise ConfigError(f"num_particles must be a whole number of at least 1, not {num_particles!r}")
        super().__init__(num_particles=num_particles, vectorize_particles=True)
        self._nesting = 0

    @abstractmethod
    def estimate(self, traces: Traces) -> Bound:
        """The bound and the surrogate of one run. Raises ProgramError, naming the site, where it does not apply."""

    @final
    def bound(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> Bound:
        """Run guide and model, and estimate; `args` and `kwargs` are passed to both."""
        return self.estimate(self._run(model, guide, args, kwargs))

    @final
    def differentiable_loss(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> Tensor:
        """The negative bound, whose gradient is that of the surrogate."""
        value, surrogate = self.bound(model, guide, *args, **kwargs)
        return -(surrogate + (value - surrogate).detach())

    @final
    def loss(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> Tensor:
        """The negative bound, as a tensor without gradient."""
        return -self.bound(model, guide, *args, **kwargs).value.detach()

    @final
    def loss_and_grads(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> Tensor:
        """The negative bound; adds the gradient of the negative surrogate to the parameters."""
        value, surrogate = self.bound(model, guide, *args, **kwargs)
        if surrogate.requires_grad:
            (-surrogate).backward()
        return -value.detach()

    def _run(self, model: Program, guide: Program, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Traces:
        if self.num_particles > 1 and not self._nesting:
            self._nesting = max(1, plate_nesting(model, guide, args, kwargs))
        return run(model, guide, args, kwargs, self.num_particles, self._nesting)

    def _get_trace(
        self, model: Program, guide: Program, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[poutine.Trace, poutine.Trace]:
        traces = self._run(model, guide, args, kwargs)
        return traces.model, traces.guide


def check_reparameterized(traces: Traces, objective: str) -> None:
    """Raises ProgramError for a site of the guide whose draws carry no gradient."""
    for name, site in traces.sites(traces.guide, observed=False):
        if not site["fn"].has_rsample:
            raise ProgramError(
                f"{objective} needs reparameterized draws; the guide's site '{name}' "
                f"({type(base_distribution(site['fn'])).__name__}) has none"
            )
