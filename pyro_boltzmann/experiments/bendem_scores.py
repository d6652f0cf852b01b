"""How far a learned score is from that of the noised target, by noise level."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pyro_boltzmann.energies.catalogue import Target
from pyro_boltzmann.energies.evaluation import energy_and_gradient
from pyro_boltzmann.experiments.run_metrics import stream_seed
from pyro_boltzmann.guides import AutoDiffusion
from pyro_boltzmann.infer.randomness import seeded

__all__ = ["score_errors"]

LEVELS = 24
STATES = 1000


@torch.no_grad()
def score_errors(
    guide: AutoDiffusion, target: Target, x0: Tensor, seed: int, *, num_states: int = STATES
) -> dict[str, list[float]]:
    r"""Measures of the score at states :math:`x = x_0 + \sigma z`, over even steps of :math:`\log \sigma`.

    ``loss`` is :math:`\min_a \frac{\sigma^2}{d} E |s(x) - a A - (1 - a) B|^2` with :math:`A = -\nabla u(x_0)` and
    :math:`B = (x_0 - x) / \sigma^2`, whose means given x are the true score: it is never below the same mean square of
    the score's error, which is twice the Kullback-Leibler divergence of the reverse process for each dimension and unit
    of :math:`\log \sigma^2`. ``error`` is the root mean square of the error relative to that of the exact score, for
    targets whose noised energy is known (``noised_energy``).

    :param x0: draws of the target, ``(n, dim)``.
    :return: lists over levels: ``sigma``, ``loss`` and, where known, ``error``.
    """
    x0 = x0[:num_states].to(guide.base_loc)
    _, gradient = energy_and_gradient(target.energy, x0)
    h = guide.variances
    levels = torch.logspace(float(h[-2].log10()), float(h[0].log10()), LEVELS, dtype=torch.float64).tolist()
    curves: dict[str, list[float]] = {"sigma": [level**0.5 for level in levels], "loss": []}
    with seeded(stream_seed(seed, "score errors")):
        for level in levels:
            x = x0 + level**0.5 * torch.randn_like(x0)
            score = guide.field.score_and_spread(x, level)[0].double()
            tweedie = ((x0 - x) / level).double()
            curves["loss"].append(level * _least_loss(score - tweedie, -gradient.double() - tweedie))
            if hasattr(target, "noised_energy"):
                curves.setdefault("error", []).append(_relative_error(target, x, level, score))
    return curves


def _least_loss(residual: Tensor, difference: Tensor) -> float:
    """Mean square of ``residual - a difference`` for the best a between 0 and 1."""
    finite = residual.isfinite().all(-1) & difference.isfinite().all(-1)
    residual, difference = residual[finite], difference[finite]
    a = ((residual * difference).sum() / difference.square().sum().clamp_min(1e-300)).clamp(0.0, 1.0)
    return float((residual - a * difference).square().mean())


def _relative_error(target: Any, x: Tensor, level: float, score: Tensor) -> float:
    _, gradient = energy_and_gradient(lambda y: target.noised_energy(y, level), x.double())
    exact = -gradient
    return float((score - exact).square().mean().sqrt() / exact.square().mean().sqrt())
