"""The one system: a Pyro model p(z) p(x|z) and an amortized guide q(z|x).

It is built from four choices (prior, posterior, likelihood, corruption) and two maps (encoder,
decoder).
"""

import math
from collections.abc import Callable
from typing import Any, cast

import pyro
import torch
from pyro import poutine
from pyro.distributions import TorchDistribution
from torch import Tensor, nn
from torch.distributions import constraints

from pyroae import corruptions, likelihoods, posteriors, priors
from pyroae.errors import ConfigError, DataError, UndefinedLikelihoodError
from pyroae.nn import MLP, Atoms, Linear, Map, Tied, set_output_bias
from pyroae.posteriors.sparse import Sparsity, is_point, sparsity


class Autoencoder(nn.Module):
    """Any member of the autoencoder family.

        model: z_n ~ p(z), x_n ~ p(x | decoder(z_n))
        guide: z_n ~ q(z | encoder(x̃_n)),   n in the plate "data"

    `model` and `guide` are ordinary Pyro programs. The parameters stay in this module and never
    enter Pyro's global store. The corruption x → x̃ acts in training mode only: `eval()` turns it
    off.

    Args:
        shape: The shape of one datum, with d features in all. Data are passed as `[N, d]` or
            `[N, *shape]`.
        latent: m, the size of z.
        prior: p(z); N(0, I) by default.
        posterior: q(z|x); a diagonal Gaussian by default.
        likelihood: p(x|z); Bernoulli by default.
        corruption: The corruption of the guide's input; none by default.
        encoder: The form of the encoder; `MLP()` by default.
        decoder: The form of the decoder; the encoder's form by default.
        tied: Whether the decoder's weights are the encoder's, transposed.
        weight_prior: A Gaussian prior on the decoder's weights, for MAP; none by default.

    Raises:
        ConfigError: The choices cannot be combined, or a size is below 1.

    >>> vae = Autoencoder((8, 8), latent=2)
    >>> vae.reconstruct(torch.zeros(5, 64)).shape
    torch.Size([5, 64])
    """

    def __init__(
        self,
        shape: int | tuple[int, ...],
        latent: int,
        *,
        prior: priors.Prior | None = None,
        posterior: posteriors.Posterior | None = None,
        likelihood: likelihoods.Likelihood | None = None,
        corruption: corruptions.Corruption | None = None,
        encoder: Map | None = None,
        decoder: Map | None = None,
        tied: bool = False,
        weight_prior: priors.GaussianWeights | None = None,
    ) -> None:
        super().__init__()
        self.shape = (shape,) if isinstance(shape, int) else tuple(shape)
        self.features = math.prod(self.shape)
        self.latent = latent
        if latent < 1 or self.features < 1:
            raise ConfigError(
                f"latent and data need at least one dimension, not {latent} and {self.shape}"
            )
        self.prior = prior or priors.Normal()
        self.posterior = posterior or posteriors.Diagonal()
        self.likelihood = likelihood or likelihoods.Bernoulli()
        self.corruption = corruption or corruptions.Identity()
        self.weight_prior = weight_prior
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
        prior_support, posterior_support = (
            part.support(self.latent) for part in (self.prior, self.posterior)
        )
        if prior_support != posterior_support:
            raise ConfigError(
                f"{self.prior} as the prior is over {prior_support} z, {self.posterior} as the "
                f"posterior over {posterior_support} z"
            )
        outputs = self.posterior.outputs(self.latent)
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
        self.learned_prior = self.prior.learned(self.latent, self.features)
        self.learned_posterior = self.posterior.learned(self.latent)
        self.learned_likelihood = self.likelihood.learned(self.features)
        self.register_buffer("_zeros", torch.zeros(self.latent), persistent=False)
        self.to(torch.get_default_dtype())
        if isinstance(self.posterior, posteriors.ExactLinear):
            try:
                self.linear_gaussian()
            except UndefinedLikelihoodError as error:
                raise ConfigError(f"the exact linear posterior cannot be used: {error}") from None

    def start_at(self, mean: Tensor, x: Tensor | None = None) -> "Autoencoder":
        """Set the decoder's last bias so that the mean of p(x|z) starts at the mean of the data.

        A dictionary of atoms starts at directions of data from their mean.

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
        for layer in self.decoder.modules():
            if isinstance(layer, Atoms) and len(layer.bias) == len(mean):
                layer.start_at(x, mean)
        return self

    @property
    def zeros(self) -> Tensor:
        """Zeros of shape `[m]`, which give size, dtype and device of z."""
        return cast(Tensor, self._zeros)

    # The three distributions, and the two Pyro programs built from them.

    def p_z(self) -> TorchDistribution:
        """Return the prior p(z).

        Returns:
            A distribution with event shape `[m]`.

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
        """Return the approximate posterior q(z|x).

        Args:
            x: Data, shape `[N, d]` or `[N, *shape]`.

        Returns:
            A distribution with batch shape `[N]` and event shape `[m]`.

        Raises:
            DataError: x has another shape or dtype than the system takes.
        """
        return self.posterior.distribution(self._like_weights("x", self.flat(x)), self)

    def model(self, x: Tensor) -> None:
        """Run p(z) p(x|z) as a Pyro program, with the plate `data` and the sites `z` and `x`.

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
            z = pyro.sample("z", self.p_z())
            pyro.sample("x", self.p_x(z), obs=x)

    def guide(self, x: Tensor) -> None:
        """Run q(z|x̃) as a Pyro program, with the plate `data` and the site `z`.

        In training mode x̃ is the corrupted x, else x.

        Args:
            x: Data, shape `[N, d]` or `[N, *shape]`.

        Raises:
            DataError: x has another shape or dtype than the system takes.
        """
        announce_parameters("autoencoder", self)
        x = self.flat(x)
        with pyro.plate("data", len(x)):
            pyro.sample("z", self.q_z(self.corruption(x) if self.training else x))

    # Encoder and decoder as functions of tensors.

    @torch.no_grad()
    def encode(self, x: Tensor) -> Tensor:
        """Return the mean of q(z|x).

        Args:
            x: Data, shape `[N, d]` or `[N, *shape]`, with finite values.

        Returns:
            The means, shape `[N, m]`.

        Raises:
            DataError: x has another shape or dtype than the system takes, or is not finite.
        """
        _check_finite("x", self.flat(x))
        # Without validation: the mean does not need a scale that is 0 in single precision.
        with pyro.validation_enabled(False):
            return self.q_z(x).mean

    def sparsity(self, x: Tensor) -> Sparsity | None:
        """Measure how many codes are exactly 0, and how often each unit is used.

        Args:
            x: Data, shape `[N, d]` or `[N, *shape]`, with finite values.

        Returns:
            The share of zeros of each datum, `[N]`, and the uses of each unit, `[m]`; None where
                the posterior is not a point mass.

        Raises:
            DataError: x has another shape or dtype than the system takes, or is not finite.

        >>> Autoencoder(4, latent=2, posterior=posteriors.TopK(1)).sparsity(torch.ones(3, 4)).zeros
        tensor([0.5000, 0.5000, 0.5000], dtype=torch.float64)
        """
        codes = self.encode(x)
        with torch.no_grad():
            return sparsity(codes.cpu()) if is_point(self.q_z(x[:1])) else None

    @torch.no_grad()
    def decode(self, z: Tensor) -> Tensor:
        """Return the mean of p(x|z).

        Args:
            z: Latent features, shape `[..., m]`, with finite values.

        Returns:
            The means, shape `[..., d]`.

        Raises:
            DataError: z has another shape or dtype than the system takes, or is not finite.
        """
        _check_numbers("z", z)
        if z.shape[-1:] != (self.latent,):
            raise DataError(
                f"z has the shape {tuple(z.shape)}; this autoencoder decodes [..., {self.latent}]"
            )
        _check_finite("z", z)
        return self.p_x(self._like_weights("z", z)).mean

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
        p_x = self.p_x(self.p_z().sample((num_samples,)))
        return p_x.sample() if noise else p_x.mean

    def linear_gaussian(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return W, b and σ of x|z ~ N(W z + b, σ²I).

        Returns:
            W, shape `[d, m]`, b, shape `[d]`, and σ, shape `[]`, all differentiable.

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
        assert isinstance(self.likelihood, likelihoods.Normal)
        zeros = self.zeros
        bias = self.decoder(zeros)
        weight = (
            self.decoder(torch.eye(self.latent, dtype=zeros.dtype, device=zeros.device)) - bias
        ).t()
        return weight, bias, self.likelihood.sigma(bias, self.learned_likelihood)

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
        return shared + [p for p in self.decoder.parameters() if p.dim() > 1]


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
