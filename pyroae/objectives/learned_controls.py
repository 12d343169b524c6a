"""Control variates that are learned: their parameters, and the network of RELAX."""

import torch
from torch import Tensor, nn

from pyroae.errors import ProgramError
from pyroae.programs.discrete_variables import DiscreteSite
from pyroae.programs.paired_traces import Traces
from pyroae.programs.particles import has_particles
from pyroae.programs.sites import Site


class ControlVariate(nn.Module):
    """The parameters of c(z) = η f(σ_λ(z)) + r_ρ(z).

    Args:
        scale: η at the start; None for a c without f.
        temperature: λ at the start.
        network: r_ρ; None for a c without it.
        like: A tensor of the device and precision.

    >>> ControlVariate(1.0, 0.5, None, torch.zeros(())).temperature
    tensor(0.5000, grad_fn=<ExpBackward0>)
    """

    def __init__(
        self, scale: float | None, temperature: float, network: nn.Module | None, like: Tensor
    ) -> None:
        super().__init__()
        if scale is not None:
            self.scale = nn.Parameter(like.new_tensor(scale))
            self.log_temperature = nn.Parameter(like.new_tensor(temperature).log())
        self.network = network

    @property
    def temperature(self) -> Tensor:
        """λ, of shape `[]`."""
        return self.log_temperature.exp()


class NetworkOfDraws(nn.Module):
    """r_ρ(z): a network of the relaxed draws and the logits of a datum, in nats.

        r(z) = unit · (offset + w · tanh(W [σ_1(z), σ_1(l)] + a)),   l with its gradient stopped

    It starts near 0.

    Args:
        size: The number of logits of a datum.
        hidden: The number of hidden units.
        unit: The size in nats of an output of 1.
        like: A tensor of the device and precision.

    >>> NetworkOfDraws(3, 8, 1.0, torch.zeros(()))(torch.zeros(5, 2, 3), torch.zeros(5, 2, 3)).shape
    torch.Size([5, 2])
    """

    def __init__(self, size: int, hidden: int, unit: float, like: Tensor) -> None:
        super().__init__()
        self.inner = nn.Linear(2 * size, hidden, device=like.device, dtype=like.dtype)
        self.outer = nn.Linear(hidden, 1, device=like.device, dtype=like.dtype)
        self.unit = unit
        nn.init.normal_(self.outer.weight, std=0.01)
        nn.init.zeros_(self.outer.bias)

    def forward(self, soft: Tensor, means: Tensor) -> Tensor:
        """Return r of each particle and datum.

        Args:
            soft: Relaxed states at temperature 1, shape `[K, N, size]`.
            means: Probabilities of the states, shape `[K, N, size]`.

        Returns:
            r in nats, shape `[K, N]`.

        Raises:
            ProgramError: The network was made for another number of logits.
        """
        inputs = torch.cat([soft, means.detach()], -1).to(self.inner.weight)
        if inputs.shape[-1] != self.inner.in_features:
            raise ProgramError(
                f"the network of relax was made for {self.inner.in_features // 2} logits per "
                f"datum, not {soft.shape[-1]}: use another objective for each pair of programs, or "
                "call forget_controls()"
            )
        hidden = torch.tanh(self.inner(inputs))
        return self.unit * self.outer(hidden).squeeze(-1)


def per_datum(traces: Traces, site: Site, states: Tensor) -> Tensor:
    """Flatten states of a site to one vector for each particle and datum.

    Args:
        traces: The traces of guide and model.
        site: The site of the guide.
        states: A tensor of the shape of the site's logits.

    Returns:
        A tensor `[K, N, D]`.
    """
    batch = len(site["fn"].batch_shape)
    if not has_particles(site):
        states, batch = states.unsqueeze(0), batch + 1
    if traces.plate is None:
        states = states.unsqueeze(1)
    else:
        states = states.movedim(batch + traces.plate.dim, 1)
    return states.unsqueeze(-1).flatten(2)


def to_logits(traces: Traces, site: Site, logits: Tensor, values: Tensor) -> Tensor:
    """Reshape values for each particle and datum to broadcast with the logits of a site.

    Args:
        traces: The traces of guide and model.
        site: The site of the guide.
        logits: Its logits.
        values: A tensor `[K, N]`.

    Returns:
        The same values, with as many dimensions as the logits.
    """
    batch = traces.expand_to(site, values).shape[: len(site["fn"].batch_shape)]
    return values.reshape([*batch, *[1] * (logits.dim() - len(batch))])


def network_input(
    traces: Traces, sites: dict[str, DiscreteSite], states: dict[str, Tensor]
) -> Tensor:
    """Concatenate the states of all sites of a datum.

    Args:
        traces: The traces of guide and model.
        sites: The discrete sites of the guide.
        states: Tensors of the shapes of their logits.

    Returns:
        A tensor `[K, N, D]`.
    """
    return torch.cat([per_datum(traces, traces.guide.nodes[n], states[n]) for n in sites], -1)
