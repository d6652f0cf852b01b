"""Resampling schemes with one signature: ``(log_weights, num_samples, generator) -> indices``."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from pyro_boltzmann.diagnostics.weights import kish_ess, normalized_weights
from pyro_boltzmann.exceptions import ShapeError

__all__ = ["RESAMPLERS", "Resampler", "equal_weight_draws", "multinomial", "systematic"]

LEAST_KISH_SHARE = 0.9

Resampler = Callable[[Tensor, int, "torch.Generator | None"], Tensor]


def systematic(log_weights: Tensor, num_samples: int, generator: torch.Generator | None = None) -> Tensor:
    r"""Indices of draws, with one uniform :math:`u` for all: the smallest :math:`i` with
    :math:`\sum_{j \le i} \bar w_j > (u + m) / M` for :math:`m = 0, \dots, M - 1`.

    Unbiased, and draw :math:`i` is taken :math:`\lfloor M \bar w_i \rfloor` or :math:`\lceil M \bar w_i \rceil` times.
    The indices ascend, so that copies of one draw stand together.

    :param log_weights: ``(N,)``.
    :returns: integer tensor ``(num_samples,)`` on the device of ``log_weights``.
    :raises NonFiniteEnergyError: if every weight is zero, or any is NaN.

    >>> systematic(torch.tensor([0.0, float("-inf"), 0.0]), 4).tolist()
    [0, 0, 2, 2]
    """
    _check_size(num_samples)
    offset = _uniform(1, generator)
    steps = torch.arange(num_samples, dtype=torch.float64, device="cpu")
    return _select(log_weights, (offset + steps) / num_samples)


def multinomial(log_weights: Tensor, num_samples: int, generator: torch.Generator | None = None) -> Tensor:
    """Independent indices with the probabilities of the normalised weights; arguments as in :func:`systematic`.

    >>> multinomial(torch.tensor([0.0, float("-inf")]), 3).tolist()
    [0, 0, 0]
    """
    _check_size(num_samples)
    return _select(log_weights, _uniform(num_samples, generator))


RESAMPLERS: dict[str, Resampler] = {"systematic": systematic, "multinomial": multinomial}
"""Resamplers by name."""


def equal_weight_draws(log_weights: Tensor, num_samples: int, generator: torch.Generator | None = None) -> Tensor:
    r"""Indices of ``num_samples`` equally weighted draws, for a distance with the floor of that many exact ones.

    Resampled systematically from *all* draws, so that few are taken twice: the Kish size :math:`M^2 / \sum_i c_i^2` of
    the counts :math:`c_i` must be at least 0.9 of :math:`M`. With fewer effective draws a distance would report
    the copies rather than the law.

    :param log_weights: ``(N,)``.
    :returns: integer tensor ``(num_samples,)``, ascending.
    :raises ShapeError: if the effective draws are too few.

    >>> equal_weight_draws(torch.tensor([0.0, float("-inf"), 0.0]), 2).tolist()
    [0, 2]
    """
    indices = systematic(log_weights, num_samples, generator)
    counts = torch.unique(indices, return_counts=True)[1].double()
    size = num_samples**2 / float(counts.square().sum())
    if size < LEAST_KISH_SHARE * num_samples:
        effective = kish_ess(log_weights) * len(log_weights)
        raise ShapeError(
            f"expected enough effective draws for {num_samples} equally weighted ones, got {effective:.0f} effective "
            f"of {len(log_weights)}, whose resampling has the Kish size {size:.0f}: draw more"
        )
    return indices


def _check_size(num_samples: int) -> None:
    if num_samples < 1:
        raise ShapeError(f"expected num_samples >= 1, got {num_samples}")


def _uniform(size: int, generator: torch.Generator | None) -> Tensor:
    device = "cpu" if generator is None else generator.device
    return torch.rand(size, dtype=torch.float64, generator=generator, device=device).cpu()


def _select(log_weights: Tensor, positions: Tensor) -> Tensor:
    cumulative = torch.from_numpy(normalized_weights(log_weights)).cumsum(0)
    cumulative = cumulative / cumulative[-1]
    # (u + M - 1) / M may round to 1, which lies beyond the last draw of positive weight.
    indices = torch.searchsorted(cumulative, positions.clamp_max(math.nextafter(1.0, 0.0)), right=True)
    return indices.to(log_weights.device)
