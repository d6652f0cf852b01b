"""Distances of weighted draws from reference samples, at a fixed Kish size, each with its floor and its spread."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyro_boltzmann.diagnostics import (
    DistanceBins,
    Metric,
    WeightedSamples,
    distance_tv,
    energy_w2,
    equal_weight_draws,
    sample_w2,
)
from pyro_boltzmann.energies.catalogue import Target
from pyro_boltzmann.exceptions import ShapeError
from pyro_boltzmann.experiments.bendem_references import References

__all__ = ["floors", "reference_distances"]

TRANSPORTS = 3
"""Reference blocks that X-W2 is averaged over; each costs as much as a floor."""
LARGEST = 12_000_000
"""Pairs in an exact transport; for more, the draws are resampled."""

Distance = Callable[..., float]


@dataclass
class _Kind:
    """A distance, the sets it works on, how many blocks its value is averaged over, and its floors by size."""

    distance: Distance
    first: Any
    second: Any
    draws: Any
    blocks: int
    floors: dict[int, tuple[float, float]] = field(default_factory=dict)


def reference_distances(
    ws: WeightedSamples, z: Tensor, target: Target, references: References, size: int
) -> dict[str, Metric]:
    """``e_w2`` and, of particles, ``distance_tv``, otherwise ``x_w2``; and with ``_raw`` the same without weights.

    N/ESS draws are taken, whose Kish size is that of the floor's N draws; where the draws are too few for that, as many
    as there are, with a floor of their size. The value is the mean over blocks of the first reference set.

    :param z: vectors of the draws, ``(N, dim)``.
    :param size: N of the floor.
    """
    rows: dict[str, Metric] = {}
    for name, kind in _kinds(ws, z, target, references, size).items():
        rows[name] = _weighted(ws, kind, size)
        rows[f"{name}_raw"] = _value(kind, torch.arange(min(size, ws.num_samples)), None, min(size, ws.num_samples))
    return rows


def floors(target: Target, references: References, size: int) -> dict[str, tuple[float, float]]:
    """Mean and standard deviation of each distance between blocks of ``size`` of the two reference sets."""
    nothing = WeightedSamples(references.first.z, torch.zeros(len(references.first.z)), energy=references.first.energy)
    kinds = _kinds(nothing, references.first.z, target, references, size)
    return {name: _floor(kind, size) for name, kind in kinds.items()}


def _kinds(ws: WeightedSamples, z: Tensor, target: Target, references: References, size: int) -> dict[str, _Kind]:
    first, second = references.first, references.second
    assert ws.energy is not None
    repeats = max(1, len(first.z) // size)
    kinds = {"e_w2": _Kind(energy_w2, _array(first.energy), _array(second.energy), _array(ws.energy), repeats)}
    if not hasattr(target, "to_particles"):
        kinds["x_w2"] = _Kind(sample_w2, _array(first.z), _array(second.z), _array(z), min(repeats, TRANSPORTS))
        return kinds
    known, others, drawn = (_array(target.to_particles(x)) for x in (first.z, second.z, z))
    # One range for the value and for every floor.
    bins = DistanceBins.spanning(known[:size])

    def tv(x: Any, y: Any, log_weights: Any = None) -> float:
        return distance_tv(x, y, log_weights, bins=bins)

    kinds["distance_tv"] = _Kind(tv, known, others, drawn, repeats)
    return kinds


def _weighted(ws: WeightedSamples, kind: _Kind, size: int) -> Metric:
    size = min(size, int(ws.ess * ws.num_samples))
    if size < 2:
        return Metric(None, reason="the effective sample size is below two draws")
    number = min(ws.num_samples, math.ceil(size / ws.ess))
    used, log_weights = torch.arange(number), ws.log_weights.cpu()[:number]
    if not bool(torch.isfinite(log_weights).any()):
        return Metric(None, reason="the draws taken all have zero weight")
    if kind.distance is sample_w2 and number * size > LARGEST:
        return _resampled(ws, kind, size)
    try:
        return _value(kind, used, log_weights, size)
    except ImportError:  # exact transport of weighted draws needs the extra eval
        return _resampled(ws, kind, size)


def _resampled(ws: WeightedSamples, kind: _Kind, size: int) -> Metric:
    try:
        chosen = equal_weight_draws(ws.log_weights, size, torch.Generator().manual_seed(0))
    except ShapeError as error:
        return Metric(None, reason=str(error))
    return _value(kind, chosen.cpu(), None, size)


def _value(kind: _Kind, used: Tensor, log_weights: Tensor | None, size: int) -> Metric:
    draws = kind.draws[used.numpy()]
    if not np.isfinite(draws).all():
        return Metric(None, reason="some draws have energy +inf")
    weights = None if log_weights is None else log_weights.numpy()
    values = [kind.distance(draws, kind.first[k * size : (k + 1) * size], weights) for k in range(kind.blocks)]
    floor, _ = _floor(kind, size)
    return Metric(float(np.mean(values)), floor=floor, num_samples=size)


def _floor(kind: _Kind, size: int) -> tuple[float, float]:
    if size not in kind.floors:
        kind.floors[size] = _measure_floor(kind, size)
    return kind.floors[size]


def _measure_floor(kind: _Kind, size: int) -> tuple[float, float]:
    number = max(1, len(kind.first) // size)
    blocks = [slice(k * size, (k + 1) * size) for k in range(number)]
    values = [kind.distance(kind.first[block], kind.second[block]) for block in blocks]
    return float(np.mean(values)), float(np.std(values, ddof=1)) if number > 1 else math.nan


def _array(x: Tensor) -> Any:
    return x.detach().double().cpu().numpy()
