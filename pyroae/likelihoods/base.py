"""What every likelihood p(x|z) is: a distribution over x made of the decoder's output."""

from abc import ABC, abstractmethod

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from pyroae.errors import DataError
from pyroae.registry import Registry

LIKELIHOODS: "Registry[Likelihood]" = Registry("likelihood")
"""The table of likelihoods by name."""


class Likelihood(ABC):
    """A distribution over x given z.

    To add one, write a frozen dataclass with `distribution`, `bias` and `check`, and register it
    with `@LIKELIHOODS.register("name")`.

    Attributes:
        outputs: The number of outputs of the decoder for each feature, in the order
            `[outputs, d]`.
        is_unscaled: Whether data are counts or codes, which the command line leaves as stored:
            uint8 values are not mapped to [0, 1].
        has_bits: Whether x is discretized, so that −log₂ p(x) / d is reported in bits per
            dimension.

    >>> from pyroae.likelihoods import Normal
    >>> Normal().outputs
    1
    """

    outputs: int = 1
    is_unscaled: bool = False
    has_bits: bool = False

    def learned(self, features: int) -> nn.Module:
        """Return a new module with the likelihood's own parameters; empty by default.

        Args:
            features: d, the number of observed features.

        Returns:
            A module that the autoencoder registers and passes to `distribution`.

        >>> from pyroae.likelihoods import Normal
        >>> Normal(scale=1.0, learn=True).learned(features=4)["log_scale"].item()
        0.0
        """
        return nn.ParameterDict()

    @abstractmethod
    def distribution(self, output: Tensor, learned: nn.Module) -> dist.TorchDistribution:
        """Return the distribution p(x|z).

        Args:
            output: The decoder's output, shape `[..., outputs * d]`.
            learned: The module that `learned` returned.

        Returns:
            p(x|z), with batch shape `[...]` and event shape `[d]`.
        """

    @abstractmethod
    def bias(self, mean: Tensor) -> Tensor:
        """Return the decoder's last bias at which the mean of p(x|z) is the mean of the data.

        Args:
            mean: The mean of the data, shape `[d]`.

        Returns:
            The bias, shape `[outputs * d]`.

        >>> import torch
        >>> from pyroae.likelihoods import Bernoulli
        >>> Bernoulli().bias(torch.tensor([0.5]))
        tensor([0.])
        """

    def start(self, learned: nn.Module, mean: Tensor, x: Tensor) -> Tensor:
        """Set the learned parameters to their start for a data set; unchanged by default.

        Args:
            learned: The module that `learned` returned, which is changed in place.
            mean: The mean of the data, shape `[d]`.
            x: Some of the data, shape `[n, d]`.

        Returns:
            The decoder's last bias, shape `[outputs * d]`; by default `bias(mean)`.
        """
        return self.bias(mean)

    def layout(self, shape: tuple[int, ...]) -> tuple[tuple[int, ...], int]:
        """Return what the decoder is built for.

        Args:
            shape: The shape of one datum, with d features in all.

        Returns:
            The shape and the number of outputs per feature that `Map.decoder` takes; by default
                `shape` and `outputs`. A likelihood whose features need different numbers of
                outputs gives their total, as a shape with one output each.

        >>> from pyroae.likelihoods import Normal
        >>> Normal().layout((8, 8))
        ((8, 8), 1)
        """
        return shape, self.outputs

    @abstractmethod
    def check(self, x: Tensor, what: str) -> None:
        """Refuse data for which the likelihood has no density.

        Args:
            x: Data, shape `[N, d]`.
            what: A name of the data, for the message.

        Raises:
            DataError: The likelihood has no density at x; the message says what to do.
        """

    def check_columns(self, x: Tensor, what: str, first: int) -> None:
        """Refuse such data where they are some columns of a table; by default `check(x, what)`.

        Args:
            x: Some columns of the data, shape `[N, d]`.
            what: A name of the data, for the message.
            first: The number of their first column within the table.

        Raises:
            DataError: As `check`, with the column within the table.
        """
        self.check(x, what)

    def check_missing(self) -> None:  # noqa: B027
        """Refuse missing values where the likelihood is not a product over features.

        Raises:
            ConfigError: The likelihood needs all features of a datum; the message says why.
        """

    def point(self, p_x: dist.TorchDistribution) -> Tensor:
        """Return the x that stands for p(x|z) in a reconstruction: its mean.

        A likelihood of categories, whose codes have no mean, returns the most probable code.

        Args:
            p_x: What `distribution` returned.

        Returns:
            One x for each batch element, shape `[..., d]`.
        """
        return p_x.mean

    def codes(self, features: int) -> Tensor:
        """Return which features are codes of categories, which have no mean; none by default.

        Args:
            features: d, the number of observed features.

        Returns:
            Booleans, shape `[d]`.
        """
        return torch.zeros(features, dtype=torch.bool)

    def encoded(self, x: Tensor) -> Tensor:
        """Return x as the encoder sees it; unchanged by default.

        The guide q(z|x) is a function of this; p(x|z) remains the density of x itself.

        Args:
            x: Data, shape `[..., d]`.

        Returns:
            The encoder's input, shape `[..., d]`.
        """
        return x


def refuse_where(bad: Tensor, x: Tensor, what: str, first: int, reason: str) -> None:
    """Refuse data with a value that does not suit, and name its row and column.

    Args:
        bad: Whether each value does not suit, shape `[N, d]`.
        x: The data, shape `[N, d]`.
        what: A name of the data.
        first: The number of the first column.
        reason: What values must be, and what to do.

    Raises:
        DataError: If a value is bad; the message has the first one.
    """
    if bool(bad.any()):
        row, column = (int(i) for i in bad.nonzero()[0])
        raise DataError(
            f"{what} holds {x[row, column].item():g} at row {row}, column {first + column}: "
            f"{reason}"
        )
