"""Choose between two states row by row, exactly and quickly."""

from __future__ import annotations

import torch
from torch import Tensor

from pyro_boltzmann.energies.tracing import is_tracing

__all__ = ["RowMask"]

_INTEGERS = {torch.float32: torch.int32, torch.float64: torch.int64}


class RowMask:
    """``select(new, old)`` is ``torch.where(mask, new, old)`` for tensors of shape ``(*batch)`` or ``(*batch, dim)``.

    Never arithmetic like ``mask * new + (1 - mask) * old``: a rejected infinite energy would turn into NaN. On the CPU
    without a graph the choice is made on the bits of the numbers, ``old ^ ((new ^ old) & mask)``: the same result for
    any content, infinities and NaN included, by vectorised instructions where ``torch.where`` branches at every
    element.
    """

    __slots__ = ("_bits", "mask")

    def __init__(self, mask: Tensor) -> None:
        self.mask = mask
        self._bits: dict[torch.dtype, Tensor] = {}

    def select(self, new: Tensor, old: Tensor) -> Tensor:
        has_event = new.dim() > self.mask.dim()
        integer = _INTEGERS.get(new.dtype)
        plain = not (torch.is_grad_enabled() or new.is_cuda or is_tracing() or torch.compiler.is_compiling())
        if integer is None or not plain or old.dtype != new.dtype or old.shape != new.shape:
            return torch.where(self.mask.unsqueeze(-1) if has_event else self.mask, new, old)
        bits = self._bits.get(integer)
        if bits is None:
            bits = self._bits[integer] = self.mask.to(integer).neg_()
        if has_event:
            bits = bits.unsqueeze(-1)
        old_bits = old.view(integer)
        return torch.bitwise_xor(new.view(integer), old_bits).bitwise_and_(bits).bitwise_xor_(old_bits).view(new.dtype)
