"""The one system: a Pyro model p(z) p(x|z) and an amortized guide q(z|x), made from four choices and two maps."""

import math
from collections.abc import Callable
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.distributions import TorchDistribution
from torch import Tensor, nn
from torch.distributions import constraints

from pyroae import corruptions, likelihoods, posteriors, priors
from pyroae.errors import ConfigError, DataError, UndefinedLikelihoodError
from pyroae.nn import MLP, Linear, Map, Tied, set_output_bias


class Autoencoder(nn.Module):
    """Any member of the autoencoder family.

        model: z_n ~ p(z), x_n ~ p(x | decoder(z_n));  guide: z_n ~ q(z | encoder(x̃_n)),  n in the plate "data".

    shape: of one datum; data are passed as `[N, d]` or `[N, *shape]`. latent: m, the size of z.
    encoder, decoder: the form of the maps; without a decoder, the encoder's form is used.
    tied: the decoder's weights are the encoder's, transposed.
    weight_prior: a Gaussian prior on the decoder's weights, for MAP.
    The corruption acts in training mode only: `eval()` turns it off.
    `model` and `guide` are ordinary Pyro programs; the parameters stay in this module, never in Pyro's global store.
    Raises ConfigError for choices that do not go together.

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
                f"tied weights leave no choice of a decoder, but {decoder} was given beside {self.encoder_map}"
            )
        self._build(tied)

    def _build(self, tied: bool) -> None:
        of_prior, of_posterior = (
            part.support(self.latent) for part in (self.prior, self.posterior)
        )
        if of_prior != of_posterior:
            raise ConfigError(
                f"{self.prior} as the prior is over {of_prior} z, {self.posterior} as the posterior over {of_posterior} z"
            )
        outputs = self.posterior.outputs(self.latent)
        self.encoder = self.encoder_map.encoder(self.shape, outputs) if outputs else nn.Identity()
        if tied and (not outputs or self.likelihood.outputs != 1):
            raise ConfigError(
                "tied weights need an encoder, and a likelihood of one number a feature"
            )
        self.decoder = (
            Tied(self.encoder, self.latent)
            if tied
            else self.decoder_map.decoder(self.latent, self.shape, self.likelihood.outputs)
        )
        self.learned_prior = self.prior.learned(self.latent)
        self.learned_likelihood = self.likelihood.learned(self.features)
        self.register_buffer("_zeros", torch.zeros(self.latent), persistent=False)
        self.to(torch.get_default_dtype())
        if isinstance(self.posterior, posteriors.ExactLinear):
            try:
                self.linear_gaussian()
            except UndefinedLikelihoodError as error:
                raise ConfigError(f"the exact linear posterior cannot be used: {error}") from None

    def start_at(self, mean: Tensor) -> "Autoencoder":
        """Set the decoder's last bias so that p(x|z) starts at the mean of the data `[d]` (Burda 2016)."""
        set_output_bias(self.decoder, self.likelihood.bias(mean))
        return self

    # The three distributions, and the two Pyro programs made of them.

    def p_z(self) -> TorchDistribution:
        """The prior p(z), event shape `[m]`."""
        return self.prior.distribution(self._zeros, self.learned_prior)  # type: ignore[arg-type]

    def p_x(self, z: Tensor) -> TorchDistribution:
        """The likelihood p(x|z) for z `[..., m]`, event shape `[d]`."""
        return self.likelihood.distribution(self.decoder(z), self.learned_likelihood)

    def q_z(self, x: Tensor) -> TorchDistribution:
        """The approximate posterior q(z|x) for x `[N, d]` or `[N, *shape]`, event shape `[m]`.

        Raises DataError for x of another shape or type than the system takes.
        """
        return self.posterior.distribution(self._like_weights("x", self.flat(x)), self)

    def model(self, x: Tensor) -> None:
        """p(z) p(x|z) as a Pyro program: plate `data`, sites `z` and `x`."""
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
        """q(z|x̃) as a Pyro program: plate `data`, site `z`; in training mode x̃ is the corrupted x."""
        announce_parameters("autoencoder", self)
        x = self.flat(x)
        with pyro.plate("data", len(x)):
            pyro.sample("z", self.q_z(self.corruption(x) if self.training else x))

    # Encoder and decoder, usable apart.

    @torch.no_grad()
    def encode(self, x: Tensor) -> Tensor:
        """The mean of q(z|x), `[N, m]`, for x `[N, d]` or `[N, *shape]`. Raises DataError for any other x."""
        _check_finite("x", self.flat(x))
        with pyro.validation_enabled(
            False
        ):  # of a scale that is 0 in single precision, which the mean does not need
            return self.q_z(x).mean

    @torch.no_grad()
    def decode(self, z: Tensor) -> Tensor:
        """The mean of p(x|z), `[..., d]`, for z `[..., m]`. Raises DataError for what is no such z, or not finite."""
        _check_numbers("z", z)
        if z.shape[-1:] != (self.latent,):
            raise DataError(
                f"z has the shape {tuple(z.shape)}; this autoencoder decodes [..., {self.latent}]"
            )
        _check_finite("z", z)
        return self.p_x(self._like_weights("z", z)).mean

    def reconstruct(self, x: Tensor) -> Tensor:
        """The mean of p(x|z) at the mean of q(z|x), `[N, d]`."""
        return self.decode(self.encode(x))

    @torch.no_grad()
    def sample(self, num_samples: int, *, noise: bool = False) -> Tensor:
        """Means of p(x|z) for z drawn from the prior, `[num_samples, d]`; with `noise`, draws of x.

        Raises UndefinedLikelihoodError under a Flat prior, which cannot be sampled.
        """
        if isinstance(self.prior, priors.Flat):
            raise UndefinedLikelihoodError(
                "a Flat prior cannot be sampled: it is no probability; train with a Normal prior (ppca, vae) to draw samples"
            )
        p_x = self.p_x(self.p_z().sample((num_samples,)))
        return p_x.sample() if noise else p_x.mean

    def linear_gaussian(self) -> tuple[Tensor, Tensor, Tensor]:
        """W `[d, m]`, b `[d]` and σ, where prior, likelihood and decoder are linear-Gaussian.

        Raises UndefinedLikelihoodError, naming the choice that is not, elsewhere.
        """
        for part, given, wanted in (
            ("prior", self.prior, priors.Normal),
            ("likelihood", self.likelihood, likelihoods.Normal),
            ("decoder", self.decoder_map, Linear),
        ):
            if not isinstance(given, wanted):
                raise UndefinedLikelihoodError(
                    f"closed forms need a linear-Gaussian system; the {part} is {given}, not {wanted.__name__}"
                )
        assert isinstance(self.likelihood, likelihoods.Normal)
        zeros = self._zeros
        assert isinstance(zeros, Tensor)
        bias = self.decoder(zeros)
        weight = (
            self.decoder(torch.eye(self.latent, dtype=zeros.dtype, device=zeros.device)) - bias
        ).t()
        return weight, bias, self.likelihood.sigma(bias, self.learned_likelihood)

    def flat(self, x: Tensor) -> Tensor:
        """x as `[N, d]`; raises DataError for another width than the system has, and for what is no tensor of real numbers."""
        _check_numbers("x", x)
        if x.shape[1:] == self.shape and x.dim() > 2:
            x = x.flatten(1)
        if x.dim() != 2 or x.shape[-1] != self.features:
            raise DataError(
                f"x has the shape {tuple(x.shape)}; this autoencoder takes [N, {self.features}] or [N, "
                f"{', '.join(map(str, self.shape))}]"
            )
        return x

    def _like_weights(self, name: str, values: Tensor) -> Tensor:
        """The same values, refused where their type is not that of the weights."""
        wanted = self._zeros.dtype
        if values.dtype != wanted and not torch.is_autocast_enabled(values.device.type):
            raise DataError(
                f"{name} is of {values.dtype}, the autoencoder's weights of {wanted}: convert one of them"
            )
        return values

    def _decoder_weights(self) -> list[Tensor]:
        shared = self.decoder.shared_weights() if isinstance(self.decoder, Tied) else []
        return shared + [p for p in self.decoder.parameters() if p.dim() > 1]


def _check_numbers(name: str, values: Any) -> None:
    """Raises DataError for what is no dense tensor of real numbers."""
    if not isinstance(values, Tensor):
        raise DataError(f"{name} is a {type(values).__name__}; an autoencoder takes a torch tensor")
    if values.is_complex() or values.layout != torch.strided:
        kind = (
            f"sparse ({values.layout})" if values.layout != torch.strided else f"of {values.dtype}"
        )
        raise DataError(f"{name} is {kind}; an autoencoder takes a dense tensor of real numbers")


def _check_finite(name: str, values: Tensor) -> None:
    """Raises DataError, with its index, for a row that is not finite."""
    if values.is_meta:
        raise DataError(f"{name} is on the device 'meta': it has no values")
    finite = values.isfinite()
    if not finite.all():
        at = tuple(int(i) for i in (~finite).nonzero()[0])
        raise DataError(
            f"{name} holds {values[at].item()} at {list(at)}: every value must be finite"
        )


def announce_parameters(name: str, module: nn.Module) -> None:
    """Tell Pyro's handlers of a module's parameters without entering them in the global parameter store.

    `pyro.module` registers by name, so that a second module of the same name is silently left untrained; here
    `pyro.infer.SVI` and `poutine.trace` see the same param sites, and two models in one process stay apart.
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
    value = parameter.detach()
    value.unconstrained = lambda: parameter  # type: ignore[attr-defined]  # where SVI looks for what to optimize
    return lambda *_, **__: value
