"""What a block tells about its own run: never mixed with the state, never a reason to synchronise a GPU."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["BlockInfo", "StepInfo"]


class StepInfo(NamedTuple):
    """Counts of one step; tensors stay on their device.

    :ivar accepted: number of accepted moves, or ``None`` where nothing is tested.
    :ivar divergences: number of moves whose energy error exceeded 1000 kT.
    :ivar nonfinite: number of proposals or forces that were not finite.
    :ivar total: number of particles.
    :ivar log_branch: log-probability of the branch taken, ``(*batch)``, for the score-function gradient.
    """

    accepted: Tensor | None = None
    divergences: Tensor | None = None
    nonfinite: Tensor | None = None
    total: int = 0
    log_branch: Tensor | None = None


class BlockInfo(NamedTuple):
    """Counts of a block, summed over its steps.

    :ivar accepted: accepted moves, or ``None`` for a block that tests nothing.
    :ivar divergences: moves with an energy error above 1000 kT.
    :ivar nonfinite: non-finite proposals or forces.
    :ivar total: moves tried (particles times steps).
    :ivar log_branch: log-probability of all branches taken, ``(*batch)``, or ``None``.
    :ivar accepted_by_step: ``(steps,)`` accepted moves of each step, or ``None``.
    """

    accepted: Tensor | None = None
    divergences: Tensor | None = None
    nonfinite: Tensor | None = None
    total: int = 0
    log_branch: Tensor | None = None
    accepted_by_step: Tensor | None = None

    @property
    def acceptance(self) -> float | None:
        """Share of accepted moves."""
        if self.accepted is None or self.total == 0:
            return None
        return float(self.accepted) / self.total

    @classmethod
    def gather(cls, steps: list[StepInfo]) -> BlockInfo:
        by_step = [s.accepted for s in steps if s.accepted is not None]
        stacked = torch.stack(by_step) if by_step else None
        return cls(
            accepted=None if stacked is None else stacked.sum(),
            divergences=_sum(s.divergences for s in steps),
            nonfinite=_sum(s.nonfinite for s in steps),
            total=sum(s.total for s in steps),
            log_branch=_sum(s.log_branch for s in steps),
            accepted_by_step=stacked,
        )

    def __add__(self, other: object) -> BlockInfo:
        """Pool the counts of two batches; per-particle fields do not pool and are dropped."""
        if not isinstance(other, BlockInfo):
            return NotImplemented
        return BlockInfo(
            accepted=_sum((self.accepted, other.accepted)),
            divergences=_sum((self.divergences, other.divergences)),
            nonfinite=_sum((self.nonfinite, other.nonfinite)),
            total=self.total + other.total,
            accepted_by_step=_sum((self.accepted_by_step, other.accepted_by_step)),
        )

    def to_dict(self) -> dict[str, float | int | None]:
        """Plain numbers, for a report."""
        return {
            "acceptance": self.acceptance,
            "divergences": None if self.divergences is None else int(self.divergences),
            "nonfinite": None if self.nonfinite is None else int(self.nonfinite),
            "moves": self.total,
        }


def _sum(values: object) -> Tensor | None:
    total: Tensor | None = None
    for value in values:  # type: ignore[attr-defined]
        if value is not None:
            total = value if total is None else total + value
    return total
