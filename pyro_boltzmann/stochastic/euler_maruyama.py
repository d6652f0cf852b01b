"""Euler-Maruyama steps with separate forward and backward kernels."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from pyro_boltzmann.energies.memo import EnergyMemo
from pyro_boltzmann.energies.tracing import is_tracing
from pyro_boltzmann.exceptions import ShapeError
from pyro_boltzmann.stochastic.block import StepResult, StochasticBlock
from pyro_boltzmann.stochastic.noise import NoisePart, Parts

__all__ = ["EulerMaruyamaTransform", "Kernel", "euler_maruyama"]

Kernel = Callable[[Tensor], tuple[Tensor, Tensor | float]]
"""``x -> (mean, scale)`` of a Gaussian kernel: shapes ``(*batch, dim)`` and anything that broadcasts to it."""


class EulerMaruyamaTransform(StochasticBlock):
    r"""A Gaussian forward kernel paired with a Gaussian backward kernel,

    .. math::
        y = m_f(x) + s_f(x)\,\xi, \qquad \xi' = \frac{x - m_b(y)}{s_b(y)}, \qquad
        \log|\det| = \sum \log s_f(x) - \sum \log s_b(y).

    Any means and any positive scales give exact weights, so both kernels may be networks. Weights behave well only
    where the backward kernel is close to the reversal of the forward one: look at k-hat.

    :param dim: dimension of x.
    :param forward: ``x -> (mean, scale)``; an ``nn.Module`` is registered and trained.
    :param backward: ``y -> (mean, scale)``.
    :raises ValueError: if a scale is not positive.

    Source: Wu, Koehler and Noe, arXiv 2002.06707, section 3; Zhang and Chen, arXiv 2111.15141.

    >>> import torch
    >>> block = EulerMaruyamaTransform(1, lambda x: (0.5 * x, 2.0), lambda y: (0.1 * y, 1.0))
    >>> joint, ladj = block.call_and_ladj(torch.tensor([[1.0, 0.5]]))
    >>> joint, ladj  # y = 0.5 + 2 * 0.5, xi' = 1 - 0.15, log 2
    (tensor([[1.5000, 0.8500]]), tensor([0.6931]))
    """

    def __init__(self, dim: int, forward: Kernel, backward: Kernel) -> None:
        super().__init__(dim, (NoisePart("normal", dim),), is_involution=False)
        self._kernels: dict[str, Kernel] = {}
        for name, kernel in (("forward", forward), ("backward", backward)):
            if isinstance(kernel, nn.Module):
                self.add_module(f"{name}_kernel", kernel)
            else:
                self._kernels[name] = kernel

    def _kernel(self, name: str, x: Tensor) -> tuple[Tensor, Tensor]:
        kernel = self._kernels[name] if name in self._kernels else getattr(self, f"{name}_kernel")
        mean, scale = kernel(x)
        scale = torch.as_tensor(scale, dtype=x.dtype, device=x.device)
        if mean.shape != x.shape:
            raise ShapeError(f"the {name} kernel must return a mean of shape {tuple(x.shape)}, got {tuple(mean.shape)}")
        if not torch.compiler.is_compiling() and not is_tracing() and bool((scale <= 0).any()):
            # NaN passes: one path that overflowed further up must not stop all others, and is counted at the end.
            raise ValueError(f"the {name} kernel returned a scale that is not positive; use exp or softplus")
        return mean, scale.expand(x.shape)

    def step(self, x: Tensor, noise: Parts, memo: EnergyMemo, index: int) -> StepResult:
        mean, scale = self._kernel("forward", x)
        y = mean + scale * noise[0]
        back_mean, back_scale = self._kernel("backward", y)
        ladj = scale.log().sum(-1) - back_scale.log().sum(-1)
        return StepResult(y, ((x - back_mean) / back_scale,), ladj, EnergyMemo())

    def step_inverse(self, x: Tensor, noise: Parts, memo: EnergyMemo, index: int) -> StepResult:
        back_mean, back_scale = self._kernel("backward", x)
        before = back_mean + back_scale * noise[0]
        mean, scale = self._kernel("forward", before)
        ladj = back_scale.log().sum(-1) - scale.log().sum(-1)
        return StepResult(before, ((x - mean) / scale,), ladj, EnergyMemo())


def euler_maruyama(dim: int, forward: Kernel, backward: Kernel) -> EulerMaruyamaTransform:
    """An :class:`EulerMaruyamaTransform`."""
    return EulerMaruyamaTransform(dim, forward, backward)
