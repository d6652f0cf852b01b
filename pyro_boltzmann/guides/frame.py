"""Where a target lives, and which noise reaches all of it."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from pyro_boltzmann.diffusion.schedules import NoiseSchedule

__all__ = ["FINEST", "WIDEST", "Frame"]

WIDEST = 4.0
"""The prior's noise in standard deviations of the target, unless a schedule is given."""
FINEST = 0.25
"""The least noise in widths of a mode, unless a schedule is given."""
NARROW, COARSE = 1.0, 2.0
"""A schedule must reach this many standard deviations and go below this many widths of a mode."""


class Frame(NamedTuple):
    r"""Where a target lives: its mean and standard deviations, ``(dim,)`` each, the width of its modes,
    :math:`c = \sqrt{d / E|\nabla u|^2}`, and its mean energy."""

    center: Tensor
    scale: Tensor
    width: float
    level: float = 0.0

    @classmethod
    def guess(cls, dim: int, scale: float = 1.0, width: float | None = None) -> Frame:
        """Around zero, with one standard deviation in all directions and modes as wide, unless told otherwise.

        :raises ValueError: unless all three are positive and finite.

        >>> Frame.guess(2, 3.0)
        Frame(center=tensor([0., 0.]), scale=tensor([3., 3.]), width=3.0, level=0.0)
        """
        width = scale if width is None else width
        if isinstance(dim, bool) or not isinstance(dim, int) or dim < 1:
            raise ValueError(f"dim must be a positive integer, the number of unconstrained latents, got {dim!r}")
        if not (0.0 < scale < math.inf and 0.0 < width < math.inf):
            raise ValueError(
                f"scale and width are a standard deviation of the target and the width of its modes, positive and "
                f"finite; got {scale} and {width}"
            )
        return cls(torch.zeros(dim), torch.full((dim,), float(scale)), float(width))

    @property
    def fitting(self) -> tuple[float, float]:
        """The noise that this target asks for, ``(sigma_min, sigma_max)``.

        >>> Frame.guess(2, 3.0, 0.4).fitting
        (0.1, 12.0)
        """
        widest = float(self.scale.max())
        return FINEST * min(float(self.width), widest), WIDEST * widest

    def misfit(self, schedule: NoiseSchedule) -> str | None:
        """Why the noise of ``schedule`` cannot serve this target, with a range that can; ``None`` where it can.

        It must reach one standard deviation of the target at least, and go below two widths of its modes.
        """
        widest = float(self.scale.max())
        width = min(float(self.width), widest)
        if schedule.sigma_max >= NARROW * widest and schedule.sigma_min <= COARSE * width:
            return None
        low, high = self.fitting
        return (
            f"the schedule's noise, sigma from {schedule.sigma_min:.3g} to {schedule.sigma_max:.3g}, does not fit "
            f"the target, whose standard deviation is up to {widest:.3g}, with modes about {width:.3g} wide; "
            f"sigma_min={low:.3g}, sigma_max={high:.3g} would"
        )
