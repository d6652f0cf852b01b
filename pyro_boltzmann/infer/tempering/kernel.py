"""Which Markov move is made, with how many steps."""

from __future__ import annotations

import math
from typing import NamedTuple

__all__ = ["Kernel", "make_kernel"]

QUARTER_PERIOD = math.pi / 2


class Kernel(NamedTuple):
    r"""A Markov move: ``"hmc"`` with its largest number of leapfrog steps, ``"mala"`` (one step), or ``"rwm"`` (random
    walk, which asks for no gradients)."""

    name: str
    num_steps: int
    jitter: float = 0.2
    """Step sizes are spread uniformly by this fraction, so that no trajectory is periodic in every direction."""

    @property
    def uses_gradients(self) -> bool:
        """Whether the particles must know their gradients."""
        return self.name != "rwm"

    @property
    def target_acceptance(self) -> float:
        """What step sizes are adapted to."""
        return {"hmc": 0.8, "mala": 0.6, "rwm": 0.3}[self.name]

    def initial_step(self, dim: int) -> float:
        """A first guess, in units of the particles' standard deviations."""
        first, power = {"hmc": (0.5, 0.25), "mala": (1.0, 0.25), "rwm": (2.4, 0.5)}[self.name]
        return first / math.pow(dim, power)

    def fitting(self, step_size: float) -> Kernel:
        r"""This kernel with as many steps as a quarter of a period takes, at most.

        In variables in which the density is round, a trajectory of length :math:`\pi / 2` forgets where it began; one
        of length :math:`\pi` ends at the mirror image, and particles that only change places learn nothing.
        """
        return self._replace(num_steps=max(1, min(self.num_steps, math.ceil(QUARTER_PERIOD / step_size))))

    @property
    def largest_step(self) -> float:
        """The step size whose trajectory is a quarter of a period."""
        return QUARTER_PERIOD / self.num_steps if self.name == "hmc" else math.inf


def make_kernel(name: str, num_steps: int) -> Kernel:
    """The kernel of a name; MALA is HMC with one leapfrog step.

    :raises ValueError: for any other name, or a trajectory without steps.
    """
    if name not in ("hmc", "mala", "rwm"):
        raise ValueError(f"kernel must be 'hmc', 'mala' or 'rwm' (random walk), got {name!r}")
    if isinstance(num_steps, bool) or not isinstance(num_steps, int) or num_steps < 1:
        raise ValueError(f"num_steps must be a positive number of leapfrog steps, got {num_steps!r}")
    return Kernel(name, num_steps if name == "hmc" else 1)
