"""Closed forms and hand-written formulas that the package is checked against.

Plain torch; nothing of pyroae.
"""

import math

import torch
from torch import Tensor

HALF_LOG_2PI = 0.5 * math.log(2 * math.pi)


def normal_nll(x: Tensor, mean: Tensor, scale: Tensor | float = 1.0) -> Tensor:
    """−log N(x; mean, scale² I) a datum, `[..., d]` -> `[...]`."""
    scale = torch.as_tensor(scale)
    return ((x - mean).square() / (2 * scale**2) + scale.log() + HALF_LOG_2PI).sum(-1)


def bernoulli_nll(x: Tensor, logits: Tensor) -> Tensor:
    """−Σ_j x_j log p_j + (1 − x_j) log(1 − p_j)."""
    p = torch.sigmoid(logits)
    return -(x * p.log() + (1 - x) * (1 - p).log()).sum(-1)


def gaussian_kl(mean: Tensor, scale: Tensor) -> Tensor:
    """KL(N(mean, scale²) ‖ N(0, I)) = ½ Σ (μ² + σ² − 1 − log σ²)."""
    return 0.5 * (mean.square() + scale.square() - 1 - scale.square().log()).sum(-1)


def laplace_penalty(z: Tensor, rate: float) -> Tensor:
    """λ‖z‖₁ + m log(2/λ)."""
    return rate * z.abs().sum(-1) + z.shape[-1] * math.log(2 / rate)


def mlp(x: Tensor, layers: list[tuple[Tensor, Tensor]]) -> Tensor:
    """A tanh network written out: the last layer is linear."""
    for i, (weight, bias) in enumerate(layers):
        x = x @ weight.T + bias
        x = torch.tanh(x) if i < len(layers) - 1 else x
    return x


def ppca_rate_distortion(
    x: Tensor, weight: Tensor, bias: Tensor, scale: Tensor, beta: float
) -> tuple[Tensor, Tensor]:
    """R = KL(q ‖ p(z)) and D = −E_q log p(x|z) of q ∝ p(z) p(x|z)^β, `[N]` each:
    q = N(β Σ Wᵀ(x − b)/σ², Σ), Σ = (I + β WᵀW/σ²)⁻¹.
    """
    precision = torch.eye(weight.shape[1]) + beta * weight.mT @ weight / scale**2
    covariance = torch.linalg.inv(precision)
    loc = beta * (x - bias) @ weight @ covariance / scale**2
    trace = covariance.trace() - weight.shape[1]
    rate = 0.5 * (loc.square().sum(-1) + trace + precision.logdet())
    spread = (weight @ covariance @ weight.mT).trace()
    square = ((x - bias - loc @ weight.mT).square().sum(-1) + spread) / scale**2
    return rate, 0.5 * (square + x.shape[1] * (2 * math.pi * scale**2).log())


def gaussian_divergences(
    q_loc: Tensor, q_cov: Tensor, p_loc: Tensor, p_cov: Tensor
) -> tuple[Tensor, Tensor]:
    """KL(p ‖ q) and ½ log E_q (p/q)² of Gaussians: EUBO − log p(x) and CUBO₂ − log p(x) where p is
    the posterior.

    With d = m_p − m_q, A = Σ_q⁻¹ and P = 2 Σ_p⁻¹ − A, which has to be positive definite,
    log E_q (p/q)² = ½ (log|Σ_q| − 2 log|Σ_p| − log|P| + dᵀ(A + A P⁻¹ A) d).
    """
    shift, a = p_loc - q_loc, torch.linalg.inv(q_cov)
    p = 2 * torch.linalg.inv(p_cov) - a
    assert bool((torch.linalg.eigvalsh(p) > 0).all())

    def form(matrix: Tensor) -> Tensor:
        return torch.einsum("...i,...ij,...j->...", shift, matrix, shift)

    trace = torch.einsum("...ij,...ji->...", a, p_cov)
    kl = 0.5 * (trace + form(a) - shift.shape[-1] + q_cov.logdet() - p_cov.logdet())
    chi = form(a + a @ torch.linalg.inv(p) @ a)
    return kl, 0.25 * (q_cov.logdet() - 2 * p_cov.logdet() - p.logdet() + chi)
