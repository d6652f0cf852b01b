"""A named equation with its initial laws, time and step."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pyro_boltzmann.sde.equation import SDE

__all__ = ["System"]


@dataclass(frozen=True)
class System:
    """An equation as an experiment uses it.

    :ivar name: what it is called.
    :ivar sde: the equation.
    :ivar initial: the initial law from which training data start, event shape ``(d,)``.
    :ivar time: how long.
    :ivar step_size: the step of the simulation.
    :ivar tests: initial laws on which a flow map is tested, by name.
    :ivar transition: the exact transition law, ``None`` where it is not known.
    """

    name: str
    sde: SDE
    initial: Any
    time: float
    step_size: float
    tests: Mapping[str, Any] = field(default_factory=dict)
    transition: Any = None
