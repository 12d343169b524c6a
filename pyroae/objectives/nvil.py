"""NVIL: the score-function gradient of the ELBO with a baseline that is learned from the data."""

from dataclasses import dataclass
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn

from pyroae.errors import ConfigError, ProgramError
from pyroae.objectives.base import OBJECTIVES, Bound
from pyroae.objectives.bounds import ELBO, BoundFunction
from pyroae.objectives.coefficient_surrogates import along_scores
from pyroae.objectives.gradients import GRADIENTS, Coefficients
from pyroae.objectives.pair import Objective
from pyroae.objectives.program_gradient import ProgramGradient
from pyroae.objectives.surrogates import Detached
from pyroae.programs.arguments import flatten_arguments
from pyroae.programs.paired_traces import Traces
from pyroae.programs.sites import Program
from pyroae.weights import reduce_log_weights


@GRADIENTS.register("nvil")
@dataclass(frozen=True)
class NVIL(ProgramGradient):
    """The score-function gradient of the ELBO with a learned baseline b_ψ(x) + c.

        θ: (1/K) Σ_k ∂_θ log p(x, z_k)
        φ: (1/K) Σ_k (log w_k − b_ψ(x) − c) s_k
        ψ, c: descend weight · (1/K) Σ_k ((log w_k − b_ψ(x) − c) / u)²

    The baseline depends on the data and on no draw, so that the φ-gradient is unbiased for any ψ
    and c. b_ψ has one hidden layer of tanh units; its input are all floating-point tensors
    `[N, ...]` among the positional arguments of the programs. It is 0 at first, and c the mean
    log-weight of the first batch; u, fixed, is the larger of 1, the standard deviation of these
    log-weights, and a tenth of their mean. The paper's c and σ are running means; here both are
    learned, since a graph of a step changes parameters alone. All draws are stopped; those of
    discrete and continuous sites are followed by their scores.

    Attributes:
        hidden: The number of hidden units of b_ψ; 0 for a baseline c that is the same for all data.
        normalize: Divide the φ-gradient by max(1, σ), where σ² is a learned mean of the squared
            learning signal. The estimator is then biased in its scale.
        weight: The weight of the baseline's squared error in the surrogate; with Adam it has no
            effect but in the norm of `grad_clip`.

    Raises:
        ConfigError: `hidden` is below 0, or `weight` is not positive.

    References:
        Mnih & Gregor 2014, Neural Variational Inference and Learning in Belief Networks.

    >>> NVIL().unbiased(ELBO(1)), NVIL(normalize=True).unbiased(ELBO(1))
    (True, False)
    """

    detached: ClassVar[bool] = True
    independent: ClassVar[bool] = False
    learns: ClassVar[bool] = True
    hidden: int = 100
    normalize: bool = False
    weight: float = 1.0

    def __post_init__(self) -> None:
        if not isinstance(self.hidden, int) or self.hidden < 0:
            raise ConfigError(f"hidden must be a whole number of at least 0, not {self.hidden!r}")
        if not self.weight > 0:
            raise ConfigError(f"the weight of the baseline must be positive, not {self.weight}")

    def check(self, bound: BoundFunction) -> None:
        """Refuse every bound but the ELBO."""
        if not isinstance(bound, ELBO):
            raise ConfigError(
                f"the NVIL gradient is defined for the ELBO, not for {type(bound).__name__}"
            )

    def unbiased(self, bound: BoundFunction) -> bool:
        """Return whether the φ-gradient is not divided by σ."""
        return not self.normalize

    def make_controls(self, traces: Traces, args: tuple[Any, ...]) -> nn.Module:
        """Return the baseline, in the unit of the log-weights of one run."""
        log_weight = reduce_log_weights(traces).log_weight.detach()
        if not self.hidden or traces.plate is None:  # such a program is refused by the estimate
            return Baseline(0, 0, log_weight, self.normalize)
        features = features_of(args, log_weight.shape[1]).to(log_weight)
        return Baseline(features.shape[1], self.hidden, log_weight, self.normalize)

    def estimate_on(
        self,
        objective: Objective,
        model: Program,
        guide: Program,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Bound:
        """Return the ELBO, and the surrogate of θ, φ and the baseline."""
        traces = objective.run(model, guide, args, kwargs, handler=Detached())
        objective.check(traces)
        weights = reduce_log_weights(traces)
        log_weight = weights.log_weight.detach()
        baseline = cast(Baseline, objective.controls)
        error = log_weight - self._baseline(baseline, args, log_weight)
        slope = objective.bound_function.slope(log_weight)
        coefficients = Coefficients(slope, learning=slope * self._signal(baseline, error))
        surrogate = along_scores(objective, traces, weights, coefficients)
        losses = slope * self._losses(baseline, error)
        value = weights.total(objective.bound_function.value(log_weight)).detach()
        return Bound(value, surrogate - self.weight * (weights.scale * losses).sum())

    def _baseline(self, baseline: "Baseline", args: tuple[Any, ...], log_weight: Tensor) -> Tensor:
        """The baseline of each datum, `[N]`, or of all, `[1]`."""
        if baseline.network is None:
            return baseline(None)
        features = features_of(args, log_weight.shape[1]).to(baseline.constant)
        width = baseline.network[0].in_features
        if features.shape[1] != width:
            raise ProgramError(
                f"the baseline of NVIL was made for data of {width} numbers each, not of "
                f"{features.shape[1]}: use another objective for each pair of programs, or call "
                "forget_controls()"
            )
        return baseline(features).to(log_weight)

    def _signal(self, baseline: "Baseline", error: Tensor) -> Tensor:
        """The learning signal, detached, `[K, N]`."""
        signal = error.detach()
        if baseline.variance is None:
            return signal
        spread = baseline.unit * baseline.variance.detach().clamp_min(0).sqrt()
        return signal / spread.clamp_min(1.0)

    def _losses(self, baseline: "Baseline", error: Tensor) -> Tensor:
        """The squared errors of the baseline and of σ², `[K, N]`."""
        squares = (error / baseline.unit) ** 2
        if baseline.variance is None:
            return squares
        return squares + (squares.detach() - baseline.variance) ** 2


class Baseline(nn.Module):
    """b_ψ(x) + c: a network with one hidden layer, and a constant.

    Args:
        width: The number of features of a datum.
        hidden: The number of hidden units; 0 for the constant alone.
        log_weight: Log-weights of a first batch in nats, `[K, N]`, from which the baseline starts.
        normalize: Whether σ² is learned too.

    Attributes:
        network: b_ψ in units; None for the constant alone.
        constant: c − `center`, in units.
        variance: σ², in squared units; None where it is not learned.
        center: The mean log-weight of the first batch, in nats.
        unit: The unit u, in nats.
    """

    center: Tensor
    unit: Tensor

    def __init__(self, width: int, hidden: int, log_weight: Tensor, normalize: bool) -> None:
        super().__init__()
        finite = log_weight.isfinite()  # masked, not indexed, which would read it on the host
        count = finite.sum().clamp_min(1)
        center = log_weight.where(finite, 0.0).sum() / count
        spread = ((log_weight - center).square().where(finite, 0.0).sum() / count).sqrt()
        unit = torch.maximum(spread, center.abs() / 10).clamp_min(1.0)
        self.network: nn.Sequential | None = None
        if hidden:
            outer = nn.Linear(hidden, 1, bias=False)
            nn.init.zeros_(outer.weight)
            self.network = nn.Sequential(nn.Linear(width, hidden), nn.Tanh(), outer).to(log_weight)
        self.constant = nn.Parameter(log_weight.new_zeros(1))
        self.variance = nn.Parameter((spread / unit).square()[None]) if normalize else None
        self.register_buffer("center", center)
        self.register_buffer("unit", unit)

    def forward(self, features: Tensor | None) -> Tensor:
        """Return the baseline.

        Args:
            features: The features of the data, `[N, width]`; None for the constant alone.

        Returns:
            b_ψ(x) + c in nats, `[N]`, or `[1]` without a network.
        """
        value = self.constant
        if self.network is not None and features is not None:
            value = value + self.network(features).squeeze(-1)
        return self.center + self.unit * value


def features_of(args: tuple[Any, ...], num_data: int) -> Tensor:
    """Return the data in the arguments of a program as features of each datum.

    Args:
        args: Positional arguments: tensors, and dicts, lists and tuples of them.
        num_data: The number of data, N.

    Returns:
        All floating-point tensors `[N, ...]` side by side, `[N, D]`; 0 in the place of NaN.

    Raises:
        ProgramError: There is no such tensor.

    >>> features_of(({"x": torch.ones(3, 2, 2), "y": torch.zeros(3)}, 0.5), 3).shape
    torch.Size([3, 5])
    """
    values, _ = flatten_arguments(args, {})
    tensors = [
        value.detach().reshape(num_data, -1)
        for value in values
        if isinstance(value, Tensor)
        and value.is_floating_point()
        and value.dim()
        and len(value) == num_data
    ]
    if not tensors:
        raise ProgramError(
            "the baseline of NVIL is a function of the data, and no positional argument of the "
            f"programs is a floating-point tensor [N, ...] of the {num_data} data in the plate: "
            "pass the data so, or use hidden=0, a baseline that is the same for all data"
        )
    return torch.cat(tensors, 1).nan_to_num(0.0)


@OBJECTIVES.register("nvil")
def nvil(
    num_particles: int = 1, hidden: int = 100, normalize: bool = False, weight: float = 1.0
) -> Objective:
    """NVIL: the ELBO by the score function with a baseline that is learned from the data.

    It takes discrete latent variables as well.

    Args:
        num_particles: K, the number of draws of z per datum; 1 suffices.
        hidden: The number of hidden units of the baseline; 0 for a constant.
        normalize: Divide the φ-gradient by the size of the learning signal.
        weight: The weight of the baseline's squared error.

    Returns:
        ELBO × NVIL.

    Raises:
        ConfigError: `hidden` is below 0, or `weight` is not positive.

    References:
        Mnih & Gregor 2014, Neural Variational Inference and Learning in Belief Networks.
    """
    return Objective(ELBO(num_particles), NVIL(hidden, normalize, weight))
