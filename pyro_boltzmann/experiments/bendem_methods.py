"""The ways to train a diffusion sampler that the experiments compare, as arguments of guide and training."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from pyro_boltzmann.energies.catalogue import Target
from pyro_boltzmann.exceptions import PyroBoltzmannError
from pyro_boltzmann.experiments.bendem_plans import Plan
from pyro_boltzmann.experiments.denoising_settings import brief_settings, published_settings
from pyro_boltzmann.guides.auto_diffusion import Frame, default_network
from pyro_boltzmann.infer import objectives
from pyro_boltzmann.infer.objectives import PathObjective

__all__ = ["METHODS", "PUBLISHED", "Recipe", "UnknownMethodError", "methods_of", "recipe"]

PUBLISHED = ("idem", "endem", "bendem")
"""Alone as their authors set them, for as long as the time allows; in a comparison with settings for minutes."""
METHODS = (*PUBLISHED, "best")
"""``"best"`` is :class:`~pyro_boltzmann.infer.objectives.TargetScoreMatching`."""

ENDLESS = 10**7
"""Updates of a training that the clock ends."""
FEWEST_DRAWS = 100


class UnknownMethodError(PyroBoltzmannError, ValueError):
    """A method that the experiments do not know, or that has no settings for a target."""


@dataclass(frozen=True)
class Recipe:
    """Keyword arguments: ``guide`` of :class:`~pyro_boltzmann.AutoDiffusion`, ``fit`` of
    :func:`~pyro_boltzmann.fit`, the objective, and where the guide is placed before training."""

    objective: PathObjective
    guide: dict[str, Any]
    fit: dict[str, Any]
    frame: Frame | None = None


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


def recipe(
    method: str,
    target: Target,
    plan: Plan,
    share: float = 1.0,
    device: torch.device | None = None,
    *,
    compared: bool = False,
) -> Recipe:
    """How a method trains on a target.

    :param share: of the planned updates and teacher's draws.
    :param device: where the teacher's particles live.
    :param compared: with settings for a comparison at equal time.
    :raises UnknownMethodError: for a published method on a target without such settings.
    """
    if method == "best":
        return _best(target, plan, share, device)
    return _published(method, target, plan, share, compared)


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


def _published(method: str, target: Target, plan: Plan, share: float, compared: bool) -> Recipe:
    try:
        settings = (brief_settings if compared else published_settings)(method, target.name)
    except ValueError as error:
        raise UnknownMethodError(f"{error}; use --method best") from error
    guide: dict[str, Any] = {
        "kind": "score" if method == "idem" else "energy",
        "schedule": settings.schedule,
        "num_steps": settings.num_steps or plan.shortened_steps(share),
    }
    if settings.width is not None:
        kind, size = guide["kind"], {"width": settings.width, "depth": plan.depth}
        guide["network"] = lambda dim: default_network(kind, target, dim, **size)
    training: dict[str, Any] = {"learning_rate": settings.learning_rate, "clip_norm": settings.clip_norm}
    if settings.num_updates is None:
        training |= {"num_steps": ENDLESS}  # the clock ends the training
    else:
        training |= {"num_steps": max(20, round(settings.num_updates * share)), "schedule": "cosine"}
    return Recipe(settings.objective, guide, training, settings.frame)
