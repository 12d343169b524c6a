"""What every objective is: a `pyro.infer.ELBO` that turns one run of model and guide into a bound and a surrogate."""

import warnings
from abc import abstractmethod
from inspect import ismethod
from typing import Any, NamedTuple, final
from weakref import WeakMethod, ref

from pyro import poutine
from pyro.infer import ELBO
from pyro.infer.util import is_validation_enabled
from pyro.util import warn_if_nan
from torch import Tensor

from pyroae.errors import ConfigError, ProgramError
from pyroae.objectives.scores import has_path
from pyroae.programs.global_sites import globals_of
from pyroae.programs.particles import LOOP
from pyroae.programs.site_checks import warn_of_enumeration
from pyroae.programs.sites import Program, base_distribution
from pyroae.programs.traces import Traces, plate_nesting, run
from pyroae.registry import Registry

OBJECTIVES: "Registry[ObjectiveBase]" = Registry("objective")


class Bound(NamedTuple):
    """value: the bound itself over all data, in nats, comparable across estimators.

    surrogate: what to ascend; its gradient is the estimator of the bound's gradient.
    """

    value: Tensor
    surrogate: Tensor


class ObjectiveBase(ELBO):
    """An ELBO estimator that works in `pyro.infer.SVI`, as `objective(model, guide)`, and in `pyroae.fit`.

    No `.item()`, no host synchronization and no data-dependent branch between the draws and the gradient.
    To add one that is no pair of a bound and a gradient, define `estimate`. num_particles: draws of z per datum, vectorized.
    """

    def __init__(self, num_particles: int = 1) -> None:
        if not isinstance(num_particles, int) or num_particles < 1:
            raise ConfigError(
                f"num_particles must be a whole number of at least 1, not {num_particles!r}"
            )
        super().__init__(num_particles=num_particles, vectorize_particles=True)
        self._nesting = 0
        self._shapes: set[tuple[tuple[int, ...], ...]] = set()
        self._globals: frozenset[str] | None = None
        self._programs: tuple[Any, Any] | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Without what it knows of the programs it was used on, which can be neither copied nor pickled."""
        return {**vars(self), "_nesting": 0, "_shapes": set(), "_globals": None, "_programs": None}

    @property
    def is_evidence(self) -> bool:
        """Whether the bound is log p(x) where the guide is the exact posterior."""
        return True

    @property
    def is_elbo(self) -> bool:
        """Whether the bound's mean is the ELBO, whatever the number of particles."""
        return False

    @property
    def is_symmetric(self) -> bool:
        """Whether the bound is the same in whatever order the particles come."""
        return True

    @property
    def is_per_datum(self) -> bool:
        """Whether the bound of a batch is the sum of those of its data."""
        return True

    @abstractmethod
    def estimate(self, traces: Traces) -> Bound:
        """The bound and the surrogate of one run. Raises ProgramError, naming the site, where it does not apply."""

    def bound(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> Bound:
        """Run guide and model, and estimate; `args` and `kwargs` are passed to both."""
        return self.estimate(self._run(model, guide, args, kwargs))

    @final
    def differentiable_loss(
        self, model: Program, guide: Program, *args: Any, **kwargs: Any
    ) -> Tensor:
        """The negative bound, whose gradient is that of the surrogate."""
        value, surrogate = self.bound(model, guide, *args, **kwargs)
        return -(surrogate + (value - surrogate).detach())

    @final
    def loss(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> float:
        """The negative bound as a number, as `pyro.infer.Trace_ELBO` returns it; warns where it is NaN.

        It waits for the device. `bound` and `differentiable_loss` return tensors and do not.
        """
        loss = -self.bound(model, guide, *args, **kwargs).value.item()
        warn_if_nan(loss, "loss")
        return loss

    @final
    def loss_and_grads(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> float:
        """The negative bound as a number, as of `loss`; adds the gradient of the negative surrogate to the parameters."""
        value, surrogate = self.bound(model, guide, *args, **kwargs)
        if surrogate.requires_grad:
            (-surrogate).backward(retain_graph=self.retain_graph)
        loss = -value.item()
        warn_if_nan(loss, "loss")
        return loss

    def _run(
        self,
        model: Program,
        guide: Program,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        **passing: Any,
    ) -> Traces:
        nesting = self._nesting_of(model, guide, args, kwargs) if self.num_particles > 1 else 0
        shared, joint = self._globals_of(model, guide, args, kwargs), self._is_joint
        traces = run(
            model,
            guide,
            args,
            kwargs,
            self.num_particles,
            nesting,
            shared=shared,
            joint=joint,
            **passing,
        )
        if is_validation_enabled():
            warn_of_enumeration(traces.guide)
        return traces

    @property
    def _is_joint(self) -> bool:
        """Whether all data are one datum."""
        return False

    @property
    def _request(self) -> str:
        """What takes programs that have no bound of each datum."""
        return "trace-elbo"

    @property
    def _shares_globals(self) -> bool:
        """Whether all particles have one draw of the latent sites outside the data plate."""
        return False

    def _nesting_of(
        self, model: Program, guide: Program, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> int:
        """The number of plate dimensions, plus LOOP: found once for each shape of arguments, and again for other programs."""
        self._forget_others(model, guide)
        shapes = tuple(tuple(a.shape) for a in (*args, *kwargs.values()) if isinstance(a, Tensor))
        if shapes not in self._shapes and self._nesting < LOOP:
            self._nesting = max(self._nesting, 1, plate_nesting(model, guide, args, kwargs))
            self._shapes.add(shapes)
        return self._nesting

    def _globals_of(
        self, model: Program, guide: Program, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> frozenset[str]:
        """Names of the sites of which all particles have one draw: found once, and again for other programs."""
        if not self._shares_globals:
            return frozenset()
        self._forget_others(model, guide)
        if self._globals is None:
            found = globals_of(model, guide, args, kwargs)
            if found.hold_all_draws:
                warnings.warn(
                    f"the guide draws {sorted(found.names)} outside the data plate and nothing inside it: given these draws "
                    "all particles are the same, and the bound of any number of them is the ELBO; for a tighter one use "
                    f"{self._request}",
                    stacklevel=2,
                )
            self._globals = found.names
        return self._globals

    def _forget_others(self, model: Program, guide: Program) -> None:
        known = self._programs
        if known is None or [known[0](), known[1]()] != [model, guide]:
            self._nesting, self._shapes, self._globals = 0, set(), None
            self._programs = (weak_reference(model), weak_reference(guide))

    def _get_trace(
        self, model: Program, guide: Program, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[poutine.Trace, poutine.Trace]:
        traces = self._run(model, guide, args, kwargs)
        return traces.model, traces.guide


def weak_reference(program: Program) -> Any:
    """A weak reference to a program; one to nothing where it takes none."""
    try:
        return WeakMethod(program) if ismethod(program) else ref(program)
    except TypeError:
        return lambda: None


def check_reparameterized(traces: Traces, objective: str) -> None:
    """Raises ProgramError for a site of the guide whose draws do not carry their whole path gradient."""
    for name, site in traces.draws():
        if not has_path(site["fn"]):
            has = "has only a part of one" if site["fn"].has_rsample else "has none"
            raise ProgramError(
                f"{objective} needs a path gradient at every draw; the guide's site '{name}' "
                f"({type(base_distribution(site['fn'])).__name__}) {has}: use trace-elbo, iwae, vimco, rws, score or tvo"
            )
