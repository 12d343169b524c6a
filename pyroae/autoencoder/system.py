"""The one system: a Pyro model p(z) p(x|z) and an amortized guide q(z|x).

It is built from four choices (prior, posterior, likelihood, corruption) and two maps (encoder,
decoder).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import pyro
import torch
from pyro import poutine
from pyro.distributions import TorchDistribution
from torch import Tensor, nn

from pyroae import corruptions, likelihoods, linear_gaussian, posteriors, priors
from pyroae.autoencoder.hierarchies import BottomUp, Draw, Hierarchy, Layer, site_of
from pyroae.autoencoder.input_checks import (
    check_finite,
    check_numbers,
    count_of_draws,
    sample_rows,
)
from pyroae.autoencoder.parameters import announce_parameters
from pyroae.distributions import REAL
from pyroae.errors import ConfigError, DataError, UndefinedLikelihoodError
from pyroae.nn import MLP, Atoms, Linear, Map, Tied, set_output_bias
from pyroae.posteriors.sparse import Sparsity, is_point, sparsity
from pyroae.runtime.short_repr import Overview, Shown
from pyroae.runtime.short_text import parameters_of, shape_text, text_of


class Autoencoder(Shown, nn.Module):
    """Any member of the autoencoder family.

        model: z_n ~ p(z), x_n ~ p(x | decoder(z_n))
        guide: z_n ~ q(z | encoder(x̃_n)),   n in the plate "data"

    With several latent layers, p(z) is p(z_L) p(z_{L-1} | z_L) ... p(z_1 | z_2), of which `prior`
    is p(z_L); see `pyroae.autoencoder.hierarchies`.

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
        condition: C, the size of what x is conditioned on. With C > 0 model and guide take (x, c)
            with c `[N, C]`, and are p(z) p(x | decoder(z, c)) and q(z | encoder(x̃, c)).
        missing: Whether values of x may be missing, NaN. The model is then p(z) p(x_o|z) of what is
            observed; the encoder sees the mean of the training data at missing features.

    Raises:
        ConfigError: The choices cannot be combined, or a size is below 1.

    References:
        Mattei & Frellsen 2019, MIWAE: Deep Generative Modelling and Imputation of Incomplete Data
            Sets, for the bound of what is observed.
        Sohn, Lee & Yan 2015, Learning Structured Output Representation using Deep Conditional
            Generative Models.

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
        condition: int = 0,
        missing: bool = False,
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
        if condition < 0:
            raise ConfigError(f"the size of a condition must be at least 0, not {condition}")
        self.condition, self.missing = condition, missing
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

    def _overview(self) -> Overview:
        sizes = " → ".join(shape_text((layer,)) for layer in self.layers)
        maps = {"encoder": self.encoder_map, "decoder": self.decoder_map}
        choices = ("prior", "posterior", "likelihood", "corruption")
        rows = [(name, text_of(getattr(self, name))) for name in choices]
        for name, one in maps.items():
            tied = ", tied to the encoder" if isinstance(getattr(self, name), Tied) else ""
            count = parameters_of(getattr(self, name))
            rows.append((name, f"{text_of(one)}, {count:,} parameters{tied}"))
        if len(self.layers) > 1:
            rows.append(("hierarchy", text_of(self.hierarchy)))
        if self.weight_prior is not None:
            rows.append(("weight prior", text_of(self.weight_prior)))
        extra = [f"condition of {self.condition}"] if self.condition else []
        extra += ["missing values"] if self.missing else []
        parameters = f"{parameters_of(self):,} parameters"
        return Overview([f"{shape_text(self.shape)} → {sizes} latent", parameters, *extra], rows)

    def modules_text(self) -> str:
        """Return the tree of modules as text, the `repr` of any `nn.Module` of torch.

        >>> print(Autoencoder(4, latent=2).modules_text().splitlines()[0])
        Autoencoder(
        """
        return nn.Module.__repr__(self)

    def _build(self, tied: bool) -> None:
        """Build the maps and the learned parts of the choices; refuse invalid combinations."""
        top = self.layers[-1]
        self._check_choices(tied)
        outputs = self.hierarchy.outputs(self.posterior, self.layers)
        self.encoder = self._encoder(outputs) if outputs else nn.Identity()
        decoded = self.likelihood.layout(self.shape)
        if tied and (not outputs or self.condition or decoded != (self.shape, 1)):
            raise ConfigError(
                "tied weights need an encoder, no condition, and a likelihood with one output per "
                "feature"
            )
        self.decoder = (
            Tied(self.encoder, self.latent)
            if tied
            else self.decoder_map.decoder(self.latent + self.condition, *decoded)
        )
        self.learned_prior = self.prior.learned(top, self.features)
        self.learned_posterior = self.posterior.learned(self.latent)
        self.learned_likelihood = self.likelihood.learned(self.features)
        self.upper = nn.ModuleList(self.hierarchy.layers(self.posterior, self.layers))
        self.register_buffer("_zeros", torch.zeros(top), persistent=False)
        if self.missing:
            self.register_buffer("fill", torch.zeros(self.features))
        self.to(torch.get_default_dtype())
        self.prior.check(self)
        if isinstance(self.posterior, posteriors.ExactLinear):
            try:
                at = self.zeros.new_zeros(1, self.condition) if self.condition else None
                self.linear_gaussian(at)
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
        if is_of_posterior and self.condition:
            raise ConfigError(
                f"{self.prior} is made of q(z|x), which a conditional system does not have: its "
                "guide is q(z|x, c)"
            )
        if len(self.layers) > 1 and is_of_posterior and not self.hierarchy.top_first:
            raise ConfigError(
                f"{self.prior} is made of q({site_of(len(self.layers))}|x): it needs a hierarchy "
                f"whose guide draws the top layer first, as TopDown(), not {self.hierarchy}"
            )
        self.hierarchy.check(self.posterior, self.layers)
        if self.missing:
            self.likelihood.check_missing()

    def _encoder(self, outputs: int) -> nn.Module:
        if not self.condition:
            return self.encoder_map.encoder(self.shape, outputs)
        return self.encoder_map.conditional_encoder(self.shape, self.condition, outputs)

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
        if self.missing:
            cast(Tensor, self.fill).copy_(mean)
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

    def p_x(self, z: Tensor, c: Tensor | None = None) -> TorchDistribution:
        """Return the likelihood p(x|z), or p(x|z, c).

        Args:
            z: Latent features, shape `[..., m]`.
            c: The conditions of a conditional system, shape `[C]` or `[..., C]`; they are expanded
                over the leading dimensions of z, such as particles.

        Returns:
            A distribution with batch shape `[...]` and event shape `[d]`.

        Raises:
            DataError: c is missing or of another shape than the system takes.

        >>> Autoencoder(4, latent=2).p_x(torch.zeros(5, 3, 2)).batch_shape
        torch.Size([5, 3])
        """
        return self.likelihood.distribution(
            self.decoder(self._joined(z, c)), self.learned_likelihood
        )

    def q_z(self, x: Tensor, c: Tensor | None = None) -> TorchDistribution:
        """Return the approximate posterior q(z|x), or that of the layer that is drawn first.

        Args:
            x: Data, shape `[N, d]` or `[N, *shape]`.
            c: The conditions of a conditional system, shape `[N, C]`.

        Returns:
            A distribution with batch shape `[N]` and event shape `[m]`. With several layers it is
                q(z_1|x) of a guide from the bottom up, q(z_L|x) of one from the top down.

        Raises:
            DataError: x or c has another shape or dtype than the system takes.
        """
        return self.hierarchy.first(self._encoded(x), self._at(c))

    def _encoded(self, x: Tensor, *, corrupt: bool = False) -> Tensor:
        """Data as the encoder sees them."""
        x = self._like_weights("x", self.flat(x))
        seen = self.corruption(x) if corrupt else x
        if not self.missing:
            return self.likelihood.encoded(seen)
        if self.posterior.takes_missing:
            return torch.where(x.isnan(), x, seen)
        return self.likelihood.encoded(torch.where(x.isnan(), cast(Tensor, self.fill), seen))

    def of_observed(
        self, p_x: TorchDistribution, x: Tensor | None
    ) -> tuple[TorchDistribution, Tensor | None]:
        """Return the distribution of what is observed, and data with a value at each feature.

        Args:
            p_x: p(x|z), batch shape `[..., N]`.
            x: Data, shape `[N, d]`, NaN where missing; None where x is drawn.

        Returns:
            p(x_o|z) of the observed features, and x with 0 at missing ones, which has no influence;
                both unchanged unless `missing` is set and x is given.
        """
        if not self.missing or x is None:
            return p_x, x
        is_observed = ~x.isnan()
        return likelihoods.Observed(p_x, is_observed), torch.where(is_observed, x, 0.0)

    def _at(self, c: Tensor | None) -> "Autoencoder":
        """The autoencoder as posteriors see it, at given conditions."""
        self.check_condition(c)
        return self if c is None else cast(Autoencoder, _AtCondition(self, c))

    def _values_down(self, z: Tensor, layer: int, draw: Draw) -> Tensor:
        """A value of z, from a value of a layer, through the layers between them."""
        for number in range(layer - 1, 0, -1):
            z = draw(site_of(number), cast(Layer, self.upper[number - 1]).below(z))
        return z

    def model(
        self, x: Tensor | None = None, c: Tensor | None = None, *, size: int | None = None
    ) -> None:
        """Run p(z) p(x|z) as a Pyro program, with the plate `data` and the sites `z` and `x`.

        The sites of further layers of z are `z2`, `z3`, ..., from the data upwards. Without x the
        site `x` is drawn, so that `pyro.infer.Predictive` draws new data; values that may be
        missing are drawn too.

        With a weight prior there is also the site `decoder_weights` outside the plate, scaled by
        N / num_data.

        Args:
            x: Data, shape `[N, d]` or `[N, *shape]`; None to draw x.
            c: The conditions of a conditional system, shape `[N, C]`; where x is drawn, also one
                for all data, shape `[C]`.
            size: N where x is drawn, by default the number of conditions, or 1; of no use with x.

        Raises:
            DataError: x or c has another shape than the system takes, or `size` is not the number
                of data.
            UndefinedLikelihoodError: z is drawn from a Flat prior.

        >>> draws = pyro.infer.Predictive(Autoencoder(4, latent=2).model, num_samples=64)(None)
        >>> draws["x"].shape, draws["z"].shape  # 64 draws of one datum
        (torch.Size([64, 1, 4]), torch.Size([64, 1, 2]))
        """
        announce_parameters("autoencoder", self)
        x = None if x is None else self.flat(x)
        count = self._count(x, c, size)
        if self.weight_prior is not None:
            weights = torch.cat([p.flatten() for p in self._decoder_weights()])
            with poutine.scale(scale=count / self.weight_prior.num_data):
                pyro.sample("decoder_weights", self.weight_prior.distribution(weights), obs=weights)
        with pyro.plate("data", count):
            draw: Draw = pyro.sample if x is not None else partial(sample_rows, count)
            top = len(self.layers)
            z = self._values_down(draw(site_of(top), self.p_z()), top, draw)
            p_x, values = self.of_observed(self.p_x(z, c), x)
            pyro.sample("x", p_x, obs=values)

    def _count(self, x: Tensor | None, c: Tensor | None, size: int | None) -> int:
        """N, the size of the plate; where x is drawn, that of the conditions, `size` or 1."""
        self.check_condition(c)
        if x is None:
            return count_of_draws(None if c is None or c.dim() < 2 else len(c), size)
        if size not in (None, len(x)):
            raise DataError(f"the size is {size}, but x holds {len(x)} data: leave it out")
        return len(x)

    def guide(self, x: Tensor, c: Tensor | None = None) -> None:
        """Run q(z|x̃) as a Pyro program, with the plate `data` and the site `z` of each layer.

        In training mode x̃ is the corrupted x, else x. q is a function of x, so that
        `Predictive(model, guide=guide)(None)` is refused.

        Args:
            x: Data, shape `[N, d]` or `[N, *shape]`.
            c: The conditions of a conditional system, shape `[N, C]`, which are not corrupted.

        Raises:
            DataError: x or c has another shape or dtype than the system takes.
        """
        announce_parameters("autoencoder", self)
        x = self.flat(x)
        with pyro.plate("data", len(x)):
            seen = self._encoded(x, corrupt=self.training)
            self.hierarchy.infer(seen, self._at(c), pyro.sample)

    # Encoder and decoder as functions of tensors.

    def encode(self, x: Tensor, c: Tensor | None = None, *, layer: int = 1) -> Tensor:
        """Return the mean of q(z|x), or the value of another layer in `codes`.

        It is in closed form but for flows, for which it is the mean over 64 fixed draws
        (`posteriors.Flow.mean`), the same in every call.

        Args:
            x: Data, shape `[N, d]` or `[N, *shape]`, with finite values.
            c: The conditions of a conditional system, shape `[N, C]`.
            layer: l, the layer, from 1 at the data upwards.

        Returns:
            The means, shape `[N, m_l]`.

        Raises:
            DataError: x has another shape or dtype than the system takes, or is not finite.
            ConfigError: There is no such layer.
        """
        self._check_layer(layer)
        return self.codes(x, c)[layer - 1]

    def sparsity(self, x: Tensor, c: Tensor | None = None) -> Sparsity | None:
        """Measure how many codes are exactly 0, and how often each unit is used.

        Args:
            x: Data, shape `[N, d]` or `[N, *shape]`, with finite values.
            c: The conditions of a conditional system, shape `[N, C]`.

        Returns:
            The share of zeros of each datum, `[N]`, and the uses of each unit, `[m]`; None where
                the posterior is not a point mass.

        Raises:
            DataError: x has another shape or dtype than the system takes, or is not finite.

        >>> Autoencoder(4, latent=2, posterior=posteriors.TopK(1)).sparsity(torch.ones(3, 4)).zeros
        tensor([0.5000, 0.5000, 0.5000], dtype=torch.float64)
        """
        codes = self.encode(x, c)
        with torch.no_grad():
            of_one = self.q_z(x[:1], None if c is None else c[:1])
        return sparsity(codes.cpu()) if is_point(of_one) else None

    @torch.no_grad()
    def codes(self, x: Tensor, c: Tensor | None = None) -> list[Tensor]:
        """Return the means of q for all layers of z, each given the means of those before it.

        Args:
            x: Data, shape `[N, d]` or `[N, *shape]`, with finite values.
            c: The conditions of a conditional system, shape `[N, C]`.

        Returns:
            A tensor of shape `[N, m_l]` for each layer, from the data upwards.

        Raises:
            DataError: x has another shape or dtype than the system takes, or is not finite.

        >>> vae = Autoencoder(4, latent=(3, 2))
        >>> [code.shape for code in vae.codes(torch.zeros(5, 4))]
        [torch.Size([5, 3]), torch.Size([5, 2])]
        """
        x = self.flat(x)
        check_finite("x", x.nan_to_num(nan=0.0, posinf=math.inf) if self.missing else x)
        # Without validation: the mean does not need a scale that is 0 in single precision.
        with pyro.validation_enabled(False):
            return self.hierarchy.infer(self._encoded(x), self._at(c), lambda _, q: q.mean)

    @torch.no_grad()
    def decode(self, z: Tensor, c: Tensor | None = None, *, layer: int = 1) -> Tensor:
        """Return the mean of p(x|z), or of categories the most probable code.

        For another layer than that of the data, z is the mean of p(z|z_l).

        Args:
            z: Latent features of the layer, shape `[..., m_l]`, with finite values.
            c: The conditions of a conditional system, shape `[C]` or `[..., C]`.
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
        check_numbers("z", z)
        size = self.layers[layer - 1]
        if z.shape[-1:] != (size,):
            raise DataError(
                f"z has the shape {tuple(z.shape)}; this autoencoder decodes [..., {size}]"
            )
        check_finite("z", z)
        z = self._values_down(self._like_weights("z", z), layer, lambda _, p: p.mean)
        return self.likelihood.point(self.p_x(z, c))

    def _check_layer(self, layer: int) -> None:
        if layer not in range(1, len(self.layers) + 1):
            raise ConfigError(f"there is no layer {layer} of z; there are 1 to {len(self.layers)}")

    def reconstruct(self, x: Tensor, c: Tensor | None = None) -> Tensor:
        """Return the mean of p(x|z), or the most probable code, at the mean of q(z|x).

        Args:
            x: Data, shape `[N, d]` or `[N, *shape]`, with finite values.
            c: The conditions of a conditional system, shape `[N, C]`.

        Returns:
            The reconstructions, shape `[N, d]`.

        Raises:
            DataError: x has another shape or dtype than the system takes, or is not finite.
        """
        return self.decode(self.encode(x, c), c)

    @torch.no_grad()
    def sample(self, num_samples: int, c: Tensor | None = None, *, noise: bool = False) -> Tensor:
        """Return what `decode` returns, or draws of x, for z drawn from the prior.

        Args:
            num_samples: The number of draws of z.
            c: The conditions of a conditional system: one for all, shape `[C]`, or one for each
                sample, shape `[num_samples, C]`.
            noise: Whether to draw x from p(x|z) instead of decoding z.

        Returns:
            Samples, shape `[num_samples, d]`.

        Raises:
            UndefinedLikelihoodError: The prior is Flat, which cannot be sampled.
            DataError: c is missing or of another shape than the system takes.

        >>> Autoencoder(4, latent=2).sample(3).shape
        torch.Size([3, 4])
        """
        p_x = self.p_x(self.draws_of_z(num_samples), c)
        return p_x.sample() if noise else p_x.mean

    def draws_of_z(self, num_samples: int) -> Tensor:
        """Return draws of z from the prior.

        Args:
            num_samples: The number of draws.

        Returns:
            Draws, shape `[num_samples, m]`.

        Raises:
            UndefinedLikelihoodError: The prior is Flat, which cannot be sampled.
        """
        z = self.p_z().sample((num_samples,))
        return self._values_down(z, len(self.layers), lambda _, p: p.sample())

    def linear_gaussian(self, c: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Return W, b and σ of x|z ~ N(W z + b, σ²I), or of x|z, c with b = b(c).

        Args:
            c: The conditions of a conditional system, shape `[N, C]`.

        Returns:
            W, shape `[d, m]`, b, shape `[d]` or `[N, d]` with conditions, and σ, shape `[]`, all
                differentiable. With several layers W and b are those of
                `linear_gaussian.collapsed`.

        Raises:
            UndefinedLikelihoodError: Prior, likelihood or decoder is not linear-Gaussian; the
                message names it.
        """
        if not isinstance(self.prior, priors.Normal):
            raise UndefinedLikelihoodError(_not_linear_gaussian("prior", self.prior, "Normal"))
        return self.linear_likelihood(c)

    def linear_likelihood(self, c: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Return W, b and σ of x|z ~ N(W z + b, σ²I), whatever the prior of z.

        Args:
            c: The conditions of a conditional system, shape `[N, C]`.

        Returns:
            W, shape `[d, m]`, b, shape `[d]` or `[N, d]` with conditions, and σ, shape `[]`, all
                differentiable. With several layers W and b are those of
                `linear_gaussian.collapsed`.

        Raises:
            UndefinedLikelihoodError: Likelihood or decoder is not linear-Gaussian; the message
                names it.
        """
        if not isinstance(self.likelihood, likelihoods.Normal):
            raise UndefinedLikelihoodError(
                _not_linear_gaussian("likelihood", self.likelihood, "Normal")
            )
        if not isinstance(self.decoder_map, Linear):
            raise UndefinedLikelihoodError(
                _not_linear_gaussian("decoder", self.decoder_map, "Linear")
            )
        if not self.likelihood.is_isotropic:
            raise UndefinedLikelihoodError(
                f"closed forms need one σ for all features; the likelihood is {self.likelihood}"
            )
        if len(self.layers) > 1 and (self.hierarchy.widths or self.hierarchy.scale is None):
            raise UndefinedLikelihoodError(
                f"closed forms need a linear-Gaussian system; the hierarchy is {self.hierarchy}, "
                "not one without widths and with a fixed scale"
            )
        origin = self.zeros.new_zeros(self.latent)
        bias = self.decoder(self._joined(origin if c is None else origin.expand(len(c), -1), c))
        units = torch.eye(self.latent, dtype=origin.dtype, device=origin.device)
        points = torch.cat([units, origin[None]])
        outputs = self.decoder(nn.functional.pad(points, (0, self.condition)))
        weight = (outputs[:-1] - outputs[-1]).t()
        scale = self.likelihood.sigma(bias, self.learned_likelihood)
        upper = [cast(Layer, layer).linear_gaussian() for layer in self.upper]
        return *linear_gaussian.collapsed(weight, bias, upper), scale

    def check_condition(self, c: Tensor | None) -> None:
        """Refuse conditions that the system does not take.

        Args:
            c: Conditions, shape `[..., C]`, or None.

        Raises:
            DataError: c is given and the system has no condition, or is missing, or of another
                size or dtype.
        """
        if c is None and self.condition:
            raise DataError(
                f"this autoencoder is conditional: give c, of shape [N, {self.condition}], beside x"
            )
        if c is None:
            return
        if not self.condition:
            raise DataError("a condition c is given, but this autoencoder has none")
        check_numbers("c", c)
        if not c.dim() or c.shape[-1] != self.condition:
            raise DataError(
                f"c has the shape {tuple(c.shape)}; this autoencoder takes [N, {self.condition}]"
            )

    def _joined(self, values: Tensor, c: Tensor | None) -> Tensor:
        """Values `[..., k]` and their conditions side by side, `[..., k + C]`."""
        self.check_condition(c)
        if c is None:
            return values
        c = self._like_weights("c", c)
        if c.dim() > values.dim() or c.shape[:-1] != values.shape[values.dim() - c.dim() : -1]:
            raise DataError(
                f"c has the shape {tuple(c.shape)}, which does not fit data or draws of the shape "
                f"{tuple(values.shape[:-1])}"
            )
        return torch.cat([values, c.expand(*values.shape[:-1], -1)], -1)

    def flat(self, x: Tensor) -> Tensor:
        """Return data as `[N, d]`.

        Args:
            x: Data, shape `[N, d]` or `[N, *shape]`.

        Returns:
            The same values, shape `[N, d]`.

        Raises:
            DataError: x has another shape, or is not a dense tensor of real numbers.
        """
        check_numbers("x", x)
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


def _not_linear_gaussian(part: str, choice: Any, required: str) -> str:
    """The message for a choice of which there are no closed forms."""
    return f"closed forms need a linear-Gaussian system; the {part} is {choice}, not {required}"


@dataclass(frozen=True)
class _AtCondition:
    """A conditional autoencoder as a posterior sees it: with an encoder of x alone, at c."""

    system: Autoencoder
    c: Tensor

    def encoder(self, x: Tensor) -> Tensor:
        return self.system.encoder(self.system._joined(x, self.c))

    def __getattr__(self, name: str) -> Any:
        return getattr(self.system, name)

    def linear_gaussian(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.system.linear_gaussian(self.c)
