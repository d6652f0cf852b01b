"""What a sampling run hands over to be diagnosed, however it came by its draws."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from pyro_boltzmann.diagnostics import WeightedSamples
from pyro_boltzmann.energies.evaluation import Energy

__all__ = ["Outcome", "describe_run"]


@dataclass
class Outcome:
    """Draws, and what they cost.

    :ivar z: unconstrained vectors of the draws, ``(N, dim)``.
    :ivar energy: of these vectors.
    :ivar evaluations: by phase; ``wall_seconds`` and ``cpu_seconds`` likewise.
    :ivar notes: remarks for the report.
    :ivar failures: what makes the run unreliable, whatever its metrics say.
    :ivar backwards: log weights of paths run back from exact samples, for samplers that can.
    """

    draws: WeightedSamples
    z: Tensor
    energy: Energy
    evaluations: dict[str, Any]
    wall_seconds: dict[str, float]
    cpu_seconds: dict[str, float]
    notes: list[str] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    backwards: Callable[[Tensor], Tensor] | None = None


def describe_run(draws: WeightedSamples, identity: dict[str, Any]) -> Tensor:
    """Write into the draws where they come from; returns their vectors, which need no second copy in the file."""
    z: Tensor = draws.info.pop("z")
    draws.info["run"] = {"experiment": "sample", **identity}
    return z
