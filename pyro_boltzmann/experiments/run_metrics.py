"""Every row of a sampling run's report that its draws, its target's truths and exact samples allow."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from pyro_boltzmann.diagnostics import (
    Metric,
    Truth,
    WeightedSamples,
    delta_f,
    mode_mass_tv,
    modes_found,
    virial,
    weight_metrics,
)
from pyro_boltzmann.diagnostics.report import Quality
from pyro_boltzmann.energies.catalogue import Target
from pyro_boltzmann.energies.evaluation import Energy, energy_and_gradient, energy_value
from pyro_boltzmann.exceptions import EnergyError
from pyro_boltzmann.experiments.run_distances import BLOCK, FLOOR_REPEATS, distance_rows

__all__ = ["ExactDraws", "draw_exact", "failures_of", "log_z_truth", "run_metrics", "stream_seed"]

GRADIENT_DRAWS = 20_000


def stream_seed(seed: int, purpose: str) -> int:
    """A seed for one purpose: parameters, draws and exact samples of a run must not share their random numbers."""
    return int.from_bytes(hashlib.sha256(f"{seed} {purpose}".encode()).digest()[:7])


@dataclass(frozen=True)
class ExactDraws:
    """Exact samples of the target ``(n, dim)`` and their energies ``(n,)``."""

    z: Tensor
    energy: Tensor


@torch.no_grad()
def draw_exact(target: Target | None, num_samples: int, seed: int) -> ExactDraws | None:
    """Exact samples for comparison, enough for a distance with its floor; ``None`` where there is no exact sampler.

    :param num_samples: of the run.
    :param seed: of the run.
    """
    if target is None or not target.has_exact_sampler:
        return None
    number = (2 * FLOOR_REPEATS + 1) * min(num_samples, BLOCK)
    z = target.sample(
        number, generator=torch.Generator().manual_seed(stream_seed(seed, "exact")), dtype=torch.get_default_dtype()
    )
    return ExactDraws(z, energy_value(target.energy, z))


def log_z_truth(target: Target | None) -> Truth | None:
    """The known log Z with its error and its standing."""
    return None if target is None else _truth(target, target.log_z, target.log_z_error)


def run_metrics(
    ws: WeightedSamples,
    z: Tensor,
    energy: Energy | None,
    *,
    target: Target | None = None,
    exact: ExactDraws | None = None,
    reverse_log_weights: Tensor | None = None,
) -> dict[str, Metric]:
    """The metrics of weighted draws.

    :param ws: the draws.
    :param z: their unconstrained vectors, ``(N, dim)``.
    :param energy: the energy on these, for the virial; ``None`` leaves the virial out.
    :param target: where truths are known.
    :param exact: exact samples, or reference samples, for the distances.
    :param reverse_log_weights: of paths run backwards from exact samples, for ``eubo`` and ``forward_ess``.
    """
    rows = weight_metrics(ws, reverse_log_weights=reverse_log_weights, log_z=log_z_truth(target))
    if ws.energy is not None:
        energies = ws.energy
        mean, error = ws.expectation(lambda *_: energies)
        truth = None if target is None else _truth(target, target.mean_energy, target.mean_energy_error)
        rows["mean_energy"] = Metric(float(mean), float(error), truth=truth)
    if energy is not None:
        rows["virial"] = _virial(ws, z, energy, z.shape[-1] if target is None else target.virial_dof)
    rows |= distance_rows(ws, z, None if exact is None else exact.z, None if exact is None else exact.energy, target)
    if target is not None:
        rows |= _mode_rows(ws, z, target)
    return rows


def failures_of(rows: dict[str, Metric]) -> list[str]:
    """A log Z that misses an exact or certified truth is a failure that neither k-hat nor ESS can see."""
    row = rows["log_z"]
    truth = row.truth
    if not isinstance(truth, Truth) or truth.quality not in ("exact", "certified") or row.value is None:
        return []
    error = row.std_error or 0.0  # infinite where a single draw tells nothing
    miss = abs(row.value - truth.value)
    if miss <= 4.5 * math.hypot(error, truth.std_error) + 1e-4:
        return []
    return [
        f"log_z: {row.value:.4f} misses the {truth.quality} value {truth.value:.4f} by {miss:.2g}, more than 4.5 "
        "standard errors: part of the target was not sampled"
    ]


def _truth(target: Target, value: float | None, error: float) -> Truth | None:
    known: dict[str, Quality] = {"exact": "exact", "certified": "certified", "measured": "measured"}
    return None if value is None else Truth(value, error, known.get(target.log_z_origin, "bound"))


def _virial(ws: WeightedSamples, z: Tensor, energy: Energy, dof: int) -> Metric:
    if ws.num_nonfinite:
        reason = "not valid across walls: some draws have energy +inf"
        return Metric(None, truth=float(dof), reason=reason)
    number = min(ws.num_samples, GRADIENT_DRAWS)
    part = torch.arange(number) * ws.num_samples // number  # from all chains alike
    try:
        with torch.no_grad():
            _, gradient = energy_and_gradient(energy, z[part])
    except EnergyError as error:
        return Metric(None, truth=float(dof), reason=str(error))
    groups = None if ws.groups is None else ws.groups[part]
    value, std_error = virial(z[part].cpu(), gradient.cpu(), ws.log_weights.cpu()[part], groups=groups)
    fewer = GRADIENT_DRAWS if ws.num_samples > GRADIENT_DRAWS else None
    return Metric(value, std_error, truth=float(dof), num_samples=fewer)


def _mode_rows(ws: WeightedSamples, z: Tensor, target: Target) -> dict[str, Metric]:
    rows: dict[str, Metric] = {}
    if target.delta_f is None and target.mode_probabilities is None:
        return rows
    mode = target.mode_assignment(z).cpu().numpy()
    log_weights = ws.log_weights.cpu()
    if target.delta_f is not None:
        rows["delta_f"] = Metric(*delta_f(mode == 1, mode == 0, log_weights), truth=target.delta_f)
    if target.mode_probabilities is not None:
        masses = target.mode_probabilities.double().cpu().numpy()
        floor = _mode_mass_floor(masses / masses.sum(), max(1, int(ws.ess * ws.num_samples)))
        rows["mode_mass_tv"] = Metric(mode_mass_tv(mode, masses, log_weights), floor=floor, truth=0.0)
        rows["modes_found"] = Metric(modes_found(mode, len(masses), log_weights), truth=float(len(masses)))
    return rows


def _mode_mass_floor(masses: np.ndarray[tuple[int], np.dtype[np.float64]], size: int) -> float:
    """The expected distance of ``size`` exact draws from the exact masses."""
    counts = np.random.default_rng(0).multinomial(size, masses, size=50)
    return float((0.5 * np.abs(counts / size - masses).sum(1)).mean())
