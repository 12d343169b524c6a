"""Posteriors that are normalizing flows of zuko, in the direction in which drawing is one pass."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.distributions import constraints

from pyroae.activations import ACTIVATIONS
from pyroae.distributions import zuko
from pyroae.errors import unknown_name
from pyroae.posteriors.base import (
    POSTERIORS,
    Encoding,
    Posterior,
    check_counts,
    location_and_scale,
)

DRAWS_OF_MEAN = 64
"""The number of fixed draws of ε over which the mean of a flow is taken."""


SLOPE = 0.1
"""The smallest derivative of a spline at its knots; the largest is its reciprocal."""


class Flow(dist.TorchDistribution):
    """A Gaussian moved by transforms: z = μ + σ T(ε; h), ε ~ N(0, I).

        log q(z) = log N(ε; 0, I) − log |det ∂T/∂ε| − Σ_j log σ_j,   ε = T⁻¹((z − μ) / σ; h)

    A draw keeps its log-density, which therefore needs no inverse of T. The log-density of any
    other value, a detached draw included, computes the inverse: the derivative with respect to the
    parameters at a fixed value passes through it. A draw made without gradients does not provide
    its log-density where gradients are enabled.

    Args:
        loc: μ, shape `[..., m]`.
        scale: σ, shape `[..., m]`.
        context: h, shape `[..., c]`.
        transform: A function from h to the transform T of zuko, which acts on `[..., m]`.

    References:
        Rezende & Mohamed 2015, Variational Inference with Normalizing Flows.

    >>> from pyroae import zoo
    >>> q_z = zoo.vae(4, latent=2, posterior=IAF()).q_z(torch.zeros(5, 4))
    >>> q_z.batch_shape, q_z.event_shape, q_z.expand((3, 5)).sample().shape
    (torch.Size([5]), torch.Size([2]), torch.Size([3, 5, 2]))
    """

    arg_constraints = {  # noqa: RUF012
        "loc": constraints.real_vector,
        "scale": constraints.independent(constraints.positive, 1),
    }
    support = constraints.real_vector
    has_rsample = True

    def __init__(
        self,
        loc: Tensor,
        scale: Tensor,
        context: Tensor,
        transform: Callable[[Tensor], Any],
        validate_args: bool | None = None,
    ) -> None:
        self.loc, self.scale, self.context, self.transform = loc, scale, context, transform
        self._drawn: tuple[Tensor, int | None, Tensor, bool] | None = None
        super().__init__(loc.shape[:-1], loc.shape[-1:], validate_args=validate_args)

    def expand(self, batch_shape: torch.Size, _instance: Any = None) -> "Flow":
        """Return the same flow with another batch shape."""
        loc, scale, context = (
            part.expand(*batch_shape, part.shape[-1])
            for part in (self.loc, self.scale, self.context)
        )
        return Flow(loc, scale, context, self.transform, validate_args=False)

    def rsample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:  # noqa: B008
        """Return draws with their path gradient, shape `sample_shape + [..., m]`."""
        shape = self._extended_shape(sample_shape)
        noise = torch.randn(shape, dtype=self.loc.dtype, device=self.loc.device)
        value, log_det = self._moved(noise)
        log_prob = _log_standard(noise) - log_det
        self._drawn = (value, _version(value), log_prob, torch.is_grad_enabled())
        return value

    def log_prob(self, value: Tensor) -> Tensor:
        """Return log q at values `[..., m]`, in nats; of a draw without an inverse of T."""
        if self._drawn is not None:
            draw, version, log_prob, has_graph = self._drawn
            is_draw = value is draw and version == _version(value)
            if is_draw and (has_graph or not torch.is_grad_enabled()):
                return log_prob
        standardized = (value - self.loc) / self.scale
        context = self.context.expand(*standardized.shape[:-1], -1)
        noise, log_det = self.transform(context).inv.call_and_ladj(standardized)
        return _log_standard(noise) + log_det - self.scale.log().sum(-1)

    @property
    def mean(self) -> Tensor:
        """The mean of z over 64 fixed draws of ε, shape `[..., m]`.

        The draws are 32 scrambled Sobol points and their negatives, the same in every call. The
        mean is exact where T is affine.
        """
        points = torch.quasirandom.SobolEngine(self.loc.shape[-1], scramble=True, seed=0)
        uniform = points.draw(DRAWS_OF_MEAN // 2, dtype=torch.float64).clamp(1e-6, 1 - 1e-6)
        half = torch.special.ndtri(uniform).to(self.loc)
        total = torch.zeros_like(self.loc)
        for noise in torch.cat([half, -half]):
            total = total + self._moved(noise.expand_as(self.loc))[0]
        return total / DRAWS_OF_MEAN

    def _moved(self, noise: Tensor) -> tuple[Tensor, Tensor]:
        """The value z of ε, and log |det ∂z/∂ε|."""
        context = self.context.expand(*noise.shape[:-1], -1)
        value, log_det = self.transform(context).call_and_ladj(noise)
        return self.loc + self.scale * value, log_det + self.scale.log().sum(-1)


def _log_standard(noise: Tensor) -> Tensor:
    """The log-density of N(0, I)."""
    return dist.Normal(torch.zeros_like(noise), 1.0, validate_args=False).log_prob(noise).sum(-1)


def _version(value: Tensor) -> int | None:
    """How often a tensor was changed in place; None in inference mode, where torch counts none."""
    return None if value.is_inference() else value._version


@dataclass(frozen=True)
class FlowPosterior(Posterior):
    """A posterior z = μ(x) + σ(x) T(ε; h(x)) with T = T_L ∘ … ∘ T₁, reparameterized; abstract.

    The encoder's outputs are μ, log σ² and h. The networks of T are `learned_posterior`; their last
    layers start near 0, where T is the identity, and the posterior a diagonal Gaussian. Consecutive
    transforms have the elements of z in opposite orders. A draw and its log-density cost one pass
    through the networks, the log-density of another value m passes, or 2 with `coupling` (see
    `Flow`).

    Attributes:
        transforms: L, the number of transforms.
        hidden: The width of the hidden layers of each network. Below m − 1, a network cannot
            represent the dependence of every element on all the elements before it.
        layers: The number of hidden layers of each network.
        context: The size of h, the encoder's outputs that condition the networks.
        activation: The function between layers: tanh, relu, elu, gelu, silu, softplus or sigmoid.
        coupling: Whether each transform moves one half of z given the other half, instead of each
            element given all elements before it.

    Raises:
        ConfigError: A number is below 1, or `activation` is unknown.
    """

    transforms: int = 2
    hidden: int = 64
    layers: int = 1
    context: int = 8
    activation: str = "elu"
    coupling: bool = False

    def __post_init__(self) -> None:
        names = ("transforms", "hidden", "layers", "context")
        check_counts("a flow posterior", **{name: getattr(self, name) for name in names})
        if self.activation not in ACTIVATIONS:
            raise unknown_name("activation", self.activation, ACTIVATIONS)

    def outputs(self, latent: int) -> int:
        """Return 2m + c: μ, log σ² and h."""
        return 2 * latent + self.context

    def learned(self, latent: int) -> nn.Module:
        """Return the networks of the transforms, which start near the identity."""
        parts = [self._transform(latent, bool(i % 2)) for i in range(self.transforms)]
        for part in parts:
            layers: list[Any] = [layer for layer in part.modules() if hasattr(layer, "weight")]
            with torch.no_grad():
                layers[-1].weight.mul_(0.01)
                layers[-1].bias.zero_()
        return zuko().lazy.LazyComposedTransform(*parts)

    def distribution(self, x: Tensor, system: Encoding) -> dist.TorchDistribution:
        """Return the flow, event shape `[m]`."""
        loc, scale, context = location_and_scale(system.encoder(x), system.zeros)
        return Flow(loc, scale, context, system.learned_posterior)

    def _transform(self, latent: int, reverse: bool) -> nn.Module:
        """One masked autoregressive transform of zuko, with its network."""
        order = torch.arange(latent)
        return cast(
            nn.Module,
            zuko().flows.MaskedAutoregressiveTransform(
                features=latent,
                context=self.context,
                order=order.flip(0) if reverse else order,
                passes=2 if self.coupling else None,
                hidden_features=[self.hidden] * self.layers,
                activation=ACTIVATIONS[self.activation],
                **self._univariate(),
            ),
        )

    def _univariate(self) -> dict[str, Any]:
        """How each element moves given the ones before it, as arguments of zuko's transform."""
        return {}


@POSTERIORS.register("iaf")
@dataclass(frozen=True)
class IAF(FlowPosterior):
    """An inverse autoregressive flow: each transform is affine given the elements before.

        T_l(y)_j = y_j exp(a_lj(y_<j; h)) + b_lj(y_<j; h)

    With constant a and linear b a single transform represents every Gaussian with this covariance
    up to the scale σ(x).

    References:
        Kingma et al. 2016, Improved Variational Inference with Inverse Autoregressive Flow.

    >>> IAF(transforms=3).outputs(latent=2)
    12
    >>> IAF(hidden=0)
    Traceback (most recent call last):
    pyroae.errors.ConfigError: hidden of a flow posterior must be at least 1, not 0
    """


@POSTERIORS.register("nsf")
@dataclass(frozen=True)
class NSF(FlowPosterior):
    """A neural spline flow: each transform is a monotone rational-quadratic spline on [−5, 5].

        T_l(y)_j = spline(y_j; knots_lj(y_<j; h)) for |y_j| ≤ 5, else y_j

    With `coupling` y_<j are the elements of the other half, if it comes before that of j. The
    splines represent skewed and multimodal posteriors. Their derivatives at the knots are between
    0.1 and 10, so that rounding errors of the inverse stay small in single precision.

    Attributes:
        bins: The number of pieces of each spline.
        coupling: As of `FlowPosterior`, but True by default.

    Raises:
        ConfigError: A number is below 1, or `activation` is unknown.

    References:
        Durkan, Bekasov, Murray & Papamakarios 2019, Neural Spline Flows.

    >>> NSF(bins=4).outputs(latent=2)
    12
    """

    coupling: bool = True
    bins: int = 8

    def __post_init__(self) -> None:
        super().__post_init__()
        check_counts("a flow posterior", bins=self.bins)

    def _univariate(self) -> dict[str, Any]:
        shapes = ((self.bins,), (self.bins,), (self.bins - 1,))
        spline = partial(zuko().transforms.MonotonicRQSTransform, slope=SLOPE)
        return {"univariate": spline, "shapes": shapes}
