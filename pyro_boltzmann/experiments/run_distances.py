"""The rows of a run's report that compare its draws with exact samples, each with its floor at the same size."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyro_boltzmann.diagnostics import (
    DistanceBins,
    Metric,
    WeightedSamples,
    aligned_w2,
    distance_tv,
    energy_w2,
    equal_weight_draws,
    ks_test,
    sample_w2,
    sampling_floor,
)
from pyro_boltzmann.energies.catalogue import Target
from pyro_boltzmann.exceptions import ShapeError

__all__ = ["BLOCK", "FLOOR_REPEATS", "distance_rows", "energy_distance"]

BLOCK = 10_000
FLOOR_REPEATS = 5

TRANSPORTED = 1000
"""Draws of each exact transport, whose time grows as their cube."""

ALIGNED = 200
"""The same for aligned transport of more than :data:`FEW_PARTICLES`, where every pair of draws is a search."""

FEW_PARTICLES = 4
ALIGNED_REPEATS = 3
KS_DIMENSIONS = 2


def distance_rows(
    ws: WeightedSamples, z: Tensor, exact_z: Tensor | None, exact_energy: Tensor | None, target: Target | None
) -> dict[str, Metric]:
    """``e_w2``, ``x_w2``, in two dimensions ``ks_1`` and ``ks_2``, of particles ``distance_tv`` and ``x_w2_aligned``.

    Where exact samples are missing the rows of particles are null with that reason; the others are left out.

    :param z: vectors of the draws, ``(N, dim)``.
    :param exact_z: exact samples, ``(M, dim)``.
    :param exact_energy: their energies, ``(M,)``.
    """
    rows: dict[str, Metric] = {}
    if exact_z is not None and exact_energy is not None:
        if ws.energy is not None:
            rows["e_w2"] = energy_distance(ws, exact_energy)
        rows["x_w2"] = _transport(ws, z, exact_z, sample_w2, TRANSPORTED, FLOOR_REPEATS)
        if z.shape[-1] <= KS_DIMENSIONS:
            rows |= _ks_rows(ws, z, exact_z)
    if target is not None and hasattr(target, "to_particles"):
        rows |= _particle_rows(ws, z, exact_z, target)
    return rows


def energy_distance(ws: WeightedSamples, exact: Tensor) -> Metric:
    """``e_w2``, the distance of the energies of weighted draws from those of exact ones, with its floor.

    :param exact: ``(M,)``; value and floor are of so many draws that these suffice for all repeats.
    """
    # As many weighted draws as have the Kish size of one block, so that the floor stands for the same size.
    size = min(len(exact) // (2 * FLOOR_REPEATS + 1), int(ws.ess * ws.num_samples))
    if size < 2:
        return Metric(None, reason="the effective sample size is below two draws")
    used = _spread(ws, size)
    assert ws.energy is not None
    log_weights = ws.log_weights.cpu()[used]
    if not bool(torch.isfinite(log_weights).any()):
        return Metric(None, reason="the draws taken all have zero weight")
    blocks = iter(exact.cpu().split(size))
    value = energy_w2(ws.energy.cpu()[used], next(blocks), log_weights)
    floor, _ = sampling_floor(energy_w2, lambda: next(blocks), FLOOR_REPEATS)
    return Metric(value, floor=floor, num_samples=_if_fewer(size, ws))


def _spread(ws: WeightedSamples, size: int) -> Tensor:
    """Indices of as many draws as have the Kish size ``size``, from all chains alike."""
    number = min(ws.num_samples, math.ceil(size / ws.ess))
    return torch.arange(number) * ws.num_samples // number


def _transport(
    ws: WeightedSamples, x: Tensor, exact: Tensor, metric: Callable[[Any, Any], float], size: int, repeats: int
) -> Metric:
    """A transport distance of ``size`` equally weighted draws, and that of exact samples of the same size."""
    try:
        chosen = equal_weight_draws(ws.log_weights, size, torch.Generator().manual_seed(0))
    except ShapeError as error:
        return Metric(None, reason=str(error))
    if len(exact) < (2 * repeats + 1) * size:
        return Metric(None, reason=f"needs {(2 * repeats + 1) * size} exact samples, got {len(exact)}")
    blocks = iter(exact.double().cpu().split(size))
    value = metric(x[chosen.to(x.device)].double().cpu(), next(blocks))
    floor, _ = sampling_floor(metric, lambda: next(blocks), repeats)
    return Metric(value, floor=floor, num_samples=_if_fewer(size, ws))


def _ks_rows(ws: WeightedSamples, z: Tensor, exact: Tensor) -> dict[str, Metric]:
    rows = {}
    for i in range(z.shape[-1]):
        result = ks_test(z[:, i].cpu(), exact[:, i].cpu(), ws.log_weights.cpu())
        rows[f"ks_{i + 1}"] = Metric(result.distance, floor=result.floor)
    return rows


def _particle_rows(ws: WeightedSamples, z: Tensor, exact: Tensor | None, target: Any) -> dict[str, Metric]:
    if exact is None:
        missing = Metric(None, reason=f"the target {target.name!r} has no exact samples to compare with")
        return {"distance_tv": missing, "x_w2_aligned": missing}
    particles, reference = target.to_particles(z), target.to_particles(exact)
    size = TRANSPORTED if particles.shape[-2] <= FEW_PARTICLES else ALIGNED
    return {
        "distance_tv": _distance_tv(ws, particles.double().cpu().numpy(), reference.double().cpu()),
        "x_w2_aligned": _transport(ws, particles, reference, aligned_w2, size, ALIGNED_REPEATS),
    }


def _distance_tv(ws: WeightedSamples, particles: np.ndarray[Any, Any], reference: Tensor) -> Metric:
    size = min(len(reference) // (2 * FLOOR_REPEATS + 1), int(ws.ess * ws.num_samples))
    if size < 2:
        return Metric(None, reason="the effective sample size is below two draws")
    used = _spread(ws, size)
    log_weights = ws.log_weights.cpu()[used]
    if not bool(torch.isfinite(log_weights).any()):
        return Metric(None, reason="the draws taken all have zero weight")
    # One range for the value and for every floor.
    bins = DistanceBins.spanning(reference[:size])
    blocks = iter(reference.split(size))
    value = distance_tv(particles[used.numpy()], next(blocks), log_weights, bins=bins)
    floor, _ = sampling_floor(lambda a, b: distance_tv(a, b, bins=bins), lambda: next(blocks), FLOOR_REPEATS)
    return Metric(value, floor=floor, num_samples=_if_fewer(size, ws))


def _if_fewer(size: int, ws: WeightedSamples) -> int | None:
    return size if size < ws.num_samples else None
