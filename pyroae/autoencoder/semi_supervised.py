"""The semi-supervised model M2: a class y that is observed for some data and summed for others."""

import math
from typing import Any, cast

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution
from torch import Tensor, nn

from pyroae.autoencoder.parameters import announce_parameters
from pyroae.autoencoder.system import Autoencoder
from pyroae.data.conditions import label_text
from pyroae.errors import ConfigError, UndefinedLikelihoodError

BLOCK = 1000
"""The number of data that are classified at once."""


IMPOSSIBLE = -1e4
"""The log-probability, in nats, of a class other than the label; e to this power is 0."""


class M2(Autoencoder):
    """A conditional autoencoder whose condition is a class y that may be missing.

        model: y_n ~ Uniform{1, …, C}, z_n ~ p(z), x_n ~ p(x | decoder(z_n, y_n))
        guide: y_n ~ q(y | classifier(x_n)), z_n ~ q(z | encoder(x_n, y_n))

    `model` and `guide` take (x, y), where y is one-hot, and 0 where the label is missing. The y of
    the guide is marked for enumeration, so that the ELBO sums over it exactly
    (`objectives.enumerated`):

        labelled:    L(x, y) = E_q [log p(y) p(x|z, y) p(z) − log q(z|x, y)] ≤ log p(x, y)
        unlabelled:  U(x) = Σ_y q(y|x) [L(x, y) − log q(y|x)] ≤ log p(x)
        training:    Σ_labelled [L(x, y) + α log q(y|x)] + Σ_unlabelled U(x)

    For x alone, y is summed out of both programs: z ~ Σ_y q(y|x) q(z|x, y), x ~ Σ_y p(y) p(x|z, y).
    All latents are then continuous, so that every evaluator of log p(x) applies.

    Args:
        shape: As of `Autoencoder`.
        latent: m, the size of z.
        classes: C, the number of classes.
        alpha: α, the weight of the classification term in training, in nats.
        **choices: Other settings of `Autoencoder`.

    Raises:
        ConfigError: There are fewer than two classes, α is negative, or the choices cannot be
            combined.

    References:
        Kingma, Rezende, Mohamed & Welling 2014, Semi-Supervised Learning with Deep Generative
            Models.

    >>> system = M2(4, latent=2, classes=3)
    >>> system.classify(torch.zeros(5, 4)).shape, system.q_z(torch.zeros(5, 4)).batch_shape
    (torch.Size([5]), torch.Size([5]))
    """

    def __init__(
        self,
        shape: int | tuple[int, ...],
        latent: int,
        classes: int,
        alpha: float = 0.0,
        **choices: Any,
    ) -> None:
        if classes < 2:
            raise ConfigError(f"M2 needs two or more classes, not {classes}")
        if alpha < 0:
            raise ConfigError(f"the weight of the classification is 0 or more, not {alpha}")
        super().__init__(shape, latent, condition=classes, **choices)
        if len(self.layers) > 1:
            raise ConfigError(f"M2 has one layer of z, not {self.layers}")
        self.alpha = alpha
        self.classifier = self.encoder_map.encoder(self.shape, classes)
        self.to(torch.get_default_dtype())

    def check_condition(self, c: Tensor | None) -> None:
        """Accept a missing condition; refuse others as an autoencoder does."""
        if c is not None:
            super().check_condition(c)

    def q_y(self, x: Tensor) -> TorchDistribution:
        """Return the probabilities q(y|x) of the classes.

        Args:
            x: Data, shape `[N, d]` or `[N, *shape]`.

        Returns:
            A one-hot distribution with batch shape `[N]` and event shape `[C]`.
        """
        return dist.OneHotCategorical(logits=self._log_q(self._encoded(x)))

    def q_z(self, x: Tensor, c: Tensor | None = None) -> TorchDistribution:
        """Return q(z|x, y), or the mixture Σ_y q(y|x) q(z|x, y) without y.

        Args:
            x: Data, shape `[N, d]` or `[N, *shape]`.
            c: One-hot classes, shape `[N, C]`, or None.

        Returns:
            A distribution with batch shape `[N]` and event shape `[m]`.
        """
        if c is not None:
            return super().q_z(x, c)
        return self._summed(self._encoded(x))

    def _summed(self, seen: Tensor) -> TorchDistribution:
        """Σ_y q(y|x) q(z|x, y) of data as the encoder sees them."""
        every = self._classes(seen)
        wide = seen.unsqueeze(-2).expand(*every.shape[:-1], -1)
        return _mixture(self._log_q(seen), self._posterior(wide, every))

    def p_x(self, z: Tensor, c: Tensor | None = None) -> TorchDistribution:
        """Return p(x|z, y), or the mixture Σ_y p(y) p(x|z, y) without y.

        Args:
            z: Latent features, shape `[..., m]`.
            c: One-hot classes, shape `[C]` or `[..., C]`, or None.

        Returns:
            A distribution with batch shape `[...]` and event shape `[d]`.
        """
        if c is not None:
            return super().p_x(z, c)
        every = self._classes(z)
        wide = z.unsqueeze(-2).expand(*every.shape[:-1], -1)
        return _mixture(every.new_zeros(every.shape[:-1]), super().p_x(wide, every))

    def model(
        self, x: Tensor | None = None, c: Tensor | None = None, *, size: int | None = None
    ) -> None:
        """Run the model as a Pyro program: the sites y, z and x, or z and x for x alone.

        A label is an observation of y, the factor `label`. In training mode the classification term
        is the factor `classification`. Where x is drawn, y is the label where there is one, with
        the factor `label` log p(y), and there is no classification term.

        Args:
            x: Data, shape `[N, d]` or `[N, *shape]`; None to draw x.
            c: One-hot labels, shape `[N, C]`, 0 where missing; None to sum over all y.
            size: N where x is drawn, by default the number of labels, or 1; of no use with x.

        Raises:
            DataError: x or c has another shape than the system takes, or `size` is not the number
                of data.
        """
        if c is None:
            super().model(x, size=size)
            return
        announce_parameters("autoencoder", self)
        x = None if x is None else self.flat(x)
        with pyro.plate("data", self._count(x, c, size)):
            logits = torch.zeros_like(c)
            if x is None:
                logits = IMPOSSIBLE * (c.sum(-1, keepdim=True) - c)
            y = pyro.sample("y", dist.OneHotCategorical(logits=logits))
            z = pyro.sample("z", self.p_z())
            p_x, values = self.of_observed(self.p_x(z, y), x)
            pyro.sample("x", p_x, obs=values)
            if x is None:
                pyro.factor("label", -math.log(self.condition) * c.sum(-1))
                return
            pyro.factor("label", IMPOSSIBLE * (c * (1 - y)).sum(-1))
            if self.training and self.alpha:
                log_q = self._log_q(self._encoded(x))
                pyro.factor("classification", self.alpha * (c * log_q).sum(-1))

    def guide(self, x: Tensor, c: Tensor | None = None) -> None:
        """Run the guide as a Pyro program: the sites y and z, or z for x alone.

        q(y|x) is a point mass at the label where there is one.

        Args:
            x: Data, shape `[N, d]` or `[N, *shape]`, which are corrupted in training mode.
            c: One-hot labels, shape `[N, C]`, 0 where missing; None to sum over all y.

        Raises:
            DataError: x or c has another shape or dtype than the system takes.
        """
        announce_parameters("autoencoder", self)
        self.check_condition(c)
        seen = self._encoded(x, corrupt=self.training)
        if c is None:
            with pyro.plate("data", len(x)):
                pyro.sample("z", self._summed(seen))
            return
        is_known = c.sum(-1, keepdim=True) > 0
        logits = torch.where(is_known, IMPOSSIBLE * (1 - c), self._log_q(seen))
        with pyro.plate("data", len(x)):
            q_y = dist.OneHotCategorical(logits=logits)
            y = pyro.sample("y", q_y, infer={"enumerate": "parallel"})
            pyro.sample("z", self._posterior(seen.expand(*y.shape[:-1], -1), y))

    @torch.no_grad()
    def codes(self, x: Tensor, c: Tensor | None = None) -> list[Tensor]:
        """Return the mean of q(z|x, y), or of the mixture without y.

        Args:
            x: Data, shape `[N, d]` or `[N, *shape]`.
            c: One-hot classes, shape `[N, C]`, or None.

        Returns:
            One tensor of shape `[N, m]`, as there is one layer of z.
        """
        return super().codes(x, c) if c is not None else [self.q_z(x).mean]

    @torch.no_grad()
    def classify(self, x: Tensor) -> Tensor:
        """Return the class of the largest q(y|x).

        Args:
            x: Data, shape `[N, d]` or `[N, *shape]`.

        Returns:
            The places of the classes, whole numbers, shape `[N]`.
        """
        return self._log_q(self._encoded(x)).argmax(-1)

    def reconstruct(self, x: Tensor, c: Tensor | None = None) -> Tensor:
        """Return the mean of p(x|z, y) at the mean of q(z|x, y), at the class y of `classify`.

        Args:
            x: Data, shape `[N, d]` or `[N, *shape]`, with finite values.
            c: One-hot classes, shape `[N, C]`; None, or 0 in a row, for those of `classify`.

        Returns:
            The reconstructions, shape `[N, d]`.
        """
        found = nn.functional.one_hot(self.classify(x), self.condition).to(self.zeros.dtype)
        y = found if c is None else torch.where(c.sum(-1, keepdim=True) > 0, c, found)
        return super().reconstruct(x, y)

    @torch.no_grad()
    def sample(self, num_samples: int, c: Tensor | None = None, *, noise: bool = False) -> Tensor:
        """Return the means of p(x|z, y), or draws of x, for z and y drawn from their priors.

        Args:
            num_samples: The number of draws of z.
            c: The classes: one for all, shape `[C]`, or one for each sample; None to draw them.
            noise: Whether to draw x instead of returning its mean.

        Returns:
            Samples, shape `[num_samples, d]`.
        """
        if c is None:
            zeros = self.zeros.new_zeros(num_samples, self.condition)
            c = dist.OneHotCategorical(logits=zeros).sample()
        return super().sample(num_samples, c, noise=noise)

    def linear_gaussian(self, c: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Return W, b(y) and σ of x|z, y; refuse a missing y, for which x is no Gaussian."""
        if c is None:
            raise UndefinedLikelihoodError(
                "closed forms need a linear-Gaussian system; M2 without classes is a mixture"
            )
        return super().linear_gaussian(c)

    def _log_q(self, x: Tensor) -> Tensor:
        """The log-probabilities q(y|x), shape `[N, C]`."""
        return cast(Tensor, self.classifier(x)).log_softmax(-1)

    def _posterior(self, x: Tensor, y: Tensor) -> TorchDistribution:
        """q(z|x, y) for x `[..., d]` and y `[..., C]`."""
        return self.hierarchy.first(x, self._at(y))

    def _classes(self, like: Tensor) -> Tensor:
        """Every class for each row of `[..., k]`, one-hot, shape `[..., C, C]`."""
        unit = torch.eye(self.condition, dtype=self.zeros.dtype, device=like.device)
        return unit.expand(*like.shape[:-1], -1, -1)


def _mixture(logits: Tensor, parts: TorchDistribution) -> TorchDistribution:
    """The mixture of distributions of batch shape `[..., C]`."""
    return dist.MixtureSameFamily(dist.Categorical(logits=logits), parts)


def correct_classes(
    system: nn.Module, x: Tensor, labels: np.ndarray | None, classes: tuple[str, ...]
) -> Tensor | None:
    """Return whether M2 finds the class of each labelled datum.

    Args:
        system: A system.
        x: Data, shape `[N, d]`.
        labels: Labels `[N]`, or None.
        classes: The class of each element of y.

    Returns:
        1 or 0 for each datum with a label among the classes, float64, on the CPU; None for another
        system, or without labels.
    """
    if not isinstance(system, M2) or labels is None or not classes:
        return None
    places = {name: place for place, name in enumerate(classes)}
    known = [places.get(label_text(label), -1) for label in labels.tolist()]
    wanted = torch.tensor(known)
    found = torch.cat([system.classify(part).cpu() for part in x.split(BLOCK)])
    return (found == wanted)[wanted >= 0].double()
