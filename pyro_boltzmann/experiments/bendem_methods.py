"""The ways to train a diffusion sampler that the experiments compare, as arguments of guide and training."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from pyro_boltzmann.energies.catalogue import Target
from pyro_boltzmann.exceptions import PyroBoltzmannError
from pyro_boltzmann.experiments.bendem_plans import Plan
from pyro_boltzmann.guides import AutoDiffusion
from pyro_boltzmann.infer import fit, objectives
from pyro_boltzmann.infer.objectives import PathObjective

__all__ = ["METHODS", "PUBLISHED", "Recipe", "UnknownMethodError", "methods_of", "recipe"]

PUBLISHED = ("idem", "endem", "bendem")
"""As their authors set them, on a constant learning rate and for as long as the time allows."""
METHODS = (*PUBLISHED, "best")
"""``"best"`` is :class:`~pyro_boltzmann.infer.objectives.TargetScoreMatching`."""

ENDLESS = 10**7
"""Updates of a training that the clock ends."""
FEWEST_DRAWS = 100


class UnknownMethodError(PyroBoltzmannError, ValueError):
    """A method that the experiments do not know, or that this version cannot train."""


@dataclass(frozen=True)
class Recipe:
    """Keyword arguments: ``guide`` of :class:`~pyro_boltzmann.AutoDiffusion`, ``fit`` of
    :func:`~pyro_boltzmann.fit`, and the objective."""

    objective: PathObjective
    guide: dict[str, Any]
    fit: dict[str, Any]


def methods_of(name: str) -> tuple[str, ...]:
    """The methods that ``--method`` asks for.

    :raises UnknownMethodError: for a name that is none.

    >>> methods_of("all")
    ('idem', 'endem', 'bendem', 'best')
    """
    if name == "all":
        return METHODS
    if name not in METHODS:
        raise UnknownMethodError(f"no method is named {name!r}; known names: {', '.join(METHODS)}, all")
    return (name,)


def recipe(method: str, target: Target, plan: Plan, share: float = 1.0, device: torch.device | None = None) -> Recipe:
    """How a method trains on a target.

    :param share: of the planned updates and teacher's draws.
    :param device: where the teacher's particles live.
    :raises UnknownMethodError: for an objective that this version does not have.
    """
    if method == "best":
        return _best(target, plan, share, device)
    return _published(method, target, plan)


def _best(target: Target, plan: Plan, share: float, device: torch.device | None) -> Recipe:
    start: Any = plan.proposal
    if device is not None and device.type != "cpu":
        # A number would start tempering on the CPU.
        loc = torch.zeros(target.dim, device=device)
        start = torch.distributions.Independent(torch.distributions.Normal(loc, plan.proposal), 1)
    objective = objectives.TargetScoreMatching(
        plan.batch,
        num_draws=max(min(FEWEST_DRAWS, plan.draws), round(plan.draws * share)),
        smc={"proposal": start, "max_moves": plan.max_moves},
    )
    training = {
        "num_steps": max(20, round(plan.updates * share)),
        "learning_rate": plan.learning_rate,
        "schedule": "cosine",
        "clip_norm": 1.0,
    }
    return Recipe(objective, {"kind": plan.kind, "num_segments": plan.num_segments}, training)


def _published(method: str, target: Target, plan: Plan) -> Recipe:
    table = getattr(objectives, "published_settings", None)
    if method not in objectives.OBJECTIVE_NAMES or table is None:
        raise UnknownMethodError(
            f"this version has no objective {method!r} with published settings; its objectives are "
            f"{', '.join(objectives.OBJECTIVE_NAMES)}; use --method best"
        )
    guide: dict[str, Any] = {"kind": "score" if method == "idem" else "energy"}
    training: dict[str, Any] = {"num_steps": ENDLESS, "num_particles": plan.batch}
    settings = dict(_mapping(table(method, target.name)))
    for function, chosen in ((AutoDiffusion, guide), (fit, training)):
        known = inspect.signature(function).parameters
        chosen |= {key: settings.pop(key) for key in list(settings) if key in known}
    objective = objectives.named_objective(method, training.pop("num_particles"), None, None, 1.0)
    assert objective is not None
    if settings:
        objective = type(objective)(objective.num_particles, **settings)
    return Recipe(objective, guide, training)


def _mapping(settings: Any) -> Mapping[str, Any]:
    return settings if isinstance(settings, Mapping) else vars(settings)
