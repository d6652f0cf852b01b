"""Divergences in closed form, by autograd and by Hutchinson's estimate, and the two orders of discretising."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from pyro_boltzmann.energies.catalogue.particles import ParticleTarget
from pyro_boltzmann.experiments.equivariant_models import BASE_SCALE, FlowModel
from pyro_boltzmann.experiments.equivariant_training import Cost, continuous_part
from pyro_boltzmann.guides import AutoStochasticFlow
from pyro_boltzmann.infer import fit
from pyro_boltzmann.infer.randomness import seeded
from pyro_boltzmann.transforms.continuous import (
    EmbeddedAtomField,
    KernelField,
    VelocityField,
    exact_divergence,
    hutchinson_divergence,
)

__all__ = ["SOLVERS", "divergence_costs", "train_by_solver"]

SOLVERS: dict[str, dict[str, Any]] = {
    "DTO, closed form": {"solver": "dto", "divergence": "exact"},
    "DTO, brute force": {"solver": "dto", "divergence": "autograd"},
    "DTO, Hutchinson": {"solver": "dto", "divergence": "hutchinson"},
    "OTD, closed form": {"solver": "otd", "divergence": "exact"},
}
"""Ways to train the same kernel flow: fixed Runge-Kutta steps or adaptive ones with the adjoint equation."""
SOLVER_STEPS, SOLVER_BATCH = 10, 64
PROBES = 64
REPEATS = 5
TIME = 0.5


def divergence_costs(target: ParticleTarget, rows: Tensor, seed: int) -> dict[str, dict[str, float]]:
    """Error, noise and CPU milliseconds of the divergences of two untrained fields whose weights are of order one.

    ``divergence_error`` is the largest deviation from autograd in float64 over the mean absolute divergence;
    ``divergence_sd`` the standard deviation of one estimate over the same.

    :param rows: states ``(n, dim)``, about those of a flow half-way.
    """
    number, dim = target.num_particles, target.spatial_dim
    found: dict[str, dict[str, float]] = {}
    with seeded(seed):
        fields: dict[str, VelocityField] = {
            "kernel": KernelField(number, dim),
            "embedded_atom": EmbeddedAtomField(number, dim),
        }
        x = 0.5 * (rows + BASE_SCALE * torch.randn_like(rows))
        for name, field in fields.items():
            with torch.no_grad():
                for parameter in field.parameters():
                    parameter.add_(0.1 * torch.randn_like(parameter))
                double = copy.deepcopy(field).double()
                truth = exact_divergence(partial(double, TIME), x.double())[1]
                size = float(truth.abs().mean())
                ways: dict[str, Callable[[], Tensor]] = {
                    "closed form": lambda field=field: field.velocity_and_divergence(TIME, x)[1],  # type: ignore[misc]
                    "brute force": lambda field=field: exact_divergence(partial(field, TIME), x)[1],  # type: ignore[misc]
                    "Hutchinson": lambda field=field: hutchinson_divergence(  # type: ignore[misc]
                        partial(field, TIME), x, _signs(1, x)
                    )[1],
                }
                estimates = torch.stack([ways["Hutchinson"]() for _ in range(PROBES)]).double()
                for way, evaluate in ways.items():
                    row = {"milliseconds": _milliseconds(evaluate)}
                    if way == "Hutchinson":
                        row["divergence_sd"] = float(estimates.var(0).mean().sqrt()) / size
                    else:
                        row["divergence_error"] = float((evaluate().double() - truth).abs().max()) / size
                    found[f"{name}, {way}"] = row
    return found


def train_by_solver(
    model: FlowModel, target: ParticleTarget, data: Tensor, solver: str, *, updates: int, seconds: float, seed: int
) -> tuple[AutoStochasticFlow, Cost]:
    """A kernel flow trained by maximum likelihood the way :data:`SOLVERS` says.

    :param seconds: after which it stops in any case.
    """
    with seeded(seed):
        guide = model.guide(target)
    continuous_part(guide).configure(num_steps=SOLVER_STEPS, **SOLVERS[solver])
    result = fit(
        target.model(),
        guide,
        objective="forward_kl",
        data=data,
        num_steps=updates,
        num_particles=SOLVER_BATCH,
        learning_rate=model.learning_rate,
        schedule="cosine",
        clip_norm=1.0,
        seed=seed,
        max_seconds=seconds,
        progress=False,
    )
    cost = Cost()
    cost.add(result)
    return guide, cost


def _signs(number: int, x: Tensor) -> Tensor:
    return 2.0 * torch.randint(2, (number, *x.shape)).to(x) - 1.0


def _milliseconds(evaluate: Callable[[], Tensor]) -> float:
    """The least CPU time of some calls."""
    times = []
    for _ in range(REPEATS):
        start = time.process_time()
        evaluate()
        times.append(time.process_time() - start)
    return 1e3 * min(times)
