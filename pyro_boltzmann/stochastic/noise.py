"""The random numbers of a block: their law, layout and log-density."""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import torch
from torch import Generator, Tensor

from pyro_boltzmann.energies.columns import goes_by_columns

__all__ = ["NoisePart", "Parts", "log_uniform", "part_log_prob", "sample_part", "split_parts"]

Parts = tuple[Tensor, ...]
"""The noise of one step, one tensor a part: ``(*batch, size)``, in the order of the block's ``step_noise``."""


class NoisePart(NamedTuple):
    """``size`` independent standard normal or Exp(1) variables."""

    kind: Literal["normal", "exponential"]
    size: int


def sample_part(
    part: NoisePart,
    batch_shape: torch.Size,
    like: Tensor,
    generator: Generator | None = None,
    memory: Tensor | None = None,
) -> Tensor:
    """Fresh noise of shape ``(*batch_shape, size)`` with the dtype and device of ``like``, in ``memory`` if it fits."""
    shape = (*batch_shape, part.size)
    if part.kind == "normal":
        if memory is not None and goes_by_columns(shape) and memory.shape == shape and memory.mT.is_contiguous():
            memory.mT.normal_(generator=generator)
            return memory.detach()  # another object: transforms with a cache recognise states by identity
        if goes_by_columns(shape):
            return torch.randn(shape[::-1], dtype=like.dtype, device=like.device, generator=generator).mT
        return torch.randn(shape, dtype=like.dtype, device=like.device, generator=generator)
    # -log(1 - U): four times as fast as exponential_ on a CPU, and 1 - U is exact, so the logarithm is finite.
    uniform = torch.rand(shape, dtype=like.dtype, device=like.device, generator=generator)
    return uniform.neg_().add_(1.0).log_().neg_()


def log_uniform(
    shape: torch.Size, like: Tensor, generator: Generator | None = None, kept: list[Tensor] | None = None
) -> Tensor:
    """Logarithms of fresh uniform numbers on [0, 1]; -inf may occur.

    :param kept: a list, empty at first, in which memory is kept from call to call. The result of one call is then
        overwritten by the next.
    """
    if like.is_cuda or like.dtype != torch.float32:
        return torch.rand(shape, dtype=like.dtype, device=like.device, generator=generator).log_()
    # Two 32-bit integers from each 64 random bits: half the cost of torch.rand on a CPU.
    count = shape.numel()
    if kept:
        bits, uniform = kept
    else:
        bits, uniform = torch.empty((count + 1) // 2, dtype=torch.int64), torch.empty(shape, dtype=like.dtype)
        if kept is not None:
            kept += [bits, uniform]
    bits.random_(-(2**63), None, generator=generator)
    return uniform.copy_(bits.view(torch.int32)[:count].view(shape)).mul_(2.0**-32).add_(0.5).log_()


def part_log_prob(part: NoisePart, noise: Tensor) -> Tensor:
    """Log-density of the noise, summed over its last dimension: shape ``(*batch)``."""
    if part.kind == "normal":
        return -0.5 * (noise.square().sum(-1) + part.size * math.log(2 * math.pi))
    return torch.where(noise >= 0, -noise, -math.inf).sum(-1)


def split_parts(noise: Tensor, parts: tuple[NoisePart, ...]) -> Parts:
    """Cut the flat noise of one step, ``(*batch, sum of sizes)``, into its parts."""
    return tuple(noise.split([part.size for part in parts], dim=-1))
