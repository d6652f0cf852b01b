"""How good a map of the ABC flow is: likelihoods, marginal laws, round trips, and what its densities say."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from pyro_boltzmann.diagnostics import Metric, ks_test
from pyro_boltzmann.experiments.prnf_models import SCORED, in_chunks
from pyro_boltzmann.experiments.transition_grid import LogDensity
from pyro_boltzmann.sde import FlowMap

__all__ = ["Units", "carried_densities", "ks_rows", "map_rows", "standardised_nll"]


class Units(NamedTuple):
    """Means and standard deviations of the columns of the 40,000 training pairs' final states, ``(d,)`` each."""

    mean: Tensor
    scale: Tensor

    @property
    def log_volume(self) -> float:
        """The sum of the logarithms of the standard deviations."""
        return float(self.scale.double().log().sum())


def standardised_nll(log_density: LogDensity, x0: Tensor, y: Tensor, units: Units) -> Metric:
    r"""The mean of :math:`-\log p(\tilde y \mid x_0)` over test pairs for :math:`\tilde y_i = (y_i - m_i)/s_i`,

    .. math:: -\log p(\tilde y \mid x_0) = -\log p(y \mid x_0) - \sum_i \log s_i .

    :param x0: ``(n, d)``.
    :param y: ``(n, d)``.

    >>> normal = torch.distributions.Normal(torch.zeros(2), torch.tensor([1.0, 5.0]))
    >>> y = normal.sample((100_000,))
    >>> units = Units(normal.mean, normal.stddev)
    >>> row = standardised_nll(lambda y, x0: normal.log_prob(y).sum(-1), y, y, units)
    >>> abs(row.value - (1.0 + math.log(2.0 * math.pi))) < 4.5 * row.std_error
    True
    """
    values = -in_chunks(log_density, y, x0).double()
    return Metric(float(values.mean()) - units.log_volume, float(values.std()) / math.sqrt(len(values)))


@torch.no_grad()
def carried_densities(flow_map: FlowMap, x0: Tensor, time: float, z: Tensor) -> tuple[Tensor, Tensor]:
    """States ``(n, d)`` from latents ``z``, and the log-densities that are carried along on the way there, ``(n,)``.

    For maps without boundaries.
    """
    start = flow_map.start(x0, time)
    w, ladj = flow_map.couplings(z, start.terms)
    u, ladj_linear = flow_map.linear(w, start.shift, start.lower)
    log_normal = -0.5 * z.square().sum(-1) - 0.5 * z.shape[-1] * math.log(2.0 * math.pi)
    return start.x0 + start.scale * u, log_normal - ladj - ladj_linear - start.scale.log().sum(-1)


@torch.no_grad()
def map_rows(flow_map: FlowMap, x0: Tensor, y: Tensor, time: float) -> dict[str, Metric]:
    """Round trips of test states, in units of the diffusion length, and how the density of a draw that is carried along
    in sampling differs from the one that it is given afterwards (``gap_*``)."""
    trip = in_chunks(lambda a, b: flow_map.round_trip(a, b, time).error, y, x0)
    z = torch.randn_like(x0)
    gaps = []
    for start, latent in zip(x0.split(SCORED), z.split(SCORED), strict=True):
        state, carried = carried_densities(flow_map, start, time, latent)
        gaps.append((flow_map.log_prob(state, start, time) - carried).double())
    gap = torch.cat(gaps)
    return {
        "round_trip": Metric(float(trip.max())),
        "round_trip_rms": Metric(float(trip.double().square().mean().sqrt())),
        "gap_mean": Metric(float(gap.mean())),
        "gap_sd": Metric(float(gap.std())),
        "gap_max": Metric(float(gap.abs().max())),
    }


def ks_rows(
    draw: Callable[[Tensor], Tensor], starts: Mapping[str, Tensor], references: Mapping[str, Tensor]
) -> tuple[dict[str, Metric], dict[str, Tensor]]:
    """Marginal Kolmogorov-Smirnov distances with their floors, as ``ks_LAW_1`` and so on, and the draws by law.

    :param draw: initial states to final ones.
    :param starts: initial states of each law ``(n, d)``; those of the references are others.
    :param references: simulated final states of each law.
    """
    rows, draws = {}, {}
    for name, x0 in starts.items():
        draws[name] = draw(x0)
        for index, (a, b) in enumerate(zip(draws[name].T, references[name].T, strict=True), 1):
            test = ks_test(a.double().numpy(), b.double().numpy())
            rows[f"ks_{name}_{index}"] = Metric(test.distance, floor=test.floor)
    return rows, draws
