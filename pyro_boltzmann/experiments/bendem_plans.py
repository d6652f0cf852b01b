"""What the experiments on diffusion samplers do for each target, fixed before the reported runs."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import torch

__all__ = ["COMPARED_MINUTES", "ON_CPU", "PLANS", "Plan", "plan_for"]

COMPARED_MINUTES = 3.0
"""Training of each method where several are compared at equal time."""


@dataclass(frozen=True)
class Plan:
    """How a target is learned, sampled and scored.

    :ivar proposal: standard deviation of the Gaussian that sequential Monte Carlo, the teacher, starts from.
    :ivar draws: of the teacher.
    :ivar max_moves: of the teacher at each temperature.
    :ivar width: of the network, like ``depth``.
    :ivar updates: of the network, in one seed, with ``batch`` pairs of a draw and a noise level each.
    :ivar max_seconds: wall time after which a training ends, whatever is left of it.
    :ivar minutes: what all seeds take together; fewer minutes shorten them in proportion.
    :ivar num_samples: weighted draws in one seed.
    :ivar size: N of the distances and of their floors; 0 where there are no reference samples.
    :ivar repeats: pairs of reference sets of this size behind a floor.
    :ivar seeds: of the training.
    :ivar num_steps: of the reverse process.
    :ivar kind: of the guide, like ``num_segments``: paths can be resampled where a learned energy cuts them.
    :ivar replicates: runs with resampling of ``replicate_samples`` draws each, of the first seed.
    """

    proposal: float
    draws: int
    max_moves: int
    width: int
    depth: int
    updates: int
    learning_rate: float
    max_seconds: float
    minutes: float
    num_samples: int
    size: int
    repeats: int = 10
    seeds: int = 3
    batch: int = 256
    num_steps: int = 200
    kind: str = "score"
    num_segments: int = 1
    replicates: int = 0
    replicate_samples: int = 10_000

    def shortened_steps(self, share: float) -> int:
        """Steps of the reverse process where only a share of the training is done, which many would be lost on.

        >>> PLANS["gmm40"].shortened_steps(1.0), PLANS["gmm40"].shortened_steps(0.25)
        (100, 50)
        """
        return max(20, round(self.num_steps * math.sqrt(share)))


PLANS: dict[str, Plan] = {
    "gmm40": Plan(
        proposal=25.0,
        draws=10_000,
        max_moves=2,
        width=128,
        depth=3,
        updates=3000,
        learning_rate=2e-3,
        max_seconds=120.0,
        minutes=6.0,
        num_samples=10_000,
        size=1000,
        num_steps=100,
        kind="energy",
        num_segments=10,
        replicates=20,
    ),
    "many_well32": Plan(
        proposal=1.0,
        draws=10_000,
        max_moves=2,
        width=256,
        depth=3,
        updates=6000,
        learning_rate=2e-3,
        max_seconds=900.0,
        minutes=15.0,
        num_samples=10_000,
        size=1000,
        seeds=1,
    ),
    "dw4": Plan(
        proposal=math.sqrt(6.0),
        draws=20_000,
        max_moves=2,
        width=64,
        depth=3,
        updates=5000,
        learning_rate=3e-3,
        max_seconds=600.0,
        minutes=30.0,
        num_samples=10_000,
        size=2000,
    ),
    "lj13": Plan(
        proposal=1.0,
        draws=4000,
        max_moves=20,
        width=64,
        depth=3,
        updates=5000,
        learning_rate=3e-3,
        max_seconds=2700.0,
        minutes=45.0,
        num_samples=10_000,
        size=2000,
        repeats=5,
        seeds=1,
    ),
    "lj55": Plan(
        proposal=1.0,
        draws=500,
        max_moves=10,
        width=64,
        depth=3,
        updates=4000,
        learning_rate=3e-3,
        max_seconds=3600.0,
        minutes=60.0,
        num_samples=1000,
        size=0,
        seeds=1,
        batch=128,
    ),
}
"""By the target's name in the catalogue."""

ON_CPU: dict[str, dict[str, Any]] = {
    "lj55": {"width": 16, "depth": 2, "draws": 100, "max_moves": 2, "batch": 32, "num_samples": 200}
}
"""What a plan that is meant for a GPU becomes without one: a smoke test, no result."""


def plan_for(name: str, device: torch.device) -> Plan:
    """The plan of a target on a device.

    >>> plan_for("lj55", torch.device("cpu")).width, plan_for("dw4", torch.device("cpu")).width
    (16, 64)
    """
    plan = PLANS[name]
    return plan if device.type != "cpu" else replace(plan, **ON_CPU.get(name, {}))
