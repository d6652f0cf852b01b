"""How a run is trained."""

from __future__ import annotations

import math
from dataclasses import dataclass

from pyro.infer.elbo import ELBO

from pyro_boltzmann.infer.phase import Phase

__all__ = ["Recipe"]


@dataclass(frozen=True)
class Recipe:
    """How a run is trained. All of it but the lengths of the phases must agree for a checkpoint to continue."""

    phases: tuple[Phase, ...]
    elbo: ELBO | None
    num_particles: int
    schedule: str
    clip_norm: float | None
    adapt_rate: float
    seed: int | None
    weight_power: float = 1.0

    def __post_init__(self) -> None:
        if self.schedule not in ("constant", "cosine"):
            raise ValueError(f'schedule must be "constant" or "cosine", got {self.schedule!r}')
        if self.clip_norm is not None and not self.clip_norm > 0:
            raise ValueError(f"clip_norm must be positive, or None for no clipping, got {self.clip_norm}")

    @property
    def num_steps(self) -> int:
        """The length of all phases together."""
        return sum(phase.num_steps for phase in self.phases)

    def phase(self, step: int) -> Phase:
        """The phase that update number ``step`` belongs to."""
        for phase in self.phases:
            if step < phase.num_steps:
                return phase
            step -= phase.num_steps
        return self.phases[-1]

    def rate_factor(self, step: int) -> float:
        """What the schedule multiplies the learning rate by."""
        if self.schedule == "constant":
            return 1.0
        return 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * step / self.num_steps))
