"""The one system: a Pyro model p(z) p(x|z) and an amortized guide q(z|x).

It is built from four choices (prior, posterior, likelihood, corruption) and two maps (encoder,
decoder).
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, cast

import pyro
import torch
from pyro import poutine
from pyro.distributions import TorchDistribution
from torch import Tensor, nn
from torch.distributions import constraints

from pyroae import corruptions, likelihoods, linear_gaussian, posteriors, priors
from pyroae.distributions import REAL
from pyroae.errors import ConfigError, DataError, UndefinedLikelihoodError
from pyroae.hierarchies import BottomUp, Draw, Hierarchy, Layer, site_of
from pyroae.nn import MLP, Linear, Map, Tied, set_output_bias


class Autoencoder(nn.Module):
    """Any member of the autoencoder family.

        model: z_n ~ p(z), x_n ~ p(x | decoder(z_n))
        guide: z_n ~ q(z | encoder(x̃_n)),   n in the plate "data"

    With several latent layers, p(z) is p(z_L) p(z_{L-1} | z_L) ... p(z_1 | z_2), of which `prior`
    is p(z_L); see `pyroae.hierarchies`.

    `model` and `guide` are ordinary Pyro programs. The parameters stay in this module and never
    enter Pyro's global store. The corruption x → x̃ acts in training mode only: `eval()` turns it
    off.

    Args:
        shape: The shape of one datum, with d features in all. Data are passed as `[N, d]` or
            `[N, *shape]`.
        latent: m, the size of z; for several layers m_1, ..., m_L, from the data upwards.
        prior: p(z), or p(z_L) of the top layer; N(0, I) by default.
        posterior: q(z|x), of each layer; a diagonal Gaussian by default.
        likelihood: p(x|z); Bernoulli by default.
        corruption: The corruption of the guide's input; none by default.
        encoder: The form of the encoder; `MLP()` by default.
        decoder: The form of the decoder; the encoder's form by default.
        tied: Whether the decoder's weights are the encoder's, transposed.
        weight_prior: A Gaussian prior on the decoder's weights, for MAP; none by default.
        hierarchy: The maps between layers of z, and the order of the guide; `BottomUp()` by
            default.

    Raises:
        ConfigError: The choices cannot be combined, or a size is below 1.

    >>> vae = Autoencoder((8, 8), latent=2)
    >>> vae.reconstruct(torch.zeros(5, 64)).shape
    torch.Size([5, 64])
    """

    def __init__(
        self,
        shape: int | tuple[int, ...],
        latent: int | Sequence[int],
        *,
        prior: priors.Prior | None = None,
        posterior: posteriors.Posterior | None = None,
        likelihood: likelihoods.Likelihood | None = None,
        corruption: corruptions.Corruption | None = None,
        encoder: Map | None = None,
        decoder: Map | None = None,
        tied: bool = False,
        weight_prior: priors.GaussianWeights | None = None,
        hierarchy: Hierarchy | None = None,
    ) -> None:
        super().__init__()
        self.shape = (shape,) if isinstance(shape, int) else tuple(shape)
        self.features = math.prod(self.shape)
        self.layers = tuple(latent) if isinstance(latent, Sequence) else (latent,)
        if not self.layers or min(*self.layers, self.features) < 1:
            raise ConfigError(
                f"latent and data need at least one dimension, not {latent} and {self.shape}"
            )
        self.latent = self.layers[0]
        self.prior = prior or priors.Normal()
        self.posterior = posterior or posteriors.Diagonal()
        self.likelihood = likelihood or likelihoods.Bernoulli()
        self.corruption = corruption or corruptions.Identity()
        self.weight_prior = weight_prior
        self.hierarchy = hierarchy or BottomUp()
        self.encoder_map = encoder or MLP()
        self.decoder_map = decoder or self.encoder_map
        if tied and self.decoder_map != self.encoder_map:
            raise ConfigError(
                f"tied weights determine the decoder, but the decoder {decoder} was given with the "
                f"encoder {self.encoder_map}"
            )
        self._build(tied)

    def _build(self, tied: bool) -> None:
        """Build the maps and the learned parts of the choices; refuse invalid combinations."""
        top = self.layers[-1]
        self._check_choices(tied)
        outputs = self.hierarchy.outputs(self.posterior, self.layers)
        self.encoder = self.encoder_map.encoder(self.shape, outputs) if outputs else nn.Identity()
        decoded = self.likelihood.layout(self.shape)
        if tied and (not outputs or decoded != (self.shape, 1)):
            raise ConfigError(
                "tied weights need an encoder, and a likelihood with one output per feature"
            )
        self.decoder = (
            Tied(self.encoder, self.latent)
            if tied
            else self.decoder_map.decoder(self.latent, *decoded)
        )
        self.learned_prior = self.prior.learned(top, self.features)
        self.learned_posterior = self.posterior.learned(self.latent)
        self.learned_likelihood = self.likelihood.learned(self.features)
        self.upper = nn.ModuleList(self.hierarchy.layers(self.posterior, self.layers))
        self.register_buffer("_zeros", torch.zeros(top), persistent=False)
        self.to(torch.get_default_dtype())
        if isinstance(self.posterior, posteriors.ExactLinear):
            try:
                self.linear_gaussian()
            except UndefinedLikelihoodError as error:
                raise ConfigError(f"the exact linear posterior cannot be used: {error}") from None

    def _check_choices(self, tied: bool) -> None:
        """Refuse choices that exclude each other, before anything is built."""
        prior_support, posterior_support = (
            part.support(size)
            for part, size in ((self.prior, self.layers[-1]), (self.posterior, self.latent))
        )
        if prior_support != posterior_support:
            raise ConfigError(
                f"{self.prior} as the prior is over {prior_support} z, {self.posterior} as the "
                f"posterior over {posterior_support} z"
            )
        if len(self.layers) > 1 and (tied or prior_support != REAL):
            raise ConfigError(
                f"the layers {self.layers} need real z and weights that are not tied, not "
                f"{'tied weights' if tied else self.prior}"
            )
        is_of_posterior = type(self.prior).of is not priors.Prior.of
        if len(self.layers) > 1 and is_of_posterior and not self.hierarchy.top_first:
            raise ConfigError(
                f"{self.prior} is made of q({site_of(len(self.layers))}|x): it needs a hierarchy "
                f"whose guide draws the top layer first, as TopDown(), not {self.hierarchy}"
            )
        self.hierarchy.check(self.posterior, self.layers)

    def start_at(self, mean: Tensor, x: Tensor | None = None) -> "Autoencoder":
        """Set the decoder's last bias so that the mean of p(x|z) starts at the mean of the data.

        Args:
            mean: The mean of the data, shape `[d]`.
            x: Some of the data, shape `[n, d]`, at which the learned parts of prior and likelihood
                start; None for the mean alone.

        Returns:
            The autoencoder itself.

        References:
            Burda, Grosse & Salakhutdinov 2016, Importance Weighted Autoencoders.
        """
        x = mean[None] if x is None else x
        set_output_bias(self.decoder, self.likelihood.start(self.learned_likelihood, mean, x))
        self.prior.start(self.learned_prior, x)
        return self

    @property
    def zeros(self) -> Tensor:
        """Zeros of shape `[m]`, which give size, dtype and device of z, or of the top layer."""
        return cast(Tensor, self._zeros)

    # The three distributions, and the two Pyro programs built from them.

    def p_z(self) -> TorchDistribution:
        """Return the prior p(z), or p(z_L) of the top layer.

        Returns:
            A distribution with event shape `[m]`, or `[m_L]`.

        >>> Autoencoder(4, latent=2).p_z().event_shape
        torch.Size([2])
        """
        return self.prior.of(self)

    def p_x(self, z: Tensor) -> TorchDistribution:
        """Return the likelihood p(x|z).

        Args:
            z: Latent features, shape `[..., m]`.

        Returns:
            A distribution with batch shape `[...]` and event shape `[d]`.

        >>> Autoencoder(4, latent=2).p_x(torch.zeros(5, 3, 2)).batch_shape
        torch.Size([5, 3])
        """
        return self.likelihood.distribution(self.decoder(z), self.learned_likelihood)

    def q_z(self, x: Tensor) -> TorchDistribution:
        """Return the approximate posterior q(z|x), or that of the layer that is drawn first.

        Args:
            x: Data, shape `[N, d]` or `[N, *shape]`.

        Returns:
            A distribution with batch shape `[N]` and event shape `[m]`. With several layers it is
                q(z_1|x) of a guide from the bottom up, q(z_L|x) of one from the top down.

        Raises:
            DataError: x has another shape or dtype than the system takes.
        """
        return self.hierarchy.first(self._like_weights("x", self.flat(x)), self)

    def _values_down(self, z: Tensor, layer: int, draw: Draw) -> Tensor:
        """A value of z, from a value of a layer, through the layers between them."""
        for number in range(layer - 1, 0, -1):
            z = draw(site_of(number), cast(Layer, self.upper[number - 1]).below(z))
        return z

    def model(self, x: Tensor) -> None:
        """Run p(z) p(x|z) as a Pyro program, with the plate `data` and the sites `z` and `x`.

        The sites of further layers of z are `z2`, `z3`, ..., from the data upwards.

        With a weight prior there is also the site `decoder_weights` outside the plate, scaled by
        N / num_data.

        Args:
            x: Data, shape `[N, d]` or `[N, *shape]`.

        Raises:
            DataError: x has another shape than the system takes.
        """
        announce_parameters("autoencoder", self)
        x = self.flat(x)
        if self.weight_prior is not None:
            weights = torch.cat([p.flatten() for p in self._decoder_weights()])
            with poutine.scale(scale=len(x) / self.weight_prior.num_data):
                pyro.sample("decoder_weights", self.weight_prior.distribution(weights), obs=weights)
        with pyro.plate("data", len(x)):
            top = len(self.layers)
            z = self._values_down(pyro.sample(site_of(top), self.p_z()), top, pyro.sample)
            pyro.sample("x", self.p_x(z), obs=x)

    def guide(self, x: Tensor) -> None:
        """Run q(z|x̃) as a Pyro program, with the plate `data` and the site `z` of each layer.

        In training mode x̃ is the corrupted x, else x.

        Args:
            x: Data, shape `[N, d]` or `[N, *shape]`.

        Raises:
            DataError: x has another shape or dtype than the system takes.
        """
        announce_parameters("autoencoder", self)
        x = self.flat(x)
        with pyro.plate("data", len(x)):
            x = self._like_weights("x", self.corruption(x) if self.training else x)
            self.hierarchy.infer(x, self, pyro.sample)

    # Encoder and decoder as functions of tensors.

    def encode(self, x: Tensor, layer: int = 1) -> Tensor:
        """Return the mean of q(z|x), or the value of another layer in `codes`.

        Args:
            x: Data, shape `[N, d]` or `[N, *shape]`, with finite values.
            layer: l, the layer, from 1 at the data upwards.

        Returns:
            The means, shape `[N, m_l]`.

        Raises:
            DataError: x has another shape or dtype than the system takes, or is not finite.
            ConfigError: There is no such layer.
        """
        self._check_layer(layer)
        return self.codes(x)[layer - 1]

    @torch.no_grad()
    def codes(self, x: Tensor) -> list[Tensor]:
        """Return the means of q for all layers of z, each given the means of those before it.

        Args:
            x: Data, shape `[N, d]` or `[N, *shape]`, with finite values.

        Returns:
            A tensor of shape `[N, m_l]` for each layer, from the data upwards.

        Raises:
            DataError: x has another shape or dtype than the system takes, or is not finite.

        >>> vae = Autoencoder(4, latent=(3, 2))
        >>> [code.shape for code in vae.codes(torch.zeros(5, 4))]
        [torch.Size([5, 3]), torch.Size([5, 2])]
        """
        x = self.flat(x)
        _check_finite("x", x)
        # Without validation: the mean does not need a scale that is 0 in single precision.
        with pyro.validation_enabled(False):
            return self.hierarchy.infer(self._like_weights("x", x), self, lambda _, q: q.mean)

    @torch.no_grad()
    def decode(self, z: Tensor, layer: int = 1) -> Tensor:
        """Return the mean of p(x|z), for z or for the means of z given another layer.

        Args:
            z: Latent features of the layer, shape `[..., m_l]`, with finite values.
            layer: l, the layer, from 1 at the data upwards.

        Returns:
            The means, shape `[..., d]`.

        Raises:
            DataError: z has another shape or dtype than the system takes, or is not finite.
            ConfigError: There is no such layer.

        >>> Autoencoder(4, latent=(3, 2)).decode(torch.zeros(5, 2), layer=2).shape
        torch.Size([5, 4])
        """
        self._check_layer(layer)
        _check_numbers("z", z)
        size = self.layers[layer - 1]
        if z.shape[-1:] != (size,):
            raise DataError(
                f"z has the shape {tuple(z.shape)}; this autoencoder decodes [..., {size}]"
            )
        _check_finite("z", z)
        z = self._values_down(self._like_weights("z", z), layer, lambda _, p: p.mean)
        return self.p_x(z).mean

    def _check_layer(self, layer: int) -> None:
        if layer not in range(1, len(self.layers) + 1):
            raise ConfigError(f"there is no layer {layer} of z; there are 1 to {len(self.layers)}")

    def reconstruct(self, x: Tensor) -> Tensor:
        """Return the mean of p(x|z) at the mean of q(z|x).

        Args:
            x: Data, shape `[N, d]` or `[N, *shape]`, with finite values.

        Returns:
            The reconstructions, shape `[N, d]`.

        Raises:
            DataError: x has another shape or dtype than the system takes, or is not finite.
        """
        return self.decode(self.encode(x))

    @torch.no_grad()
    def sample(self, num_samples: int, *, noise: bool = False) -> Tensor:
        """Return the means of p(x|z), or draws of x, for z drawn from the prior.

        Args:
            num_samples: The number of draws of z.
            noise: Whether to draw x from p(x|z) instead of returning its mean.

        Returns:
            Samples, shape `[num_samples, d]`.

        Raises:
            UndefinedLikelihoodError: The prior is Flat, which cannot be sampled.

        >>> Autoencoder(4, latent=2).sample(3).shape
        torch.Size([3, 4])
        """
        if isinstance(self.prior, priors.Flat):
            raise UndefinedLikelihoodError(
                "a Flat prior cannot be sampled: it is not a probability distribution; "
                "train with a Normal prior (ppca, vae) to draw samples"
            )
        z = self.p_z().sample((num_samples,))
        p_x = self.p_x(self._values_down(z, len(self.layers), lambda _, p: p.sample()))
        return p_x.sample() if noise else p_x.mean

    def linear_gaussian(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return W, b and σ of x|z ~ N(W z + b, σ²I).

        Returns:
            W, shape `[d, m]`, b, shape `[d]`, and σ, shape `[]`, all differentiable. With several
                layers W and b are those of `linear_gaussian.collapsed`.

        Raises:
            UndefinedLikelihoodError: Prior, likelihood or decoder is not linear-Gaussian; the
                message names it.
        """
        for part, choice, required in (
            ("prior", self.prior, priors.Normal),
            ("likelihood", self.likelihood, likelihoods.Normal),
            ("decoder", self.decoder_map, Linear),
        ):
            if not isinstance(choice, required):
                raise UndefinedLikelihoodError(
                    f"closed forms need a linear-Gaussian system; the {part} is {choice}, not "
                    f"{required.__name__}"
                )
        if len(self.layers) > 1 and (self.hierarchy.widths or self.hierarchy.scale is None):
            raise UndefinedLikelihoodError(
                f"closed forms need a linear-Gaussian system; the hierarchy is {self.hierarchy}, "
                "not one without widths and with a fixed scale"
            )
        assert isinstance(self.likelihood, likelihoods.Normal)
        like = self.zeros
        bias = self.decoder(torch.zeros(self.latent, dtype=like.dtype, device=like.device))
        points = torch.eye(self.latent, dtype=like.dtype, device=like.device)
        weight = (self.decoder(points) - bias).t()
        scale = self.likelihood.sigma(bias, self.learned_likelihood)
        upper = [cast(Layer, layer).linear_gaussian() for layer in self.upper]
        return *linear_gaussian.collapsed(weight, bias, upper), scale

    def flat(self, x: Tensor) -> Tensor:
        """Return data as `[N, d]`.

        Args:
            x: Data, shape `[N, d]` or `[N, *shape]`.

        Returns:
            The same values, shape `[N, d]`.

        Raises:
            DataError: x has another shape, or is not a dense tensor of real numbers.
        """
        _check_numbers("x", x)
        if x.shape[1:] == self.shape and x.dim() > 2:
            x = x.flatten(1)
        if x.dim() != 2 or x.shape[-1] != self.features:
            raise DataError(
                f"x has the shape {tuple(x.shape)}; this autoencoder takes [N, {self.features}] or "
                f"[N, {', '.join(map(str, self.shape))}]"
            )
        return x

    def _like_weights(self, name: str, values: Tensor) -> Tensor:
        """The same values; refuse another dtype than that of the weights."""
        dtype = self.zeros.dtype
        if values.dtype != dtype and not torch.is_autocast_enabled(values.device.type):
            raise DataError(
                f"{name} is of {values.dtype}, the autoencoder's weights of {dtype}: convert one "
                "of them"
            )
        return values

    def _decoder_weights(self) -> list[Tensor]:
        """The weights of the decoder without its biases."""
        shared = self.decoder.shared_weights() if isinstance(self.decoder, Tied) else []
        maps = [self.decoder, *(cast(Layer, layer).decoder for layer in self.upper)]
        return shared + [p for one in maps for p in one.parameters() if p.dim() > 1]


def _check_numbers(name: str, values: Any) -> None:
    """Refuse everything but dense tensors of real numbers."""
    if not isinstance(values, Tensor):
        raise DataError(f"{name} is a {type(values).__name__}; an autoencoder takes a torch tensor")
    if values.is_complex() or values.layout != torch.strided:
        kind = (
            f"sparse ({values.layout})" if values.layout != torch.strided else f"of {values.dtype}"
        )
        raise DataError(f"{name} is {kind}; an autoencoder takes a dense tensor of real numbers")


def _check_finite(name: str, values: Tensor) -> None:
    """Refuse values that are not finite, and name the index of the first."""
    if values.is_meta:
        raise DataError(f"{name} is on the device 'meta': it has no values")
    finite = values.isfinite()
    if not finite.all():
        at = tuple(int(i) for i in (~finite).nonzero()[0])
        raise DataError(
            f"{name} holds {values[at].item()} at {list(at)}: every value must be finite"
        )


def announce_parameters(name: str, module: nn.Module) -> None:
    """Report a module's parameters to Pyro's handlers without using the global parameter store.

    `pyro.module` registers by name in the global store, so that a second module of the same name is
    silently not trained. Here `pyro.infer.SVI` and `poutine.trace` see the same param sites, but
    modules in one process do not share them.

    Args:
        name: The prefix of the param sites' names.
        module: The module whose parameters require a gradient.

    >>> model = Autoencoder(4, latent=2).model
    >>> trace = poutine.trace(model).get_trace(torch.zeros(3, 4))
    >>> "autoencoder.decoder.0.bias" in trace.nodes
    True
    """
    if not poutine.runtime.am_i_wrapped():
        return
    for parameter_name, parameter in module.named_parameters():
        if parameter.requires_grad:
            full = f"{name}.{parameter_name}"
            poutine.runtime.effectful(_alias(parameter), type="param")(
                full, parameter, constraint=constraints.real, name=full
            )


def _alias(parameter: nn.Parameter) -> Callable[..., Tensor]:
    """A function that returns the parameter's value, from which SVI finds the parameter."""
    value = parameter.detach()
    value.unconstrained = lambda: parameter  # type: ignore[attr-defined]
    return lambda *_, **__: value
