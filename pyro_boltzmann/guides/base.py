"""The joint base distribution of a path: x from its prior, noise from its own law."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.distributions import Distribution, constraints

from pyro_boltzmann.stochastic.path import PathTransform

__all__ = ["PathBase"]


class PathBase(TorchDistribution):
    r"""The density :math:`q_0(x_0)\, p(n)` on joint vectors of size ``dim + noise_dim``.

    :param prior: a distribution of x with event shape ``(dim,)``.
    :param path: the path whose noise completes it.
    """

    arg_constraints: ClassVar[dict[str, constraints.Constraint]] = {}
    support = constraints.real_vector
    has_rsample = True

    def __init__(self, prior: Distribution, path: PathTransform, validate_args: bool | None = None) -> None:
        self.prior = prior
        self.path = path
        super().__init__(prior.batch_shape, torch.Size((path.width,)), validate_args=validate_args)

    def rsample(self, sample_shape: torch.Size | list[int] | tuple[int, ...] = ()) -> Tensor:
        x = self.prior.rsample(torch.Size(sample_shape))
        return torch.cat([x, self.path.sample_noise(x.shape[:-1], x)], -1)

    def log_prob(self, value: Tensor) -> Tensor:
        x, noise = value[..., : self.path.dim], value[..., self.path.dim :]
        return self.prior.log_prob(x) + self.path.noise_log_prob(noise)

    def expand(self, batch_shape: Any, _instance: Any = None) -> PathBase:
        return PathBase(self.prior.expand(torch.Size(batch_shape)), self.path, validate_args=False)
