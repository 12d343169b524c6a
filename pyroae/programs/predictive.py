"""What a program gives for each datum: its observed sites at draws of z, and means of z."""

from typing import Any

import torch
from pyro import poutine
from pyro.poutine.util import site_is_subsample
from torch import Tensor

from pyroae.errors import BrokenProgramError, ProgramError, PyroaeError
from pyroae.programs.context import evaluating
from pyroae.programs.sites import Program


def predicted(
    model: Program,
    guide: Program | None,
    args: tuple[Tensor, ...],
    *,
    noise: bool = False,
) -> dict[str, Tensor]:
    """Draw z, and return what the model gives for its observed sites.

        z ~ p(z), or z ~ q(z|x) where there is a guide;   E[x|z], or with noise x ~ p(x|z)

    Args:
        model: The Pyro program p(z) p(x|z).
        guide: The Pyro program q(z|x), for reconstructions; None for draws from the prior.
        args: The arguments of both, tensors `[N, ...]`. Without a guide, of what is observed only
            the number of data matters; covariates are used.
        noise: Whether to return draws of x, not means.

    Returns:
        By observed site a tensor `[N, ...]`: means of p(x|z), draws where it has no mean.

    Raises:
        ProgramError: If nothing is observed, or a site has no value for each datum.

    >>> from pyroae import zoo
    >>> system = zoo.ppca(4, latent=2)
    >>> predicted(system.model, None, (torch.zeros(3, 4),))["x"].shape
    torch.Size([3, 4])
    """
    with evaluating(*(p for p in (model, guide) if p is not None)):
        program = poutine.uncondition(model)
        if guide is not None:
            program = poutine.replay(program, _traced("guide", guide, args))
        trace = _traced("model, its observed sites drawn,", program, args)
    sites = {
        name: site
        for name, site in trace.nodes.items()
        if site["type"] == "sample" and site["infer"].get("was_observed")
    }
    found = {name: site["value"] if noise else _mean(site) for name, site in sites.items()}
    for name, value in found.items():
        _check_rows(name, value, args)
    if not found:
        raise ProgramError("the program observes nothing: it has no data to be drawn")
    return found


def encoded(guide: Program, args: tuple[Tensor, ...], num_draws: int = 100) -> Tensor:
    """Return means of the latent sites of each datum, over draws of the guide.

        E_q[z_n|x_n] ≈ (1/S) Σ_s z_n^s,   z^s ~ q(z|x)

    Sites that all data share, and auxiliary draws of an autoguide, are left out.

    Args:
        guide: The Pyro program q(z|x).
        args: Its arguments, tensors `[N, ...]`.
        num_draws: S, the draws.

    Returns:
        `[N, M]`, the M elements of all sites side by side, in the guide's order.

    Raises:
        ProgramError: If no latent site has a value for each datum.

    >>> from pyroae import zoo
    >>> encoded(zoo.ppca(4, latent=2).guide, (torch.zeros(3, 4),)).shape
    torch.Size([3, 2])
    """
    total: Tensor | float = 0.0
    with evaluating(guide):
        for _ in range(num_draws):
            trace = _traced("guide", guide, args)
            values = {
                name: site["value"]
                for name, site in trace.nodes.items()
                if _is_latent(site) and site["value"].shape[:1] == args[0].shape[:1]
            }
            if not values:
                raise ProgramError(
                    f"the guide has no latent site with a value for each of {len(args[0])} data"
                )
            rows = [value.reshape(len(args[0]), -1).double() for value in values.values()]
            total = total + torch.cat(rows, 1)
    assert isinstance(total, Tensor)
    return total / num_draws


def _is_latent(site: dict[str, Any]) -> bool:
    """Whether a site of a guide is a latent site of the model."""
    return (
        site["type"] == "sample"
        and not site["is_observed"]
        and not site["infer"].get("is_auxiliary")
        and not site_is_subsample(site)
    )


def _traced(what: str, program: Program, args: tuple[Tensor, ...]) -> poutine.Trace:
    try:
        return poutine.trace(program).get_trace(*args)
    except PyroaeError:
        raise
    except Exception as error:  # whatever the user's program raises
        words = " ".join(str(error).split())
        raise BrokenProgramError(f"the {what} fails: {type(error).__name__}: {words}") from error


def _check_rows(name: str, value: Tensor, args: tuple[Tensor, ...]) -> None:
    if value.shape[:1] != args[0].shape[:1]:
        raise ProgramError(
            f"the site '{name}' has the shape {tuple(value.shape)}: it has no value for each of "
            f"{len(args[0])} data"
        )


def _mean(site: dict[str, object]) -> Tensor:
    value = site["value"]
    assert isinstance(value, Tensor)
    try:
        mean = site["fn"].mean  # type: ignore[attr-defined]
    except (NotImplementedError, AttributeError):
        return value
    return torch.where(mean.isfinite(), mean.expand(value.shape), value.to(mean.dtype))
