"""Choose between two states row by row, exactly and quickly."""

from __future__ import annotations

import torch
from torch import Tensor

from pyro_boltzmann.energies.columns import is_dense
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

    __slots__ = ("_bits", "_mask")

    def __init__(self, mask: Tensor) -> None:
        self._mask: Tensor | None = mask
        self._bits: dict[torch.dtype, Tensor] = {}

    @classmethod
    def negative(cls, values: Tensor) -> RowMask:
        """The rows whose value is negative, from the sign bits; ``values`` hold neither NaN nor -0.0."""
        integer = _INTEGERS.get(values.dtype)
        if integer is None or not _is_plain(values):
            return cls(values < 0)
        rows = cls(values)
        rows._mask = None
        rows._bits[integer] = values.view(integer) >> (torch.iinfo(integer).bits - 1)  # all ones where negative
        return rows

    @property
    def mask(self) -> Tensor:
        """The rows as booleans, ``(*batch)``."""
        if self._mask is None:
            self._mask = next(iter(self._bits.values())).bool()
        return self._mask

    def count(self) -> Tensor:
        """How many rows are chosen."""
        for bits in self._bits.values():
            return bits.sum(dtype=torch.int32).neg_()  # as fast as the bits can be read; good for 2^31 rows
        return self.mask.sum()

    def select(self, new: Tensor, old: Tensor, *, overwrite: bool = False) -> Tensor:
        """Rows of ``new`` where chosen, of ``old`` elsewhere.

        :param overwrite: ``new`` is the caller's own and not needed any more: its memory may take the result. It comes
            back as another object all the same, because transforms with a cache recognise states by identity.
        """
        has_event = new.dim() > len(self._shape())
        integer = _INTEGERS.get(new.dtype)
        if integer is None or not _is_plain(new) or old.dtype != new.dtype or old.shape != new.shape:
            mask = self.mask
            return torch.where(mask.unsqueeze(-1) if has_event else mask, new, old)
        bits = self._bits.get(integer)
        if bits is None:
            bits = self._bits[integer] = self.mask.to(integer).neg_()
        if has_event:
            bits = bits.unsqueeze(-1)
        old_bits = old.view(integer)
        if overwrite and is_dense(new) and new.untyped_storage().data_ptr() != old.untyped_storage().data_ptr():
            new.view(integer).bitwise_xor_(old_bits).bitwise_and_(bits).bitwise_xor_(old_bits)
            return new.detach()
        return torch.bitwise_xor(new.view(integer), old_bits).bitwise_and_(bits).bitwise_xor_(old_bits).view(new.dtype)

    def _shape(self) -> torch.Size:
        return (next(iter(self._bits.values())) if self._mask is None else self._mask).shape


def _is_plain(values: Tensor) -> bool:
    return not (torch.is_grad_enabled() or values.is_cuda or is_tracing() or torch.compiler.is_compiling())
