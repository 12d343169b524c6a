"""Random linear-Gaussian programs with everything in closed form: the joint Gaussian of z and x is
written out.

z_0 ~ N(m_0, s_0²), z_1 ~ N(m_1 + a mean(z_0), s_1²), x_i ~ N(w_i · z + b_i, σ_i²); some x are
missing, under a mask. The guide is a diagonal Gaussian at 0.3 x̄ + c, in either order of the sites.
"""

from dataclasses import dataclass

import pyro
import pyro.distributions as dist
import torch
from hypothesis import strategies as st
from pyro import poutine
from torch import Tensor
from torch.distributions import MultivariateNormal


@dataclass(frozen=True)
class Gaussian:
    """sizes: of one or two latent sites.

    features: of two observed sites. missing: whether the second is for some data.

    scale: of everything, in model and guide. vector: whether the sites of one element have an event
    dimension.
    """

    sizes: tuple[int, ...]
    features: tuple[int, int]
    num_data: int
    reverse: bool
    missing: bool
    scale: float
    vector: bool
    seed: int


class GaussianPrograms:
    """Model, guide and arguments `(x_0 [N, d_0], x_1 [N, d_1], there [N])`; the second row of a
    mask is always False.
    """

    def __init__(self, description: Gaussian) -> None:
        self.description = d = description
        generator = torch.Generator().manual_seed(d.seed)

        def normal(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator, dtype=torch.float64)

        count = sum(d.sizes)
        self.shifts, self.chain = [normal(size) for size in d.sizes], 0.7
        self.widths = [0.8, 0.6][: len(d.sizes)]
        self.weights, self.biases, self.noises = (
            [normal(size, count) for size in d.features],
            [0.2, -0.3],
            [0.7, 0.9],
        )
        self.centres = [0.3 * normal(size) for size in d.sizes]
        self.args = (
            *(normal(d.num_data, size) for size in d.features),
            torch.rand(d.num_data, generator=generator) < 0.6,
        )
        self.args[2][1:2] = False
        if not d.missing:
            self.args[2][:] = True
        self.args[1][~self.args[2]] = torch.nan

    def model(self, x: Tensor, y: Tensor, there: Tensor) -> None:
        """p(z) p(x|z)."""
        with poutine.scale(scale=self.description.scale), pyro.plate("data", len(x)):
            loc, values = torch.zeros(len(x), 1, dtype=torch.float64), []
            for i, (shift, width) in enumerate(zip(self.shifts, self.widths, strict=True)):
                values.append(self._draw(f"z{i}", loc + shift, width))
                loc = self.chain * values[-1].mean(-1, keepdim=True)
            z = torch.cat(values, -1)
            for i, (observed, mask) in enumerate([(x, torch.ones_like(there)), (y, there)]):
                with poutine.mask(mask=mask):
                    fn = dist.Normal(
                        z @ self.weights[i].T + self.biases[i], self.noises[i]
                    ).to_event(1)
                    pyro.sample(f"x{i}", fn, obs=observed)

    def guide(self, x: Tensor, y: Tensor, there: Tensor) -> None:
        """q(z|x), of sites that do not depend on one another."""
        with poutine.scale(scale=self.description.scale), pyro.plate("data", len(x)):
            sites = list(enumerate(self.q_locs(x)))
            for i, loc in reversed(sites) if self.description.reverse else sites:
                self._draw(f"z{i}", loc, self.widths[i])

    def q_locs(self, x: Tensor) -> list[Tensor]:
        """The means of the guide's sites."""
        return [0.3 * x.mean(-1, keepdim=True) + centre for centre in self.centres]

    def _draw(self, name: str, loc: Tensor, width: float) -> Tensor:
        if loc.shape[-1] == 1 and not self.description.vector:
            return pyro.sample(name, dist.Normal(loc[..., 0], width))[..., None]
        return pyro.sample(name, dist.Normal(loc, width).to_event(1))

    def q(self) -> MultivariateNormal:
        """The guide as one Gaussian of all z, batch `[N]`."""
        widths = [
            torch.full((size,), width, dtype=torch.float64)
            for size, width in zip(self._sizes, self.widths, strict=True)
        ]
        return MultivariateNormal(
            torch.cat(self.q_locs(self.args[0]), -1), scale_tril=torch.cat(widths).diag()
        )

    def prior(self) -> MultivariateNormal:
        """p(z)."""
        mean, covariance = self._joint()
        count = sum(self._sizes)
        return MultivariateNormal(mean[:count], covariance[:count, :count])

    def exact(self) -> tuple[Tensor, list[MultivariateNormal]]:
        """log p(x_n) `[N]`, and the posterior of each datum."""
        mean, covariance = self._joint()
        count, found, posteriors = sum(self._sizes), [], []
        for x, y, there in zip(*self.args, strict=True):
            seen = torch.cat([x, y]) if there else x
            at = list(range(count, count + len(seen)))
            of_x = covariance[at][:, at]
            found.append(MultivariateNormal(mean[at], of_x).log_prob(seen))
            gain = torch.linalg.solve(of_x, covariance[at][:, :count]).T
            loc = mean[:count] + gain @ (seen - mean[at])
            posteriors.append(
                MultivariateNormal(
                    loc, covariance[:count, :count] - gain @ covariance[at][:, :count]
                )
            )
        return torch.stack(found), posteriors

    @property
    def _sizes(self) -> tuple[int, ...]:
        return self.description.sizes

    def _joint(self) -> tuple[Tensor, Tensor]:
        """Mean and covariance of (z, x, y): they are linear in standard normal noise, of which unit
        vectors are tried.
        """
        size = sum(self._sizes) + sum(self.description.features)
        mean = self._linear(torch.zeros(size, dtype=torch.float64))
        slopes = torch.stack(
            [self._linear(unit) - mean for unit in torch.eye(size, dtype=torch.float64)], 1
        )
        return mean, slopes @ slopes.T

    def _linear(self, noise: Tensor) -> Tensor:
        *of_z, of_x, of_y = noise.split([*self._sizes, *self.description.features])
        values, loc = [], torch.zeros((), dtype=torch.float64)
        for shift, width, each in zip(self.shifts, self.widths, of_z, strict=True):
            values.append(loc + shift + width * each)
            loc = self.chain * values[-1].mean()
        z = torch.cat(values)
        parts = zip(self.weights, self.biases, self.noises, (of_x, of_y), strict=True)
        return torch.cat(
            [z, *(weight @ z + bias + scale * each for weight, bias, scale, each in parts)]
        )


gaussians = st.builds(
    Gaussian,
    st.sampled_from([(1,), (2,), (1, 1), (2, 1), (1, 2)]),
    st.sampled_from([(1, 1), (2, 3), (3, 1)]),
    st.integers(2, 4),
    st.booleans(),
    st.booleans(),
    st.sampled_from([1.0, 0.5]),
    st.booleans(),
    st.integers(0, 1000),
)
