"""What happens to a trajectory that leaves its domain: one rule for a coordinate, or for one side of it."""

from __future__ import annotations

import itertools
import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Absorbing", "Boundary", "Clamped", "Folding", "Periodic", "Reflecting", "check_boundaries"]


@dataclass(frozen=True)
class Boundary(ABC):
    """A rule at the planes ``x[index] = low`` and ``x[index] = high``.

    :ivar index: the coordinate, from 0.
    :ivar low: the lower end of the domain, ``None`` where it is open.
    :ivar high: the upper end, ``None`` where it is open.
    """

    index: int
    low: float | None = None
    high: float | None = None

    def __post_init__(self) -> None:
        if self.index < 0:
            raise ValueError(f"the coordinate of a boundary counts from 0, got index={self.index}")
        if not self.ends:
            raise ValueError(f"{type(self).__name__}({self.index}) needs low=, high= or both")
        if not all(math.isfinite(end) for end in self.ends.values()):
            raise ValueError(f"the ends of a boundary must be finite, got {self}; leave an open end out")
        if self.low is not None and self.high is not None and not self.low < self.high:
            raise ValueError(f"a boundary needs low < high, got {self}")

    @property
    def ends(self) -> dict[str, float]:
        """The ends that there are, by name."""
        return {name: end for name, end in (("low", self.low), ("high", self.high)) if end is not None}

    def contains(self, column: Tensor) -> Tensor:
        """Whether each value lies in the closed domain (NaN does not)."""
        inside = column == column
        if self.low is not None:
            inside = inside & (column >= self.low)
        if self.high is not None:
            inside = inside & (column <= self.high)
        return inside


@dataclass(frozen=True)
class Folding(Boundary):
    """A rule that brings a coordinate back into its domain."""

    @abstractmethod
    def fold(self, column: Tensor) -> Tensor:
        """Values of this coordinate after a step, brought back into the domain; what is not finite becomes NaN."""


@dataclass(frozen=True)
class Periodic(Folding):
    r"""The ends are the same point: :math:`x \mapsto x - w \lfloor (x - a) / w \rfloor`, :math:`w = b - a`.

    >>> Periodic(0, 0.0, 1.0).fold(torch.tensor([0.25, 1.25, -0.25]))
    tensor([0.2500, 0.2500, 0.7500])
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.ends) < 2:
            raise ValueError(f"a periodic coordinate has two ends, got {self}")

    def contains(self, column: Tensor) -> Tensor:
        return column.isfinite()

    def fold(self, column: Tensor) -> Tensor:
        assert self.low is not None and self.high is not None
        width = self.high - self.low
        turns = ((column - self.low) / width).floor()
        return torch.sub(column, turns, alpha=width).clamp(self.low, self.high)


@dataclass(frozen=True)
class Reflecting(Folding):
    r"""A mirror at each end: :math:`x \mapsto 2a - x` below :math:`a`, :math:`2b - x` above :math:`b`, repeated.

    For Brownian motion this fold of the free path is the reflected motion itself, without error of discretisation.

    >>> Reflecting(0, -1.0, 1.0).fold(torch.tensor([0.5, 1.25, -1.25, 5.5]))
    tensor([ 0.5000,  0.7500, -0.7500,  0.5000])
    >>> Reflecting(0, low=0.0).fold(torch.tensor([0.5, -0.5]))
    tensor([0.5000, 0.5000])
    """

    def fold(self, column: Tensor) -> Tensor:
        low, high = self.low, self.high
        # Of a point and its image, the one inside: nothing inside is rounded, and no mask is needed.
        if low is None:
            assert high is not None
            return torch.minimum(column, 2.0 * high - column)
        folded = torch.maximum(column, 2.0 * low - column)
        if high is None:
            return folded
        folded = torch.minimum(folded, 2.0 * high - folded)
        if folded.numel() and float(folded.detach().amin()) < low:
            return self._fold_far(column, low, high)
        return folded

    def _fold_far(self, column: Tensor, low: float, high: float) -> Tensor:
        """For steps longer than the domain is wide."""
        width = high - low
        turns = ((column - low) / width).floor()
        folded = torch.sub(column, turns, alpha=width)
        return torch.where(turns.remainder(2.0) == 1.0, (low + high) - folded, folded).clamp(low, high)


@dataclass(frozen=True)
class Clamped(Folding):
    r"""What steps over an end is put on it: :math:`x \mapsto \min(\max(x, a), b)`. The ends become atoms of the law.

    >>> Clamped(0, low=0.5).fold(torch.tensor([0.25, 2.0]))
    tensor([0.5000, 2.0000])
    """

    def fold(self, column: Tensor) -> Tensor:
        # Nothing times inf is NaN: what has overflowed must not be put on an end as if it were there.
        return torch.add(column.clamp(self.low, self.high), column, alpha=0.0)


@dataclass(frozen=True)
class Absorbing(Boundary):
    r"""What reaches an end stays there.

    Between two times at which the motion is inside, at distances :math:`a` and :math:`c` from the end, it has crossed
    with the probability of a Brownian bridge,

    .. math:: P = \exp\Bigl(-\frac{2 a c}{\sigma^2 h}\Bigr),

    with the variance :math:`\sigma^2` a unit of time of this coordinate. Without this, exits are seen at the ends of
    steps only, and an error of order :math:`\sqrt h` remains.

    :ivar bridge: whether crossings within a step are drawn; then the exit time within the step is drawn as well.

    Source: Gobet, Stochastic Processes and their Applications 87 (2000), 167.
    """

    bridge: bool = True

    def reached(self, column: Tensor) -> Tensor:
        """Whether each value lies on an end or beyond."""
        below = column <= (-math.inf if self.low is None else self.low)
        return below | (column >= (math.inf if self.high is None else self.high))


def check_boundaries(boundaries: Sequence[Boundary], event_dim: int) -> None:
    """:raises ValueError: if a coordinate does not exist, or two rules claim the same side of one."""
    taken: set[tuple[int, str]] = set()
    for boundary in boundaries:
        if not isinstance(boundary, Boundary):
            raise ValueError(f"expected Periodic, Reflecting, Absorbing or Clamped boundaries, got {boundary!r}")
        if boundary.index >= event_dim:
            raise ValueError(f"{boundary} names a coordinate that a state of dimension {event_dim} does not have")
        for side in boundary.ends:
            if (boundary.index, side) in taken:
                raise ValueError(f"the {side} end of coordinate {boundary.index} has two rules; keep one of them")
            taken.add((boundary.index, side))
    for one, other in itertools.permutations(boundaries, 2):
        if one.index == other.index and one.low is not None and other.high is not None and one.low >= other.high:
            raise ValueError(f"{one} and {other} leave no room between them; need low < high")
