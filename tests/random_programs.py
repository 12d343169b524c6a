"""Random Pyro programs, built from a description that prints; hypothesis draws and shrinks the
description.

A program has up to three latent sites and up to two observed ones, in a data plate, in a plate
nested in it, or in none. Arguments of a program: one tensor `[N, ...]` per observed site, a mask
`[N]`, a mask of the nested plate's elements `[N, J]`, a weight `[N]` and the indices of the data
`[N]`.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from hypothesis import strategies as st
from pyro import poutine
from pyro.distributions import transforms
from pyro.distributions.testing.rejection_gamma import ShapeAugmentedGamma
from torch import Tensor

Family = Callable[[Tensor, tuple[int, ...], Tensor], Any]
"""A distribution from a location `[batch]`, an event shape and an unconstrained parameter."""
FULL_SIZE = 7
"""Of a subsampled data plate."""
NESTED = 2
"""Elements of the nested plate."""


def _spread(loc: Tensor, event: tuple[int, ...]) -> Tensor:
    """A location of each element of an event."""
    offsets = 0.2 * torch.arange(math.prod(event), dtype=loc.dtype).reshape(event)
    return loc.reshape((*loc.shape, *[1] * len(event))) + offsets


def _elementwise(make: Callable[[Tensor, Tensor], Any]) -> Family:
    return lambda loc, event, free: make(_spread(loc, event), free.exp()).to_event(len(event))


def _mvn(loc: Tensor, event: tuple[int, ...], free: Tensor) -> Any:
    size = event[0]
    tril = 0.9 * free.exp() * torch.eye(size, dtype=loc.dtype) + 0.2 * torch.ones(
        size, size, dtype=loc.dtype
    ).tril(-1)
    return dist.MultivariateNormal(_spread(loc, event), scale_tril=tril)


def _flow(*parts: Any) -> Family:
    """A standard normal location through transforms that are made anew in each run."""

    def make(loc: Tensor, event: tuple[int, ...], free: Tensor) -> Any:
        base = dist.Normal(_spread(loc, event), free.exp()).to_event(len(event))
        return dist.TransformedDistribution(base, [part(event) for part in parts])

    return make


def _affine(event: tuple[int, ...]) -> Any:
    return transforms.AffineTransform(0.3, 1.4, event_dim=len(event))


def _planar(event: tuple[int, ...]) -> Any:
    return _seeded(lambda: transforms.Planar(event[0]))


def _spline(event: tuple[int, ...]) -> Any:
    return _seeded(lambda: transforms.Spline(event[0], count_bins=4, bound=3.0))


def _autoregressive(event: tuple[int, ...]) -> Any:
    return _seeded(lambda: transforms.affine_autoregressive(event[0], hidden_dims=[4]))


def _seeded(make: Callable[[], Any]) -> Any:
    """A transform with random weights, the same in every run, in double precision."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        return make().double()


def _mixture(loc: Tensor, event: tuple[int, ...], free: Tensor) -> Any:
    locs = torch.stack([_spread(loc, event) - 1, _spread(loc, event) + 1], loc.dim())
    parts = dist.Normal(locs, free.exp()).to_event(len(event))
    return dist.MixtureSameFamily(
        dist.Categorical(torch.full((*loc.shape, 2), 0.5, dtype=loc.dtype)), parts
    )


def _masked_mixture(loc: Tensor, event: tuple[int, ...], free: Tensor) -> Any:
    one, other = (
        dist.Normal(_spread(loc + d, event), free.exp()).to_event(len(event)) for d in (-1, 1)
    )
    return dist.MaskedMixture(loc > 0, one, other)


def _categorical(loc: Tensor, event: tuple[int, ...], free: Tensor) -> Any:
    return dist.Categorical(logits=_spread(loc + free, (3,)))


def _one_hot(loc: Tensor, event: tuple[int, ...], free: Tensor) -> Any:
    return dist.OneHotCategorical(logits=_spread(loc + free, (3,)))


def _dirichlet(loc: Tensor, event: tuple[int, ...], free: Tensor) -> Any:
    return dist.Dirichlet((_spread(0.3 * loc, event) + free).exp() + 1)


def _rejected(loc: Tensor, event: tuple[int, ...], free: Tensor) -> Any:
    rate = torch.ones_like(_spread(loc, event)) * free.exp()
    return ShapeAugmentedGamma((0.3 * _spread(loc, event)).exp() + 1, rate, boost=1).to_event(
        len(event)
    )


FAMILIES: dict[str, Family] = {
    "normal": _elementwise(dist.Normal),
    "laplace": _elementwise(dist.Laplace),
    "student": _elementwise(lambda loc, scale: dist.StudentT(5.0, loc, scale)),
    "mvn": _mvn,
    "affine flow": _flow(_affine),
    "planar flow": _flow(_planar),
    "spline flow": _flow(_spline),
    "autoregressive flow": _flow(_autoregressive),
    "mixture": _mixture,
    "masked mixture": _masked_mixture,
    "log-normal": _elementwise(dist.LogNormal),
    "gamma": _elementwise(lambda loc, rate: dist.Gamma((0.3 * loc).exp() + 1, rate)),
    "exponential": _elementwise(lambda loc, rate: dist.Exponential(rate * (0.3 * loc).exp())),
    "half-normal": _elementwise(lambda loc, scale: dist.HalfNormal(scale * (0.3 * loc).exp())),
    "rejection gamma": _rejected,
    "beta": _elementwise(lambda loc, scale: dist.Beta((0.3 * loc).exp() + 1, 1 + scale)),
    "uniform": _elementwise(
        lambda loc, scale: dist.Uniform(torch.zeros_like(loc), torch.ones_like(loc))
    ),
    "dirichlet": _dirichlet,
    "bernoulli": _elementwise(lambda loc, scale: dist.Bernoulli(logits=loc + scale)),
    "categorical": _categorical,
    "one-hot": _one_hot,
    "poisson": _elementwise(lambda loc, scale: dist.Poisson(scale * (0.3 * loc).exp())),
}
REAL = ("normal", "laplace", "student", "masked mixture", "mixture", "affine flow")
VECTOR = (*REAL, "mvn", "spline flow")
POSITIVE = ("log-normal", "gamma", "exponential", "half-normal")
KINDS: dict[str, tuple[tuple[str, ...], tuple[str, ...], tuple[tuple[int, ...], ...]]] = {
    "real": (REAL, (*REAL, "delta"), ((), (2, 2), (1,))),
    "vector": (VECTOR, (*VECTOR, "planar flow", "autoregressive flow", "delta"), ((2,), (3,))),
    "positive": (POSITIVE, (*POSITIVE, "rejection gamma"), ((), (2,), (2, 1))),
    "unit": (("beta", "uniform"), ("beta", "uniform"), ((), (2,))),
    "simplex": (("dirichlet",), ("dirichlet",), ((3,),)),
    "bits": (("bernoulli",), ("bernoulli",), ((), (2,))),
    "class": (("categorical",), ("categorical",), ((),)),
    "one-hot": (("one-hot",), ("one-hot",), ((3,),)),
    "count": (("poisson",), ("poisson",), ((), (2,))),
}
"""By kind of latent site: families of the prior, families of the guide, event shapes."""
OBSERVED: dict[str, tuple[tuple[int, ...], ...]] = {
    "normal": ((), (2,), (2, 2)),
    "mvn": ((2,),),
    "student": ((), (2,)),
    "gamma": ((), (2,)),
    "mixture": ((), (2,)),
    "affine flow": ((2,),),
    "log-normal": ((),),
    "bernoulli": ((), (2,)),
    "categorical": ((),),
    "one-hot": ((3,),),
    "poisson": ((), (2,)),
}
FIXED_NOISE = {
    "normal",
    "laplace",
    "student",
    "mvn",
    "affine flow",
    "planar flow",
    "spline flow",
    "autoregressive flow",
} | {
    "log-normal",
    "half-normal",
    "exponential",
    "uniform",
    "masked mixture",
    "delta",
}
"""Families of a guide whose draws are differentiable functions of their parameters at the same
random numbers.
"""
FINITE = {"bernoulli", "categorical", "one-hot"}
"""Families with few states."""


@dataclass(frozen=True)
class Latent:
    """prior, posterior: families in model and guide.

    parent: whether it depends on the sites before it, in each program.

    mask: none, "datum" `[N]`, "element" of the nested plate, "false", or "own", the distribution's.
    scale: in model and guide.
    """

    prior: str
    posterior: str
    event: tuple[int, ...] = ()
    parent: bool = False
    nested: bool = False
    mask: str = "none"
    scale: tuple[float, float] = (1.0, 1.0)


@dataclass(frozen=True)
class Observed:
    """missing: NaN in the data where the mask is False."""

    family: str
    event: tuple[int, ...] = ()
    nested: bool = False
    mask: str = "none"
    missing: bool = False
    scale: float = 1.0


@dataclass(frozen=True)
class Description:
    """plate: "data", "subsampled" or "none".

    nesting: the side of the nested plate. reverse: the guide's order of the sites.

    read: how a program reads vectors: "right" takes a particle dimension, others do not. common: a
    scale of everything, "none", "number" or "datum". shared: a latent site outside the data plate.
    """

    latents: tuple[Latent, ...]
    observed: tuple[Observed, ...]
    num_data: int = 3
    plate: str = "data"
    nesting: str = "none"
    reverse: bool = False
    read: str = "right"
    common: str = "none"
    model_factor: bool = False
    guide_factor: bool = False
    shared: bool = False
    seed: int = 0

    @property
    def has_fixed_noise(self) -> bool:
        """Whether the draws are differentiable functions of the parameters at the same random
        numbers.
        """
        return all(latent.posterior in FIXED_NOISE for latent in self.latents)

    @property
    def is_finite(self) -> bool:
        """Whether all latent sites have few states."""
        return all(latent.posterior in FINITE for latent in self.latents) and not self.shared

    @property
    def data_dim(self) -> int:
        """The dimension of the data plate."""
        return -2 if self.nesting == "right" else -1


class Programs:
    """Model, guide and arguments of a description.

    theta, phi: parameters of model and guide, leaves of autograd.
    """

    def __init__(self, description: Description) -> None:
        self.description = d = description
        generator = torch.Generator().manual_seed(d.seed)
        count = len(d.latents)
        self.theta, self.phi = (
            (
                0.3 * torch.randn(count + extra, generator=generator, dtype=torch.float64)
            ).requires_grad_()
            for extra in (3, 1)
        )
        self.args = self._data(generator)

    def model(self, *args: Tensor) -> None:
        """p(z) p(x|z)."""
        d = self.description
        with self._scaled(args, "number"):
            loc = self._shared_site(self.theta[-1])
        with self._scaled(args), self._plate(args):
            for i, latent in enumerate(d.latents):
                with self._around(args, latent.nested, latent.mask, latent.scale[0]):
                    start = self._batch(args, 0.3 * self.theta[i])
                    fn = FAMILIES[latent.prior](
                        start + loc * latent.parent, latent.event, 0.2 * self.theta[i]
                    )
                    value = pyro.sample(f"z{i}", self._masked(fn, args, latent.mask, latent.nested))
                loc = loc + 0.5 * self._read(args, value, latent)
            for i, observed in enumerate(d.observed):
                with self._around(args, observed.nested, observed.mask, observed.scale):
                    fn = FAMILIES[observed.family](
                        self._batch(args, 0.1 * self.theta[-3]) + loc,
                        observed.event,
                        self.theta[-2],
                    )
                    fn = self._masked(fn, args, observed.mask, observed.nested)
                    pyro.sample(f"x{i}", fn, obs=self._arranged(args[i], observed))
            if d.model_factor:
                pyro.factor("model term", 0.3 * (self._batch(args, self.theta[0]) + loc).cos())

    def guide(self, *args: Tensor) -> None:
        """q(z|x)."""
        d = self.description
        order = list(enumerate(d.latents))
        with self._scaled(args, "number"):
            loc = self._shared_site(self.phi[-1])
        with self._scaled(args), self._plate(args):
            features = self._features(args)
            for i, latent in reversed(order) if d.reverse else order:
                with self._around(args, latent.nested, latent.mask, latent.scale[1]):
                    start = (
                        self._batch(args, 0.4 * self.phi[i]) + 0.3 * features + loc * latent.parent
                    )
                    value = self._drawn(f"z{i}", latent, start, 0.3 * self.phi[i], args)
                loc = loc + 0.4 * self._read(args, value, latent)
            if d.guide_factor:
                term = 0.2 * (self._batch(args, self.phi[0]) + loc).sin()
                pyro.factor("guide term", term, has_rsample=d.has_fixed_noise)

    def _drawn(
        self, name: str, latent: Latent, loc: Tensor, free: Tensor, args: tuple[Tensor, ...]
    ) -> Tensor:
        if latent.posterior != "delta":
            fn = FAMILIES[latent.posterior](loc, latent.event, free)
            return pyro.sample(name, self._masked(fn, args, latent.mask, latent.nested))
        event = len(latent.event)
        base = dist.Normal(torch.zeros_like(_spread(loc, latent.event)), 1.0).to_event(event)
        noise = pyro.sample(
            f"{name} noise",
            self._masked(base, args, latent.mask, latent.nested),
            infer={"is_auxiliary": True},
        )
        value = _spread(loc, latent.event) + free.exp() * noise
        log_slope = -free * math.prod(latent.event)
        density = log_slope.expand(value.shape[: value.dim() - event])
        fn = dist.Delta(value, log_density=density, event_dim=event)
        return pyro.sample(name, self._masked(fn, args, latent.mask, latent.nested))

    def _shared_site(self, free: Tensor) -> Tensor:
        if not self.description.shared:
            return free.new_zeros(())
        value = pyro.sample("shared", dist.Normal(free, 1.0))
        return 0.5 * torch.tanh(value)

    def _batch(self, args: tuple[Tensor, ...], number: Tensor) -> Tensor:
        """A number of each datum, in the shape that the data plate has."""
        d = self.description
        if d.plate == "none":
            return number
        shape = (len(args[0]), 1) if d.nesting == "right" else (len(args[0]),)
        return number.expand(shape)

    def _per_datum(self, values: Tensor) -> Tensor:
        """`[N]` where the dimension of the data is."""
        return values[:, None] if self.description.nesting == "right" else values

    def _features(self, args: tuple[Tensor, ...]) -> Tensor:
        """A number of each datum that says what is observed: `[N]`, 0 where it is missing."""
        d = self.description
        x = torch.nan_to_num(args[0].to(torch.float64))
        if d.plate == "none":
            return torch.tanh(x.mean())
        return self._per_datum(torch.tanh(x.reshape(len(x), -1).mean(-1)))

    def _read(self, args: tuple[Tensor, ...], value: Tensor, latent: Latent) -> Tensor:
        """A number of each datum that says what a site's value is."""
        d, event = self.description, len(latent.event) if latent.prior != "one-hot" else 1
        value = value.to(torch.float64)
        if d.read != "right" and d.plate != "none" and d.nesting == "none" and event:
            read = {
                "first": lambda: value[:, 0],
                "mean": lambda: value.mean(1),
                "reshape": lambda: value.reshape(len(args[0]), -1)[..., 0],
                "concatenate": lambda: (
                    torch.cat([value, self._features(args).reshape(-1, *[1] * event)], 1)[:, 0]
                    if event == 1
                    else value[:, 0]
                ),
            }[d.read]()
            while read.dim() > 1:
                read = read[..., 0]
            return torch.tanh(read)
        if event:
            value = value.flatten(-event)[..., 0] + 0.1 * value.flatten(-event).sum(-1)
        if latent.nested:
            value = value.mean(-1 if d.nesting == "right" else -2, keepdim=True)
            if d.nesting == "left" and value.dim() == 2:
                value = value[0]
        return torch.tanh(value)

    def _arranged(self, x: Tensor, observed: Observed) -> Tensor:
        """Observations `[N, (J,) ...]` in the shape that their plates have."""
        nesting = self.description.nesting
        if self.description.plate == "none":
            return x[0]
        if nesting == "right" and not observed.nested:
            return x[:, None]
        return x.movedim(0, 1) if nesting == "left" and observed.nested else x

    @contextmanager
    def _scaled(self, args: tuple[Tensor, ...], *kinds: str) -> Iterator[None]:
        common = self.description.common
        if common == "none" or (kinds and common not in kinds):
            yield
        else:
            with poutine.scale(scale=0.7 if common == "number" else self._per_datum(args[-2])):
                yield

    @contextmanager
    def _plate(self, args: tuple[Tensor, ...]) -> Iterator[None]:
        d = self.description
        if d.nesting != "none":
            self._nested = pyro.plate("nested", NESTED, dim=-1 if d.nesting == "right" else -2)
        if d.plate == "none":
            yield
        elif d.plate == "subsampled":
            with pyro.plate("data", FULL_SIZE, subsample=args[-1], dim=d.data_dim):
                yield
        else:
            with pyro.plate("data", len(args[0]), dim=d.data_dim):
                yield

    @contextmanager
    def _around(
        self, args: tuple[Tensor, ...], nested: bool, mask: str, scale: float
    ) -> Iterator[None]:
        """The nested plate, the mask and the scale of a site."""
        with ExitStack() as stack:
            if nested:
                stack.enter_context(self._nested)
            if mask == "false":
                stack.enter_context(poutine.mask(mask=False))
            elif mask in ("datum", "element"):
                stack.enter_context(poutine.mask(mask=self._mask(args, mask, nested)))
            if scale != 1:
                stack.enter_context(poutine.scale(scale=scale))
            yield

    def _mask(self, args: tuple[Tensor, ...], mask: str, nested: bool) -> Tensor:
        if mask == "element" and nested:
            return args[-3] if self.description.nesting == "right" else args[-3].mT
        return args[-4][0] if self.description.plate == "none" else self._per_datum(args[-4])

    def _masked(self, fn: Any, args: tuple[Tensor, ...], mask: str, nested: bool) -> Any:
        return fn.mask(self._mask(args, "datum", nested)) if mask == "own" else fn

    def _data(self, generator: torch.Generator) -> tuple[Tensor, ...]:
        d = self.description
        mask = torch.rand(d.num_data, generator=generator) < 0.6
        elements = torch.rand(d.num_data, NESTED, generator=generator) < 0.6
        columns = []
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(d.seed)
            for observed in d.observed:
                shape = (d.num_data, NESTED) if observed.nested else (d.num_data,)
                loc = torch.randn(shape, dtype=torch.float64)
                x = FAMILIES[observed.family](
                    loc, observed.event, torch.zeros((), dtype=torch.float64)
                ).sample()
                if observed.missing:
                    there = elements if observed.mask == "element" and observed.nested else mask
                    there = there.reshape(*there.shape, *[1] * (x.dim() - there.dim()))
                    x = torch.where(there, x.to(torch.float64), math.nan)
                columns.append(x)
            index = torch.randperm(FULL_SIZE)[: d.num_data]
        weight = 0.5 + torch.rand(d.num_data, generator=generator, dtype=torch.float64)
        return (*columns, mask, elements, weight, index)


@st.composite
def latents(draw: st.DrawFn, nesting: str, kinds: tuple[str, ...] = tuple(KINDS)) -> Latent:
    """One latent site."""
    priors, posteriors, events = KINDS[draw(st.sampled_from(kinds))]
    nested = nesting != "none" and draw(st.booleans())
    masks = ["none", "none", "none", "datum", "own", "false", *(["element"] if nested else [])]
    scales = st.sampled_from([*[(1.0, 1.0)] * 9, (0.5, 0.5), (0.5, 1.0), (2.0, 0.25)])
    return Latent(
        draw(st.sampled_from(priors)),
        draw(st.sampled_from(posteriors)),
        draw(st.sampled_from(events)),
        draw(st.booleans()),
        nested,
        draw(st.sampled_from(masks)),
        draw(scales),
    )


@st.composite
def observations(draw: st.DrawFn, nesting: str) -> Observed:
    """One observed site."""
    family = draw(st.sampled_from(sorted(OBSERVED)))
    nested = nesting != "none" and draw(st.booleans())
    masks = ["none", "none", "datum", "own", "false", *(["element"] if nested else [])]
    mask = draw(st.sampled_from(masks))
    missing = mask in ("datum", "element") and draw(st.booleans())
    return Observed(
        family,
        draw(st.sampled_from(OBSERVED[family])),
        nested,
        mask,
        missing,
        draw(st.sampled_from([1.0, 1.0, 1.0, 0.5])),
    )


@st.composite
def descriptions(
    draw: st.DrawFn, kinds: tuple[str, ...] = tuple(KINDS), plain: bool = False
) -> Description:
    """Any program.

    plain: one whose data have a log p(x) each, by a sum over the states of its latent sites.
    """
    if plain:
        found = draw(descriptions(kinds))
        latents_of = tuple(
            replace(latent, nested=False, mask="none", scale=(1.0, 1.0))
            for latent in found.latents[:2]
        )
        observed = tuple(
            replace(site, nested=False, mask="none", missing=False, scale=1.0)
            for site in found.observed
        )
        found = replace(
            found, latents=latents_of, observed=observed, plate="data", nesting="none", read="right"
        )
        return replace(
            found, shared=False, guide_factor=False
        )  # with a factor the guide is no density
    plate = draw(st.sampled_from(["data", "data", "data", "subsampled", "none"]))
    nesting = (
        draw(st.sampled_from(["none", "none", "left", "right"])) if plate != "none" else "none"
    )
    return Description(
        tuple(draw(st.lists(latents(nesting, kinds), min_size=1, max_size=3))),
        tuple(draw(st.lists(observations(nesting), min_size=1, max_size=2))),
        draw(st.integers(1, 3)) if plate != "none" else 1,
        plate,
        nesting,
        draw(st.booleans()),
        draw(
            st.sampled_from(["right", "right", "right", "first", "mean", "reshape", "concatenate"])
        ),
        draw(st.sampled_from(["none", "none", "none", "number", "datum"]))
        if plate != "none"
        else "none",
        draw(st.booleans()),
        draw(st.booleans()),
        draw(st.integers(0, 4)) == 4,
        draw(st.integers(0, 1000)),
    )
