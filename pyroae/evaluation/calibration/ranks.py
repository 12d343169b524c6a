"""The rank of the true latent values among draws of q, as p-values that are uniform at best."""

import math

import torch
from torch import Tensor

from pyroae.errors import DataError, ProgramError
from pyroae.programs.masks import mask_of
from pyroae.programs.paired_traces import Traces, log_density
from pyroae.programs.particles import has_particles
from pyroae.programs.sites import Site

DENSITIES = ("log p(z)", "log p(x|z)", "log p(x, z)")
"""Names of the test quantities that depend on all latents and on the data."""


def p_values(
    truth: Tensor, draws: Tensor, uniform: Tensor, weights: Tensor | None = None, slack: float = 0.0
) -> Tensor:
    """Return the randomized rank of true values among draws, in (0, 1).

        p = (Σ_l 1[z_l < z*] + u (1 + Σ_l 1[z_l = z*])) / (L + 1),   u ~ U(0, 1)

    It is uniform, for any L and with ties, where z* and the draws are exchangeable. With weights ŵ
    that sum to 1 the draws count as ESS = 1/Σ ŵ² many:

        p = (ESS Σ_l ŵ_l 1[z_l < z*] + u (1 + ESS Σ_l ŵ_l 1[z_l = z*])) / (ESS + 1)

    which is the same for equal weights, and tends to P(z ≤ z* | x) as L → ∞.

    Args:
        truth: z*, `[N, ...]`.
        draws: `[L, N, ...]`.
        uniform: u, `[N, ...]`.
        weights: ŵ, `[L, N]`; None for equal weights.
        slack: The difference, relative to |z*| or 1, up to which values count as equal.

    Returns:
        The p-values, `[N, ...]`, float64.

    >>> draws, u = torch.tensor([[0.0], [1.0], [2.0]]), torch.tensor([0.5])
    >>> p_values(torch.tensor([1.5]), draws, u).tolist()  # above two of three
    [0.625]
    >>> p_values(torch.tensor([1.5]), draws, u, torch.tensor([[0.0], [0.0], [1.0]])).tolist()
    [0.25]
    """
    width = slack * truth.abs().clamp(min=1)
    below, equal = draws < truth - width, (draws - truth).abs() <= width
    if weights is None:
        count = len(draws)
        low, same = below.sum(0).double(), equal.sum(0).double()
    else:
        shape = (*weights.shape, *[1] * (draws.dim() - 2))
        w = weights.double().reshape(shape)
        count = 1 / w.square().sum(0)
        low, same = (count * (w * part).sum(0) for part in (below, equal))
    return (low + uniform.double() * (1 + same)) / (count + 1)


def normalized(log_weights: Tensor) -> Tensor:
    """Return self-normalized importance weights.

    Args:
        log_weights: `[L, N]`, in nats.

    Returns:
        Weights `[L, N]` that sum to 1 over the draws, float64.

    Raises:
        DataError: Where the weights of a simulated datum are all zero, or not a number.
    """
    weights = log_weights.double().softmax(0)
    bad = (~weights.isfinite().all(0)).nonzero().flatten().tolist()
    if bad:
        raise DataError(
            f"the importance weights of {len(bad)} simulated data are all zero or not a number: "
            "the guide cannot be corrected by them; use draws=guide"
        )
    return weights


def latent_values(traces: Traces, name: str) -> Tensor:
    """Return the draws of a latent site of the guide or model, datum by datum.

    Args:
        traces: A run of model and guide with K particles and N data.
        name: A latent site of the model.

    Returns:
        Values `[K, N, ...]` with the dimensions of nested plates and of the event; N is 1 for a
        site outside the data plate.

    Raises:
        ProgramError: For a draw that is not finite.
    """
    site = traces.model.nodes[name]
    value = _by_datum(traces, site, site["value"])
    if not bool(value.isfinite().all()):
        raise ProgramError(f"the guide draws values of the site '{name}' that are not finite")
    return value


def is_masked(traces: Traces, name: str) -> Tensor | None:
    """Return which elements of a latent site a mask leaves out.

    Args:
        traces: A run of model and guide.
        name: A latent site of the model.

    Returns:
        `[1 or K, N, ...]` like its values, True where masked; None without a mask.
    """
    site = traces.model.nodes[name]
    mask = mask_of(name, site)
    if mask is None:
        return None
    value = site["value"]
    mask = mask.reshape(*mask.shape, *[1] * (value.dim() - mask.dim())).expand(value.shape)
    return ~_by_datum(traces, site, mask)


def _by_datum(traces: Traces, site: Site, value: Tensor) -> Tensor:
    batch = len(site["fn"].batch_shape)
    plate = traces.plate if traces.is_local(site) else None
    value = value.unsqueeze(0) if plate is None else value.movedim(batch + plate.dim, 0)
    many = traces.num_particles > 1 and has_particles(site)
    return value.movedim(1, 0) if many else value.unsqueeze(0)


def densities(traces: Traces) -> Tensor:
    """Return log p(z), log p(x|z) and log p(x, z) at the values of a run.

    Ranks of quantities of x and z together find what ranks of single latents cannot, such as a q
    that is the prior for any x (Modrák et al. 2023).

    Args:
        traces: A run of model and guide with K particles and N data.

    Returns:
        `[K, N, 3]`, in nats.
    """
    parts = []
    for observed in (False, True):
        terms = [
            traces.reduce(site, log_density(name, site))
            for name, site in traces.sites(traces.model, observed=observed)
            if traces.is_local(site)
        ]
        parts.append(sum(terms[1:], terms[0]) if terms else torch.zeros(()))
    prior, likelihood = torch.broadcast_tensors(*parts)
    return torch.stack([prior, likelihood, prior + likelihood], -1)


def element_names(site: str, shape: tuple[int, ...]) -> list[str]:
    """Name the elements of a site.

    Args:
        site: The name of the site.
        shape: The shape of its value for one datum.

    Returns:
        A name for each element, in the order of `flatten`.

    >>> element_names("z", (2,)), element_names("s", ())
    (['z[0]', 'z[1]'], ['s'])
    """
    if not shape:
        return [site]
    indices = [torch.unravel_index(torch.tensor(i), shape) for i in range(math.prod(shape))]
    return [f"{site}[{','.join(str(int(k)) for k in index)}]" for index in indices]
