"""The scale of a likelihood: fixed, learned, from the decoder, or the optimal one."""

import math
from abc import abstractmethod
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn

from pyroae.errors import ConfigError
from pyroae.likelihoods.base import Likelihood

RATE = 0.1
"""The weight of the newest batch in the running mean of an optimal scale."""


SMALLEST = 0.01
"""The smallest start of a feature's scale, as a share of the spread of all features."""


class OptimalScale(nn.Module):
    """A scale that follows the training's error in closed form, with the optimizer left out.

        σᵖ ← (1 − r) σᵖ + r E,   E = σᵖ (1 − g/d)

    Here g is the gradient of the loss with respect to log σ. As −log p(x|z) is
    Σⱼ |xⱼ − μⱼ|ᵖ / (p σᵖ) + d log σ and a constant, E is the mean of |xⱼ − μⱼ|ᵖ over the features,
    the batch and all processes. Over particles it is the mean with the weights that the objective
    gives them: equal ones for the ELBO, the normalized importance weights for the importance
    weighted bound. The scale does not change within a step, nor outside a training by pyroae,
    and it is part of the state. An optimizer that the user steps, such as that of
    `pyro.infer.SVI`, learns log σ by its gradient, with the same optimum.

    Args:
        features: d, the number of features that share the scale.
        power: p; 2 for a Gaussian, 1 for a Laplace.

    References:
        Rybkin, Daniilidis & Levine 2021, Simple and Effective VAE Training with Calibrated
            Decoders.

    >>> OptimalScale(features=4, power=2).log_scale.item()
    0.0
    """

    def __init__(self, features: int, power: int) -> None:
        super().__init__()
        self.log_scale = nn.Parameter(torch.zeros(1))
        self.power, self.rate = power, RATE / features

    def group(self) -> dict[str, Any]:
        """Return the parameter group by which a training's optimizer knows the rule.

        Returns:
            The parameter, and under `closed_form` the pair (p, r/d).
        """
        return {"params": [self.log_scale], "closed_form": (self.power, self.rate)}


class LocationScale(Likelihood):
    """A density of (x − μ(z)) / σ for each feature, with one of several kinds of σ.

    A subclass is a frozen dataclass with the field `scale`: a number, which is σ itself, or a word:
    `learned`, one parameter; `feature`, a parameter per feature; `decoder`, a second output of the
    decoder per feature; `optimal`, the running mean of the training's error.

    Attributes:
        scale: The number or the word.
        words: The words that the subclass takes.
        power: The power of the error of which an optimal scale is the mean.
    """

    scale: float | str
    words: ClassVar[tuple[str, ...]] = ("learned", "feature", "decoder")
    power: ClassVar[int] = 2

    def __post_init__(self) -> None:
        name = type(self).__name__
        if isinstance(self.scale, str):
            if self.scale not in self.words:
                raise ConfigError(
                    f"the scale of a {name} likelihood is a number, or one of "
                    f"{', '.join(self.words)}, not {self.scale!r}"
                )
        elif not 0 < self.scale < math.inf:
            raise ConfigError(
                f"the scale of a {name} likelihood must be positive and finite, not {self.scale}"
            )

    @property
    def outputs(self) -> int:  # type: ignore[override]
        """The number of outputs of the decoder for each feature: two if σ is one of them."""
        return 2 if self.scale == "decoder" else 1

    def learned(self, features: int) -> nn.Module:
        """Return a module with log σ, shape `[1]` or `[d]`, if σ is learned or optimal."""
        if self.scale == "optimal":
            return OptimalScale(features, self.power)
        sizes = {"learned": 1, "feature": features}
        if isinstance(self.scale, str) and self.scale in sizes:
            return nn.ParameterDict({"log_scale": torch.zeros(sizes[self.scale])})
        return nn.ParameterDict()

    def location_and_scale(self, output: Tensor, learned: nn.Module) -> tuple[Tensor, Tensor]:
        """Split the decoder's output.

        Args:
            output: The decoder's output, shape `[..., outputs * d]`.
            learned: The module that `learned` returned.

        Returns:
            μ, shape `[..., d]`, and σ, which broadcasts with it.
        """
        if self.scale == "decoder":
            location, log_scale = output.chunk(2, -1)
            return location, log_scale.exp()
        return output, self.sigma(output, learned)

    def sigma(self, like: Tensor, learned: nn.Module) -> Tensor:
        """Return σ, where it does not depend on z.

        Args:
            like: A tensor that gives dtype and device.
            learned: The module that `learned` returned.

        Returns:
            σ, shape `[]`, or `[d]` with a parameter per feature.
        """
        if hasattr(learned, "log_scale"):
            sigma = cast(Tensor, learned.log_scale).exp()
            return sigma.squeeze(-1) if self.scale in ("learned", "optimal") else sigma
        return like.new_full((), cast(float, self.scale))

    @property
    def is_isotropic(self) -> bool:
        """Whether there is one σ for all features and all z."""
        return self.scale not in ("feature", "decoder")

    def check_missing(self) -> None:
        """Refuse an optimal scale: its rule counts all features of each datum."""
        if self.scale == "optimal":
            raise ConfigError(
                f"the optimal scale of a {type(self).__name__} likelihood is the mean error of all "
                "features: with missing values use scale=learned or scale=feature"
            )

    def bias(self, mean: Tensor) -> Tensor:
        """Return the mean itself, and log σ = 0 from a decoder, shape `[outputs * d]`."""
        return torch.cat([mean, *[torch.zeros_like(mean)] * (self.outputs - 1)])

    def start(self, learned: nn.Module, mean: Tensor, x: Tensor) -> Tensor:
        """Start a scale that is a word at the spread of the data about their mean.

        Args:
            learned: The module that `learned` returned, which is changed in place.
            mean: The mean of the data, shape `[d]`.
            x: Some of the data, shape `[n, d]`; the scale is unchanged where all equal the mean.

        Returns:
            The decoder's last bias, shape `[outputs * d]`.
        """
        bias = self.bias(mean)
        overall = self.spread((x - mean).reshape(-1, 1))
        if not isinstance(self.scale, str) or not bool(overall > 0):
            return bias
        each = self.spread(x - mean).clamp_min(SMALLEST * overall)
        if self.scale == "decoder":
            return torch.cat([mean, each.log()])
        with torch.no_grad():
            log_scale = each if self.scale == "feature" else overall
            cast(Tensor, learned.log_scale).copy_(log_scale.log())
        return bias

    @abstractmethod
    def spread(self, residual: Tensor) -> Tensor:
        """Return the scale of a sample of deviations.

        Args:
            residual: Deviations from the location, shape `[n, d]`.

        Returns:
            A scale for each column, shape `[d]`; 0 where all deviations are 0.
        """

    def check(self, x: Tensor, what: str) -> None:
        """Accept all data: every finite value has a density."""
