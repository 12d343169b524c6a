"""The base class of all objectives: a `pyro.infer.ELBO` that estimates a bound and its gradient."""

import warnings
from abc import abstractmethod
from collections.abc import Hashable
from dataclasses import dataclass, field
from inspect import signature
from typing import Any, NamedTuple, final

import torch
from pyro import poutine
from pyro.infer import ELBO
from pyro.infer.util import is_validation_enabled
from pyro.util import warn_if_nan
from torch import Tensor, nn

from pyroae.errors import ConfigError, ProgramError
from pyroae.objectives.learned import ObjectiveModule, announce
from pyroae.objectives.program_cache import ProgramCache
from pyroae.objectives.scores import has_path
from pyroae.programs.arguments import flatten_arguments
from pyroae.programs.context import evaluating
from pyroae.programs.global_sites import globals_of
from pyroae.programs.paired_traces import Traces
from pyroae.programs.particle_check import plate_nesting
from pyroae.programs.particles import LOOP
from pyroae.programs.site_checks import warn_of_enumeration
from pyroae.programs.sites import KINDS, Program, base_distribution
from pyroae.programs.traces import run
from pyroae.registry import Registry
from pyroae.runtime.randomness import fork_random
from pyroae.runtime.short_repr import Overview, Shown
from pyroae.runtime.short_text import text_of

OBJECTIVES: "Registry[ObjectiveBase]" = Registry("objective")


class Bound(NamedTuple):
    """A bound over all data and the surrogate that training ascends.

    Attributes:
        value: The bound itself, in nats, summed over all data, shape `[]`. Values of different
            estimators of the same bound are comparable.
        surrogate: A number whose gradient is the estimator of the bound's gradient, shape `[]`.
            Its value has no meaning of its own.

    >>> import torch
    >>> from pyroae import zoo
    >>> from pyroae.objectives import TraceELBO
    >>> system, x = zoo.vae(4, latent=2), torch.ones(3, 4)
    >>> value, surrogate = TraceELBO().bound(system.model, system.guide, x)
    >>> value.shape, surrogate.requires_grad
    (torch.Size([]), True)
    """

    value: Tensor
    surrogate: Tensor


@dataclass
class Nesting:
    """The plates of a pair of programs, as trial runs show them.

    Attributes:
        depth: The number of plate dimensions, plus LOOP where particles are run one by one.
        shapes: The shapes of the arguments of these trial runs.
    """

    depth: int = 1
    shapes: set[tuple[tuple[int, ...], ...]] = field(default_factory=set)


class ObjectiveBase(Shown, ELBO):
    """An ELBO estimator for `pyro.infer.SVI`, `objective(model, guide)` and `pyroae.fit`.

    Between the draws and the gradient an objective calls no `.item()`, does not synchronize with
    the host, and has no branch that depends on data. To add an objective that is not a pair of a
    bound and a gradient, define `estimate`.

    Args:
        num_particles: K, the number of draws of z per datum, vectorized.

    Attributes:
        cache: What trial runs have shown about the programs, such as their plates.

    Raises:
        ConfigError: `num_particles` is not a whole number of at least 1.

    >>> class Constant(ObjectiveBase):
    ...     def estimate(self, traces: Traces) -> Bound:
    ...         return Bound(torch.tensor(-1.0), torch.tensor(0.0))
    >>> import torch
    >>> from pyroae import zoo
    >>> system = zoo.vae(4, latent=2)
    >>> Constant().loss(system.model, system.guide, torch.ones(3, 4))
    1.0
    """

    def __init__(self, num_particles: int = 1) -> None:
        if not isinstance(num_particles, int) or num_particles < 1:
            raise ConfigError(
                f"num_particles must be a whole number of at least 1, not {num_particles!r}"
            )
        super().__init__(num_particles=num_particles, vectorize_particles=True)
        self._count = num_particles
        self._controls: nn.Module | None = None
        self.cache = ProgramCache()

    def _overview(self) -> Overview:
        names = [name for name in signature(type(self)).parameters if name in vars(self)]
        return Overview([f"{name}={text_of(getattr(self, name))}" for name in names])

    @property
    def is_evidence(self) -> bool:
        """Whether the bound equals log p(x) where the guide is the exact posterior."""
        return True

    @property
    def is_elbo(self) -> bool:
        """Whether the bound's mean is the ELBO for every number of particles."""
        return False

    @property
    def is_unbiased(self) -> bool:
        """Whether the bound's mean is log p(x) for every guide, and the θ-gradient's ∂ log p(x)."""
        return False

    @property
    def is_symmetric(self) -> bool:
        """Whether the bound is invariant to the order of the particles."""
        return True

    @property
    def is_per_datum(self) -> bool:
        """Whether the bound of a batch is the sum of the bounds of its data."""
        return True

    @property
    def kinds(self) -> frozenset[str]:
        """The kinds of latent sites that the objective takes.

        They are a part of `KINDS`; a bound of stratified draws needs `mixture`, continuous sites
        that are mixtures.
        """
        return KINDS

    @property
    def evaluations(self) -> float:
        """The mean number of decoder evaluations per datum of one estimate; by default K."""
        return float(self.num_particles)

    @property
    def is_noiseless(self) -> bool:
        """Whether bound and gradient depend on no draw, as found in the last estimate."""
        return False

    @property
    def learns(self) -> bool:
        """Whether the objective has parameters of its own: then it defines `make_controls`."""
        return False

    @property
    def controls(self) -> nn.Module | None:
        """What the objective itself learns, such as a baseline; None before `prepare`, or always.

        Its parameters are announced to Pyro, stepped, saved and compiled like the model's. They
        receive their gradient from the surrogate, and are not part of the bound. They belong to one
        pair of programs: `fit` makes them anew, elsewhere `forget_controls` does.
        """
        return self._controls

    @property
    def variant(self) -> Hashable:
        """What the next estimate depends on beside its arguments; a compiled graph is made for it.

        It changes in `next_step` alone, as the random number of particles of a multilevel bound. An
        objective that draws nothing on the host has the variant (), and no other has.
        """
        return ()

    def next_step(self) -> None:
        """Draw on the host, from torch's generator of the CPU, what `variant` names.

        `loss`, `loss_and_grads` and `differentiable_loss` call it before their estimate, and every
        step of `pyroae.fit` and `pyroae.compile` does, once; `bound` does not. A draw depends on
        no draw before it.
        """
        return

    def make_controls(self, traces: Traces, args: tuple[Any, ...]) -> nn.Module:
        """Make the module that the objective learns.

        Args:
            traces: One run of guide and model.
            args: Positional arguments of both programs.

        Returns:
            A module on the device and of the precision of the arguments, the same for the same
                programs and arguments. Parameters have one dimension or more, for `fsdp`.
        """
        raise NotImplementedError

    def prepare(self, model: Program, guide: Program, args: Any, kwargs: Any) -> None:
        """Make the controls, once, from a run that leaves generators and buffers unchanged.

        What is random in them is drawn from the seed 0: they are the same in every process.

        Args:
            model: A Pyro program p(z) p(x|z).
            guide: A Pyro program q(z|x).
            args: Positional arguments of both programs.
            kwargs: Keyword arguments of both programs.
        """
        if self._controls is not None or not self.learns:
            return
        values, _ = flatten_arguments(args, kwargs)
        device = next((a.device for a in values if isinstance(a, Tensor)), torch.device("cpu"))
        with fork_random(device), evaluating(model, guide), poutine.block():
            run(model, guide, args, kwargs)  # parameters that programs draw start as without this
        with fork_random(device, 0):
            with poutine.block(), evaluating(model, guide):
                traces = run(model, guide, args, kwargs)
            self._controls = self.make_controls(traces, args)

    def forget_controls(self) -> None:
        """Drop what the objective has learned; its next estimate makes the controls anew."""
        self._controls = None

    @abstractmethod
    def estimate(self, traces: Traces) -> Bound:
        """Return the bound and the surrogate of one run.

        Args:
            traces: The traces of guide and model, with K particles.

        Returns:
            The bound over all data, in nats, and its surrogate, both of shape `[]`.

        Raises:
            ProgramError: The objective does not apply to the program; the message names the site.
        """

    def __call__(self, model: Program, guide: Program) -> ObjectiveModule:
        """Return the objective of two modules as a module, whose call is the differentiable loss.

        Args:
            model: The module of the model.
            guide: The module of the guide.

        Returns:
            A module whose parameters include those that the objective learns.
        """
        return ObjectiveModule(model, guide, self)

    def bound(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> Bound:
        """Run guide and model, and estimate the bound and its gradient, in the present variant.

        Args:
            model: A Pyro program p(z) p(x|z).
            guide: A Pyro program q(z|x) with the same latent sites.
            *args: Positional arguments of both programs.
            **kwargs: Keyword arguments of both programs.

        Returns:
            The bound over all data, in nats, and its surrogate, both of shape `[]`.

        Raises:
            ProgramError: The objective does not apply to the program; the message names the site.
        """
        self.prepare(model, guide, args, kwargs)
        if self._controls is not None:
            announce(self._controls)
        return self.estimate_on(model, guide, args, kwargs)

    def estimate_on(
        self, model: Program, guide: Program, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Bound:
        """Return the bound and the surrogate of the programs, by as many runs as are needed.

        Args:
            model: A Pyro program p(z) p(x|z).
            guide: A Pyro program q(z|x) with the same latent sites.
            args: Positional arguments of both programs.
            kwargs: Keyword arguments of both programs.

        Returns:
            The bound over all data, in nats, and its surrogate, both of shape `[]`; by default
                those of `estimate` for one run.
        """
        return self.estimate(self.run(model, guide, args, kwargs))

    @final
    def differentiable_loss(
        self, model: Program, guide: Program, *args: Any, **kwargs: Any
    ) -> Tensor:
        """Return the negative bound, whose gradient is that of the negative surrogate.

        Args:
            model: A Pyro program p(z) p(x|z).
            guide: A Pyro program q(z|x) with the same latent sites.
            *args: Positional arguments of both programs.
            **kwargs: Keyword arguments of both programs.

        Returns:
            The loss over all data, in nats, differentiable, shape `[]`.
        """
        self.next_step()
        value, surrogate = self.bound(model, guide, *args, **kwargs)
        return -(surrogate + (value - surrogate).detach())

    @final
    def loss(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> float:
        """Return the negative bound as a number, as `pyro.infer.Trace_ELBO` does.

        This call synchronizes with the device; `bound` and `differentiable_loss` do not. It warns
        where the loss is NaN.

        Args:
            model: A Pyro program p(z) p(x|z).
            guide: A Pyro program q(z|x) with the same latent sites.
            *args: Positional arguments of both programs.
            **kwargs: Keyword arguments of both programs.

        Returns:
            The loss over all data, in nats.
        """
        self.next_step()
        loss = -self.bound(model, guide, *args, **kwargs).value.item()
        warn_if_nan(loss, "loss")
        return loss

    @final
    def loss_and_grads(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> float:
        """Return the loss, and add the gradient of the negative surrogate to the parameters.

        This call synchronizes with the device, and warns where the loss is NaN.

        Args:
            model: A Pyro program p(z) p(x|z).
            guide: A Pyro program q(z|x) with the same latent sites.
            *args: Positional arguments of both programs.
            **kwargs: Keyword arguments of both programs.

        Returns:
            The negative bound over all data, in nats.
        """
        self.next_step()
        value, surrogate = self.bound(model, guide, *args, **kwargs)
        if surrogate.requires_grad:
            (-surrogate).backward(retain_graph=self.retain_graph)
        loss = -value.item()
        warn_if_nan(loss, "loss")
        return loss

    def run(
        self,
        model: Program,
        guide: Program,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        num_particles: int | None = None,
        **passing: Any,
    ) -> Traces:
        """Run guide and model with the particles, global draws and checks of this objective.

        Args:
            model: A Pyro program p(z) p(x|z).
            guide: A Pyro program q(z|x) with the same latent sites.
            args: Positional arguments of both programs.
            kwargs: Keyword arguments of both programs.
            num_particles: The number of particles; None for K, or the drawn number.
            **passing: `handler`, `drawn` and `through`, as of `programs.execution.RunOptions`.

        Returns:
            The traces of guide and model.
        """
        count = num_particles or self._count
        nesting = self._nesting_of(model, guide, args, kwargs) if count > 1 else 0
        shared, joint = self._globals_of(model, guide, args, kwargs), self._is_joint
        traces = run(
            model, guide, args, kwargs, count, nesting, shared=shared, joint=joint, **passing
        )
        if is_validation_enabled() and not self._sums(traces):
            warn_of_enumeration(traces.guide)
        return traces

    def _sums(self, traces: Traces) -> bool:
        """Whether sites that are marked for enumeration are summed, not drawn."""
        return False

    @property
    def _is_joint(self) -> bool:
        """Whether all data are treated as one datum."""
        return False

    @property
    def _request(self) -> str:
        """The objective to recommend for programs that have no bound per datum."""
        return "trace-elbo"

    @property
    def _shares_globals(self) -> bool:
        """Whether all particles share one draw of the latent sites outside the data plate."""
        return False

    def _nesting_of(
        self, model: Program, guide: Program, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> int:
        """The number of plate dimensions, plus LOOP; cached per pair of programs and shapes."""
        known = self.cache.get("nesting", (model, guide), Nesting)
        shapes = tuple(tuple(a.shape) for a in (*args, *kwargs.values()) if isinstance(a, Tensor))
        if shapes not in known.shapes and known.depth < LOOP:
            known.depth = max(known.depth, plate_nesting(model, guide, args, kwargs))
            known.shapes.add(shapes)
        return known.depth

    def _globals_of(
        self, model: Program, guide: Program, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> frozenset[str]:
        """Names of the sites whose one draw all particles share; cached per pair of programs."""
        if not self._shares_globals:
            return frozenset()

        def find() -> frozenset[str]:
            outside = globals_of(model, guide, args, kwargs)
            if outside.hold_all_draws:
                warnings.warn(
                    f"the guide draws {sorted(outside.names)} outside the data plate and nothing "
                    "inside it: given these draws all particles are the same, and the bound of any "
                    f"number of them is the ELBO; for a tighter one use {self._request}",
                    stacklevel=4,
                )
            return outside.names

        return self.cache.get("globals", (model, guide), find)

    def _get_trace(
        self, model: Program, guide: Program, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[poutine.Trace, poutine.Trace]:
        traces = self.run(model, guide, args, kwargs)
        return traces.model, traces.guide


def check_reparameterized(traces: Traces, objective: str) -> None:
    """Refuse a guide with draws that do not carry their whole path gradient.

    Args:
        traces: The traces of guide and model.
        objective: The name of the objective, for the message.

    Raises:
        ProgramError: A site of the guide is not reparameterized, or a rejection sampler.
    """
    for name, site in traces.draws():
        if not has_path(site["fn"]):
            has = "has only a part of one" if site["fn"].has_rsample else "has none"
            raise ProgramError(
                f"{objective} needs a path gradient at every draw; the guide's site '{name}' "
                f"({type(base_distribution(site['fn'])).__name__}) {has}: "
                "use trace-elbo, iwae, vimco, rws, score or tvo"
            )
