"""Simulation-based calibration: ranks of true parameters among posterior draws, and a test of their uniformity."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from pyro_boltzmann.exceptions import ShapeError

__all__ = ["RankTest", "calibration_ranks", "rank_test"]


class RankTest(NamedTuple):
    r"""A :math:`\chi^2` test of uniform ranks.

    :ivar statistic: :math:`\sum_b (n_b - n/B)^2 / (n/B)`.
    :ivar p_value: probability of as large a statistic where ranks are uniform.
    :ivar counts: ranks in each of the :math:`B` bins, ``(num_bins,)``.
    """

    statistic: float
    p_value: float
    counts: tuple[int, ...]


def calibration_ranks(truth: Tensor, draws: Tensor, generator: torch.Generator | None = None) -> Tensor:
    r"""How many of L posterior draws lie below the parameter that the data were made with:

    .. math:: r = \#\{l : \theta_l < \tilde\theta\}, \qquad \tilde\theta \sim p(\theta), \;
        y \sim p(y \mid \tilde\theta), \; \theta_l \sim p(\theta \mid y) .

    Uniform on :math:`\{0, \dots, L\}` if the draws are independent and exact. Draws equal to the truth count as below
    or above by a fair choice of the rank among them.

    :param truth: ``(R, *event)``, one parameter a replication.
    :param draws: ``(R, L, *event)``.
    :return: integers ``(R, *event)``.
    :raises ShapeError: if the shapes do not match.

    Source: Talts, Betancourt, Simpson, Vehtari and Gelman, arXiv 1804.06788, theorem 1.

    >>> calibration_ranks(torch.tensor([0.5]), torch.tensor([[0.1, 0.7, 0.3]]))
    tensor([2])
    """
    if draws.dim() < 2 or draws.shape[:1] + draws.shape[2:] != truth.shape:
        raise ShapeError(
            f"expected draws (R, L, *event) for truths (R, *event), got {tuple(draws.shape)} and {tuple(truth.shape)}"
        )
    below = (draws < truth.unsqueeze(1)).sum(1)
    equal = (draws == truth.unsqueeze(1)).sum(1)
    uniform = torch.rand(equal.shape, generator=generator, dtype=torch.float64, device=equal.device)
    return below + (uniform * (equal + 1)).long()


def rank_test(ranks: ArrayLike, num_ranks: int, num_bins: int = 16) -> RankTest:
    r""":math:`\chi^2` test that ranks are uniform on :math:`\{0, \dots, \mathrm{num\_ranks} - 1\}`.

    Asymptotic: take at least five ranks a bin, better twenty.

    :param ranks: integers ``(R,)``.
    :param num_ranks: :math:`L + 1`, a multiple of ``num_bins``.
    :raises ValueError: if bins would be unequal, or a rank lies outside.

    Source: Talts et al., arXiv 1804.06788, section 4.

    >>> rank_test(range(64), 64).p_value
    1.0
    >>> rank_test([3] * 64, 64).p_value < 1e-9
    True
    """
    from scipy import stats

    array = np.asarray(ranks)
    if num_bins < 2 or num_ranks % num_bins:
        raise ValueError(f"num_bins={num_bins} must be at least two and divide num_ranks={num_ranks}")
    if array.ndim != 1 or array.size == 0 or array.min() < 0 or array.max() >= num_ranks:
        raise ValueError(f"expected ranks (R,) from 0 to {num_ranks - 1}, got shape {array.shape} of {ranks!r:.80}")
    counts = np.bincount(array.astype(np.int64) * num_bins // num_ranks, minlength=num_bins)
    result = stats.chisquare(counts)
    return RankTest(float(result.statistic), float(result.pvalue), tuple(int(n) for n in counts))
