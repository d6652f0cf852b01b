"""What to train on, and for how long."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from pyro.infer.elbo import ELBO

from pyro_boltzmann.infer.objectives.named import OBJECTIVE_NAMES

__all__ = ["Phase", "plan_phases"]


@dataclass(frozen=True)
class Phase:
    r"""A stretch of training with a fixed mixture of objectives,

    .. math:: \mathcal L = \frac{w_{ML} J_{ML} + w_{KL} J_{KL}}{w_{ML} + w_{KL}} .

    :param num_steps: updates.
    :param reverse_kl: weight of the energy-based objective.
    :param forward_kl: weight of maximum likelihood on ``data``.
    :raises ValueError: unless ``num_steps`` is a positive integer and the weights are finite, non-negative, not both
        zero.

    The published recipe is ``[Phase(300, reverse_kl=0, forward_kl=1), Phase(300, reverse_kl=0.5, forward_kl=0.5)]``.

    >>> Phase(300, reverse_kl=0.5, forward_kl=0.5)
    Phase(num_steps=300, reverse_kl=0.5, forward_kl=0.5)
    """

    num_steps: int
    reverse_kl: float = 1.0
    forward_kl: float = 0.0

    def __post_init__(self) -> None:
        weights = (self.reverse_kl, self.forward_kl)
        good_weights = all(math.isfinite(weight) and weight >= 0 for weight in weights) and sum(weights) > 0
        if not isinstance(self.num_steps, int) or self.num_steps < 1 or not good_weights:
            raise ValueError(
                "a phase needs an integer num_steps >= 1 and finite, non-negative weights that are not both zero, "
                f"got {self}"
            )


def plan_phases(
    objective: str | Sequence[Phase] | ELBO, num_steps: int | None
) -> tuple[tuple[Phase, ...], ELBO | None]:
    """The phases of a run, and the ELBO that takes the place of their objectives, if one was given as an object.

    :raises ValueError: if the objective is none, or the number of steps is given twice or is not positive.
    """
    steps = 1000 if num_steps is None else num_steps
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
        raise ValueError(f"num_steps must be a positive integer, got {num_steps!r}")
    if isinstance(objective, ELBO):
        return (Phase(steps),), objective
    named = {"reverse_kl": (1.0, 0.0), "forward_kl": (0.0, 1.0)}
    if isinstance(objective, str) and objective in OBJECTIVE_NAMES:
        return (Phase(steps, *named.get(objective, (1.0, 0.0))),), None
    phases: tuple[Phase, ...] = tuple(objective) if isinstance(objective, list | tuple) else ()
    if not phases or not all(isinstance(phase, Phase) for phase in phases):
        names = ", ".join(f'"{name}"' for name in OBJECTIVE_NAMES)
        raise ValueError(
            f"objective must be {names}, a non-empty list of "
            f"Phase(num_steps, reverse_kl, forward_kl) or an instance of a Pyro ELBO, got {objective!r}"
        )
    total = sum(phase.num_steps for phase in phases)
    if num_steps not in (None, total):
        raise ValueError(f"num_steps={num_steps} contradicts the phases, which have {total} together; leave it out")
    return phases, None
