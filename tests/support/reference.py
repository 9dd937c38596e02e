"""Dense twins of the update rules: z is stored, sums are plain, everything in float64.

They share nothing with the kernels but the directions' values, which the caller passes in.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def gradient(grads: list[float], directions: list[Tensor]) -> Tensor:
    """(1/K) sum_k c_k z_k."""
    total = sum(c * z.double() for c, z in zip(grads, directions, strict=True))
    assert isinstance(total, Tensor)
    return total / len(grads)


def outer(u: Tensor, v: Tensor) -> Tensor:
    """z of a rank-1 direction, materialised: z_ij = u_i v_j."""
    return u.double()[:, None] * v.double()[None, :]


def mezo(theta: Tensor, gradients: list[Tensor], lr: float, weight_decay: float = 0.0) -> Tensor:
    """Zeroth-order SGD over a list of steps (arXiv 2305.17333, algorithm 1)."""
    theta = theta.double()
    for g in gradients:
        theta = theta * (1 - lr * weight_decay) - lr * g
    return theta


def momentum(
    theta: Tensor, gradients: list[Tensor], lr: float, beta: float, weight_decay: float = 0.0
) -> Tensor:
    """SGD with momentum over a list of steps; m is a sum, not a mean."""
    theta = theta.double()
    m = torch.zeros_like(theta)
    for g in gradients:
        m = beta * m + g
        theta = theta * (1 - lr * weight_decay) - lr * m
    return theta


def radazo(
    theta: Tensor,
    gradients: list[Tensor],
    lr: float,
    betas: tuple[float, float],
    eps: float = 1e-8,
    correction: str = "v",
    window: int | None = None,
    weight_decay: float = 0.0,
) -> Tensor:
    """R-AdaZO (arXiv 2502.01014, algorithm 2) with element-wise moments of the last `window` steps."""
    theta = theta.double()
    for t in range(1, len(gradients) + 1):
        first = 0 if window is None else max(0, t - window)
        m = v = torch.zeros_like(theta)
        for g in gradients[first:t]:
            m = betas[0] * m + (1 - betas[0]) * g
            v = betas[1] * v + (1 - betas[1]) * m**2
        if correction != "none":
            v = v / (1 - betas[1] ** (t - first))
        if correction == "adam":
            m = m / (1 - betas[0] ** t)
        theta = theta * (1 - lr * weight_decay) - lr * m / (v.sqrt() + eps)
    return theta


def fzoo(
    theta: Tensor,
    gradients: list[Tensor],
    slopes: list[tuple[float, ...]],
    lr: float,
    weight_decay: float = 0.0,
) -> Tensor:
    """FZOO (arXiv 2506.09034), from the losses at theta + epsilon z above the loss at theta."""
    theta = theta.double()
    epsilon = 1e-3
    for g, c in zip(gradients, slopes, strict=True):
        losses = torch.tensor(c, dtype=torch.float64) * epsilon
        theta = theta * (1 - lr * weight_decay) - lr * (epsilon * g) / losses.std(correction=1)
    return theta


def zoadamm(
    theta: Tensor,
    gradients: list[Tensor],
    lr: float,
    betas: tuple[float, float],
    eps: float = 1e-8,
    weight_decay: float = 0.0,
) -> Tensor:
    """ZO-AdaMM (arXiv 1910.06513, algorithm 1) without constraints."""
    theta = theta.double()
    m = v = largest = torch.zeros_like(theta)
    for g in gradients:
        m = betas[0] * m + (1 - betas[0]) * g
        v = betas[1] * v + (1 - betas[1]) * g**2
        largest = torch.maximum(largest, v)
        theta = theta * (1 - lr * weight_decay) - lr * m / (largest.sqrt() + eps)
    return theta


def radazo_scalar(
    theta: Tensor,
    gradients: list[Tensor],
    lr: float,
    betas: tuple[float, float],
    squares: list[float] | None = None,
) -> Tensor:
    """One v for all weights: the mean of m**2 over them. `gradients` of one direction of signs have
    mean g**2 = c**2; of several, `squares` says what to expect of it, sum_k c_k**2 / K**2."""
    theta = theta.double()
    s = V = 0.0
    m = torch.zeros_like(theta)
    for t, g in enumerate(gradients, 1):
        m = betas[0] * m + (1 - betas[0]) * g
        g_square = float((g**2).mean()) if squares is None else squares[t - 1]
        s = betas[0] ** 2 * s + (1 - betas[0]) ** 2 * g_square
        V = betas[1] * V + (1 - betas[1]) * s
        theta = theta - lr * m / math.sqrt(V / (1 - betas[1] ** t))
    return theta
