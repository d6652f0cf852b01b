"""What a pseudo-reversible flow has to show on test transitions, as rows of a report."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pyro_boltzmann.diagnostics import Metric
from pyro_boltzmann.experiments.prnf_models import in_chunks
from pyro_boltzmann.transforms import PseudoReversibleFlow

__all__ = ["MASS_STARTS", "nll_row", "pair_rows", "pooled_mass"]

MASS_STARTS, MASS_DRAWS = 8, 4096
GAP_STARTS, GAP_DRAWS = 200, 50
POLISHED = 2000


@torch.no_grad()
def pair_rows(flow: PseudoReversibleFlow, x0: Tensor, y: Tensor) -> dict[str, Metric]:
    r"""Masses, folds, the gap of its two densities and the round trips, plain and polished.

    ``round_trip_rms`` and ``round_trip`` (the maximum) are of :math:`g(x_0, h(x_0, y)) - y`, a component and a row, in
    standard deviations of the columns; ``polished_round_trip`` is the largest :math:`|h(x_0, y') - z|_i` of polished
    draws :math:`y'` that were accepted, ``polished_refused`` the share of the others. ``gap_mean`` and ``gap_sd`` are
    those of :math:`\log\hat p_h - \log\hat p_g` at draws of g.

    :param x0: test initial states ``(n, d)``.
    :param y: their ends.
    """
    context, target = flow.context_units.standard(x0), flow.units.standard(y)
    square = in_chunks(lambda c, t: (flow.g(c, flow.h(c, t)) - t).square().mean(-1), context, target)
    largest = in_chunks(flow.round_trip, y, x0)
    gap = flow.density_gap(x0[:GAP_STARTS], num_samples=GAP_DRAWS).values.double()
    folds = flow.folds(y[:POLISHED], x0[:POLISHED])
    polished = flow.polish(torch.randn_like(y[:POLISHED]), x0[:POLISHED])
    residual = polished.residual[polished.accepted]
    return {
        "mass": pooled_mass(*flow.mass(x0[:MASS_STARTS], num_samples=MASS_DRAWS)),
        "round_trip_rms": Metric(float(square.mean().sqrt())),
        "round_trip": Metric(float(largest.max())),
        "polished_round_trip": Metric(float(residual.max()) if len(residual) else math.nan),
        "polished_refused": Metric(1.0 - float(polished.accepted.double().mean())),
        "gap_mean": Metric(float(gap.mean())),
        "gap_sd": Metric(float(gap.std())),
        "folds": Metric(float(folds.minority)),
    }


def pooled_mass(values: Tensor, std_errors: Tensor) -> Metric:
    """The mean of independent masses and its standard error.

    >>> pooled_mass(torch.tensor([1.0, 3.0]), torch.tensor([3.0, 4.0]))
    Metric(value=2.0, std_error=2.5, floor=None, truth=1.0, reason=None, num_samples=None)
    """
    error = float(std_errors.double().square().sum().sqrt()) / len(values)
    return Metric(float(values.double().mean()), error, truth=1.0)


def nll_row(log_prob: Tensor, log_volume: float = 0.0, truth: float | None = None) -> Metric:
    r"""Mean negative log-likelihood with its standard error.

    :param log_volume: :math:`\sum_i \log s_i`, for columns in units of :math:`s_i`.
    """
    values = -log_prob.double()
    return Metric(float(values.mean()) - log_volume, float(values.std()) / math.sqrt(len(values)), truth=truth)
