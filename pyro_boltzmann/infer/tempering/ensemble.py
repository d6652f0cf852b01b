"""Particles at which the reference and the target energy are known."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pyro_boltzmann.energies.evaluation import Energy, energy_and_gradient, energy_value
from pyro_boltzmann.energies.reference import NormalEnergy
from pyro_boltzmann.energies.rows import RowMask

__all__ = ["Ensemble", "evaluate"]

FEW = 2**15
"""Numbers up to which one ``torch.where`` costs less than three operations on their bits."""


class Ensemble(NamedTuple):
    r"""Particles ``x`` ``(*batch, dim)`` with the reference energy :math:`u_0`, the target energy :math:`u`, both
    ``(*batch)``, and their gradients, ``None`` where no move needs them. That of a Gaussian reference is linear in x,
    and never kept."""

    x: Tensor
    reference: Tensor
    target: Tensor
    reference_gradient: Tensor | None
    target_gradient: Tensor | None

    def map(self, change: Callable[[Tensor], Tensor]) -> Ensemble:
        """What ``change`` makes of each part that is known."""
        gradients = (None if part is None else change(part) for part in self[3:])
        return Ensemble(change(self.x), change(self.reference), change(self.target), *gradients)

    def rows(self, index: Tensor) -> Ensemble:
        """The particles ``index`` of a flat batch."""
        return self.map(lambda part: part.index_select(0, index))

    def where(self, mask: Tensor, other: Ensemble) -> Ensemble:
        """These particles where ``mask`` says so, those of ``other`` elsewhere.

        A part that both share stays as it is.
        """
        choose = RowMask(mask).select if self.x.numel() > FEW else _few(mask)
        parts: list[Any] = [
            new if new is old or new is None or old is None else choose(new, old)
            for new, old in zip(self, other, strict=True)
        ]
        return Ensemble(*parts)

    def reshape(self, *batch: int) -> Ensemble:
        """The same particles with another batch shape."""
        old = self.reference.dim()
        return self.map(lambda part: part.reshape(*batch, *part.shape[old:]))

    @staticmethod
    def cat(parts: list[Ensemble], dim: int = 0) -> Ensemble:
        """Join along a batch dimension."""
        columns = iter(list(zip(*([part for part in one if part is not None] for one in parts), strict=True)))
        return parts[0].map(lambda part: torch.cat(next(columns), dim))

    def state(self) -> dict[str, Tensor]:
        """The parts by name, for a checkpoint."""
        return {f"ensemble.{name}": part for name, part in self._asdict().items() if part is not None}

    @classmethod
    def restore(cls, tensors: Mapping[str, Tensor]) -> Ensemble:
        """The inverse of :meth:`state`; a missing part raises ``KeyError``."""
        known = (tensors[f"ensemble.{name}"] for name in cls._fields[:3])
        return cls(*known, *(tensors.get(f"ensemble.{name}") for name in cls._fields[3:]))


def _few(mask: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
    wide = mask.unsqueeze(-1)
    return lambda new, old: torch.where(mask if new.dim() == mask.dim() else wide, new, old)


def evaluate(reference: Energy, target: Energy, x: Tensor, gradients: bool) -> Ensemble:
    """Both energies at ``x``, each once, without a graph."""
    if not gradients:
        return Ensemble(x, energy_value(reference, x), energy_value(target, x), None, None)
    u, gradient = energy_and_gradient(target, x)
    if isinstance(reference, NormalEnergy):
        return Ensemble(x, energy_value(reference, x), u, None, gradient)
    base, base_gradient = energy_and_gradient(reference, x)
    return Ensemble(x, base, u, base_gradient, gradient)
