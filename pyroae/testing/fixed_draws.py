"""Distributions of the toys' guides, whose draws may be fixed by noise."""

from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.nn.functional import one_hot

from pyroae.testing.toy_program import ToyProgram


class FixedNormal(dist.Normal):
    """A Normal whose standardized draws are the last features of a toy's noise, if it has noise.

    Args:
        loc: The mean, shape `[..., D]`.
        scale: The standard deviation, of the same shape.
        toy: The toy.
    """

    def __init__(self, loc: Tensor, scale: Tensor, toy: ToyProgram) -> None:
        self.toy = toy
        super().__init__(loc, scale)

    def expand(self, batch_shape: Any, _instance: Any = None) -> "FixedNormal":
        """Return the distribution with another batch shape."""
        return FixedNormal(self.loc.expand(batch_shape), self.scale.expand(batch_shape), self.toy)

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        """Return the draw of the noise, or a random one."""
        noise = self.toy.fixed(self.loc.shape[:-1])
        if noise is None:
            return super().rsample(torch.Size(sample_shape))
        return self.loc + self.scale * noise[..., -self.loc.shape[-1] :]


def bits(logits: Tensor, toy: ToyProgram) -> dist.Bernoulli:
    """Return a Bernoulli whose draws are fixed by the first numbers of a toy's noise, if any.

    Args:
        logits: The logits, shape `[..., D]`.
        toy: The toy.

    Returns:
        The distribution of D bits.
    """
    return dist.Bernoulli(logits=logits) if toy.noise is None else _FixedBits(logits, toy)


def category(logits: Tensor, toy: ToyProgram, first: int = 0) -> dist.OneHotCategorical:
    """Return a one-hot category whose draws are fixed by numbers of a toy's noise, if any.

    Args:
        logits: The logits, shape `[..., C]`.
        toy: The toy.
        first: The first of the C numbers.

    Returns:
        The distribution of one of C categories.
    """
    if toy.noise is None:
        return dist.OneHotCategorical(logits=logits)
    return _FixedCategory(logits, toy, first)


class _FixedBits(dist.Bernoulli):
    """Bits that are the signs of a toy's noise."""

    def __init__(self, logits: Tensor, toy: ToyProgram) -> None:
        self.toy = toy
        super().__init__(logits=logits)

    def expand(self, batch_shape: Any, _instance: Any = None) -> "_FixedBits":
        return _FixedBits(self.logits.expand(batch_shape), self.toy)

    def sample(self, sample_shape: Any = ()) -> Tensor:
        noise = self.toy.fixed(self.logits.shape[:-1])
        if noise is None:
            return super().sample(torch.Size(sample_shape))
        return (noise[..., : self.logits.shape[-1]] > 0).to(noise)


class _FixedCategory(dist.OneHotCategorical):
    """A category that is the largest of numbers of a toy's noise."""

    def __init__(self, logits: Tensor, toy: ToyProgram, first: int) -> None:
        self.toy, self.first = toy, first
        super().__init__(logits=logits)

    def expand(self, batch_shape: Any, _instance: Any = None) -> "_FixedCategory":
        shape = (*batch_shape, self.logits.shape[-1])
        return _FixedCategory(self.logits.expand(shape), self.toy, self.first)

    def sample(self, sample_shape: Any = ()) -> Tensor:
        noise = self.toy.fixed(self.logits.shape[:-1])
        if noise is None:
            return super().sample(torch.Size(sample_shape))
        return largest(noise[..., self.first : self.first + self.logits.shape[-1]])


def largest(noise: Tensor) -> Tensor:
    """Return the one-hot vector of the largest number.

    Args:
        noise: Numbers, shape `[..., C]`.

    Returns:
        One-hot vectors of the same shape.

    >>> largest(torch.tensor([0.5, 2.0]))
    tensor([0., 1.])
    """
    return one_hot(noise.argmax(-1), noise.shape[-1]).to(noise)


def log_categorical(logits: Tensor, value: Tensor) -> Tensor:
    """Return the log-probability of one-hot vectors.

    Args:
        logits: The logits, shape `[..., C]`.
        value: One-hot vectors, shape `[..., C]`.

    Returns:
        The log-probabilities, in nats, shape `[...]`.
    """
    return (logits.log_softmax(-1) * value).sum(-1)
