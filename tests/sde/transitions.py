"""Ends of trajectories whose law is known, drawn exactly."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Generator, Tensor


@dataclass
class Ends:
    x0: Tensor
    time: Tensor
    state: Tensor
    exited: Tensor | None = None
    params: Tensor | None = None


def uniform(n: int, d: int, low: float, high: float, seed: int) -> Tensor:
    return low + (high - low) * torch.rand(n, d, generator=Generator().manual_seed(seed))


def brownian(x0: Tensor, time: Tensor, seed: int) -> Ends:
    noise = torch.randn(x0.shape, generator=Generator().manual_seed(seed))
    return Ends(x0, time, x0 + time.sqrt().unsqueeze(-1) * noise)


def ou_moments(x0: Tensor, time: Tensor) -> tuple[Tensor, Tensor]:
    """dX = -X dt + dW."""
    t = time.unsqueeze(-1)
    return x0 * (-t).exp(), (-0.5 * (-2.0 * t).expm1()).sqrt().expand(x0.shape)


def ornstein_uhlenbeck(x0: Tensor, time: Tensor, seed: int) -> Ends:
    mean, std = ou_moments(x0, time)
    return Ends(x0, time, mean + std * torch.randn(x0.shape, generator=Generator().manual_seed(seed)))


def normal_log_prob(y: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    z = (y - mean) / std
    return (-0.5 * z.square() - std.log() - 0.5 * math.log(2.0 * math.pi)).sum(-1)
