"""Histories of ensembles that lose their members, compared."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from scipy import optimize
from torch import Tensor

from pyro_boltzmann.diagnostics.metrics import ks_test
from pyro_boltzmann.experiments.exit_histories import ExitHistory
from pyro_boltzmann.sde.systems import RunawayElectrons

__all__ = ["compare_histories", "critical_momentum", "fraction_deviations"]

MOST_COMPARED = 20_000
"""Survivors in a Kolmogorov-Smirnov test."""
BINS = 40


def critical_momentum(electrons: RunawayElectrons | None = None) -> float:
    """The momentum above which the field is stronger than the drag on electrons that move along it.

    >>> round(critical_momentum(), 2)
    1.84
    """
    electrons = electrons or RunawayElectrons()

    def excess(p: float) -> float:
        rates = electrons.collisions.rates(torch.tensor(p, dtype=torch.float64))
        return float(electrons.field - rates.c_f)

    return float(optimize.brentq(excess, 0.5, 20.0))


def fraction_deviations(found: list[float], truth: list[float], num_found: int, num_truth: int) -> list[float]:
    r"""Differences of two independent shares in standard errors, :math:`\sqrt{\bar p (1 - \bar p) (1/n + 1/m)}`.

    >>> [round(value, 3) for value in fraction_deviations([0.5], [0.4], 100, 100)]
    [1.421]
    """
    deviations = []
    for one, other in zip(found, truth, strict=True):
        pooled = (one * num_found + other * num_truth) / (num_found + num_truth)
        error = math.sqrt(max(pooled * (1.0 - pooled), 1e-12) * (1.0 / num_found + 1.0 / num_truth))
        deviations.append((one - other) / error)
    return deviations


def compare_histories(truth: ExitHistory, found: Mapping[str, ExitHistory], critical: float) -> dict[str, Any]:
    """What a table and pictures need of a simulation and of flow maps, in JSON.

    :param critical: electrons above this momentum, which is the first coordinate, have run away.
    """

    def has_run_away(states: Tensor) -> Tensor:
        return states[:, 0] > critical

    result: dict[str, Any] = {"simulation": _summary(truth, has_run_away), "size": truth.size}
    for name, history in found.items():
        row = _summary(history, has_run_away)
        for key in ("exits", "runaways"):
            against = result["simulation"][key]
            row[f"{key}_deviations"] = fraction_deviations(row[key], against, history.size, truth.size)
        row["ks"], row["ks_floor"] = _distances(truth, history)
        result[name] = row
    return result


def _summary(history: ExitHistory, region: Callable[[Tensor], Tensor]) -> dict[str, Any]:
    last = history.survivors[-1]
    return {
        "times": history.times,
        "exits": history.exits,
        "runaways": history.shares(region),
        "cpu_seconds": history.seconds,
        "outside": history.outside / history.size,
        "histograms": [
            torch.histc(last[:, i], BINS, *ends).tolist() for i, ends in enumerate(((0.5, 8.5), (-1, 1), (0, 1)))
        ],
    }


def _distances(truth: ExitHistory, history: ExitHistory) -> tuple[list[list[float]], list[list[float]]]:
    """Kolmogorov-Smirnov distances of survivors and their floors, by time and coordinate."""
    distances, floors = [], []
    for exact, states in zip(truth.survivors, history.survivors, strict=True):
        tests = [
            ks_test(a.numpy(), b.numpy())
            for a, b in zip(states[:MOST_COMPARED].T, exact[:MOST_COMPARED].T, strict=True)
        ]
        distances.append([test.distance for test in tests])
        floors.append([test.floor for test in tests])
    return distances, floors
