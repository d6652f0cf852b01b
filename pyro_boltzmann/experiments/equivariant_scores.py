"""What a trained flow is worth: its likelihood of unseen data, and its draws weighed against the energy."""

from __future__ import annotations

import math
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from pyro_boltzmann.diagnostics import Metric, Truth, WeightedSamples, weight_metrics
from pyro_boltzmann.diagnostics.atomic import write_atomically
from pyro_boltzmann.energies.catalogue.particles import ParticleTarget
from pyro_boltzmann.energies.evaluation import energy_value
from pyro_boltzmann.experiments.bendem_rows import from_plain, to_plain
from pyro_boltzmann.experiments.equivariant_training import Cost, likelihoods
from pyro_boltzmann.experiments.run_distances import energy_distance
from pyro_boltzmann.experiments.run_metrics import log_z_truth
from pyro_boltzmann.guides import AutoStochasticFlow
from pyro_boltzmann.infer import importance_sample
from pyro_boltzmann.transforms.continuous import ContinuousTransform
from pyro_boltzmann.transforms.continuous.network_field import NetworkField

__all__ = ["excess_metric", "nll_metric", "score", "scored_rows"]

DRAW_STEPS, DENSITY_STEPS = 10, 16
"""Runge-Kutta steps of draws, whose weights are those of the discrete map, and of log-densities of data."""
EXACT_STEPS = 20
"""Runge-Kutta steps of draws of fields whose divergence is in closed form."""


def nll_metric(log_q: Tensor, target: ParticleTarget, rows: Tensor) -> Metric:
    r"""The negative log-likelihood of data under a flow, per datum on the mean-free subspace, normalised.

    Its truth is the entropy :math:`\log Z + E[u]`, the least that it can be on average; its floor is the same on these
    very data, :math:`\log Z + \bar u`. Draws of parallel tempering are correlated a little, which the error leaves out.

    :param log_q: ``(n,)``.
    :param rows: the data, ``(n, dim)``.
    """
    log_z, entropy, floor = target.log_z, None, None
    if log_z is not None:
        floor = log_z + float(energy_value(target.energy, rows).double().mean())
        if target.mean_energy is not None:
            quality = log_z_truth(target)
            assert quality is not None
            error = math.hypot(target.log_z_error, target.mean_energy_error)
            entropy = replace(quality, value=log_z + target.mean_energy, std_error=error)
    return Metric(
        -float(log_q.mean()),
        float(log_q.std()) / math.sqrt(len(log_q)) if len(log_q) > 1 else None,
        truth=entropy,
        floor=floor,
        num_samples=len(log_q),
    )


def excess_metric(log_q: Tensor, target: ParticleTarget, rows: Tensor) -> Metric:
    r"""How far the likelihood is from the best, datum by datum:

    .. math:: \mathrm{KL}(p \,\|\, q) = E_p[\log p(x) - \log q(x)], \qquad \log p = -u - \log Z ,

    with a smaller error than the likelihood's own, since both vary together. Never negative but for chance.

    :param log_q: ``(n,)``, like the data in ``rows`` ``(n, dim)``.
    """
    assert target.log_z is not None
    excess = -energy_value(target.energy, rows).double() - target.log_z - log_q
    error = float(excess.std()) / math.sqrt(len(excess)) if len(excess) > 1 else None
    return Metric(float(excess.mean()), error, truth=0.0, num_samples=len(excess))


def scored_rows(plain: dict[str, Any]) -> dict[str, Metric]:
    r"""The rows that :func:`score` gave, back from JSON, with ``nll_controlled``: the likelihood with the energy as
    control variate,

    .. math:: \log Z + E_p[u] + \overline{\log p - \log q},

    the mean of the excess beside the known entropy. It estimates the same as ``nll``, without the chance that these
    very data lie high or low.
    """
    rows = {name: from_plain(row) for name, row in plain.items()}
    nll, excess = rows.get("nll"), rows.get("nll_excess")
    if nll is not None and excess is not None and isinstance(nll.truth, Truth) and excess.value is not None:
        error = math.hypot(excess.std_error or 0.0, nll.truth.std_error or 0.0)
        controlled = replace(nll, value=nll.truth.value + excess.value, std_error=error, floor=nll.truth.value)
        names = list(rows)
        names.insert(names.index("nll_excess"), "nll_controlled")
        rows["nll_controlled"] = controlled
        return {name: rows[name] for name in names}
    return rows


@torch.no_grad()
def score(
    guide: AutoStochasticFlow,
    target: ParticleTarget,
    test: Tensor,
    *,
    num_samples: int,
    seed: int,
    cost: Cost | None = None,
    save_to: Path | None = None,
    keep_to: Path | None = None,
    draw_steps: int = DRAW_STEPS,
    density_steps: int = DENSITY_STEPS,
) -> dict[str, Any]:
    """Rows of a report in JSON: ``nll`` of test data and its excess, ``log_z``, ``ess``, ``khat``, ``e_w2`` and others
    of the weighted draws, and what training and scoring cost.

    :param draw_steps: Runge-Kutta steps of draws of a network, whose weights are exact for any number.
    :param density_steps: of log-densities of data.
    :param save_to: netCDF file for the draws.
    :param keep_to: safetensors file for the draws, for pictures.
    """
    start = time.process_time()
    for block in guide.get_transform().blocks:
        if isinstance(block, ContinuousTransform):
            block.configure(num_steps=density_steps, divergence="exact", solver="dto", method="rk4")
    log_q = likelihoods(guide, test)
    rows = {"nll": nll_metric(log_q, target, test)}
    if target.log_z is not None:
        rows["nll_excess"] = excess_metric(log_q, target, test)
    for block in guide.get_transform().blocks:
        if isinstance(block, ContinuousTransform):
            is_network = isinstance(block.field, NetworkField)
            steps = draw_steps if is_network else EXACT_STEPS
            block.configure(num_steps=steps, divergence="jacobian" if is_network else "exact")
    draws = importance_sample(target.model(), guide, num_samples=num_samples, seed=seed, save_to=save_to)
    rows |= weight_metrics(draws, log_z=log_z_truth(target))
    rows["mean_energy"] = _mean_energy(draws, target)
    rows["e_w2"] = energy_distance(draws, energy_value(target.energy, test))
    if keep_to is not None:
        _keep(draws, keep_to)
    rows["score_seconds"] = Metric(time.process_time() - start)
    if cost is not None:
        rows["train_seconds"] = Metric(cost.seconds)
        rows["cpu_seconds"] = Metric(cost.cpu_seconds)
        rows["updates"] = Metric(float(cost.updates))
    return {"rows": {name: to_plain(row) for name, row in rows.items()}, "gradients": cost.gradients if cost else 0}


def _mean_energy(draws: WeightedSamples, target: ParticleTarget) -> Metric:
    energies = draws.energy
    assert energies is not None
    mean, error = draws.expectation(lambda *_: energies)
    truth = None
    if target.mean_energy is not None:
        quality = log_z_truth(target)
        truth = Truth(target.mean_energy, target.mean_energy_error, quality.quality if quality else "measured")
    return Metric(float(mean), float(error), truth=truth)


def _keep(draws: WeightedSamples, path: Path) -> None:
    assert draws.energy is not None and draws.log_q is not None
    tensors = {"z": draws.info["z"], "energy": draws.energy, "log_weights": draws.log_weights, "log_q": draws.log_q}
    kept = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    write_atomically(path, lambda temporary: save_file(kept, temporary))
