"""The ladder of parallel tempering: where its temperatures stand, and what passes along it."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike
from scipy.interpolate import PchipInterpolator
from scipy.special import logsumexp

from pyro_boltzmann.diagnostics.bennett import bennett_log_normalizer
from pyro_boltzmann.diagnostics.weights import FloatArray

__all__ = ["barrier", "equalise", "ladder_log_z", "thermodynamic_integral"]


def barrier(rejections: ArrayLike) -> float:
    r"""The communication barrier :math:`\Lambda = \sum_k r_k` of a ladder whose neighbours reject a swap with
    probabilities :math:`r_k`. The best non-reversible ladder has about :math:`2 \Lambda + 1` temperatures.

    Source: Syed, Bouchard-Cote, Deligiannidis and Doucet, arXiv 1905.02939.
    """
    return float(np.sum(rejections))


def equalise(positions: ArrayLike, rejections: ArrayLike, number: int | None = None) -> FloatArray:
    r"""Positions :math:`0 = \lambda_0 < \dots < \lambda_{K-1} = 1` between which swaps are rejected equally often.

    The cumulative rejection is interpolated by a monotone cubic and inverted at equal spacings.

    :param positions: the present ladder, ``(K,)``.
    :param rejections: between neighbours, ``(K - 1,)``.
    :param number: of temperatures; as many as there are.

    Source: Syed et al., arXiv 1905.02939, section 5.

    >>> equalise([0.0, 0.5, 1.0], [0.5, 0.5]).tolist()
    [0.0, 0.5, 1.0]
    """
    ladder = np.asarray(positions, dtype=np.float64)
    # A pair that is never rejected would make the inverse undefined.
    steps = np.maximum(np.asarray(rejections, dtype=np.float64), 1e-3)
    passed = np.concatenate([[0.0], np.cumsum(steps)])
    inverse = PchipInterpolator(passed, ladder)
    new: FloatArray = inverse(np.linspace(0.0, passed[-1], number or len(ladder)))
    new[0], new[-1] = 0.0, 1.0
    return new


def ladder_log_z(positions: ArrayLike, differences: ArrayLike) -> float:
    r""":math:`\log Z` by Bennett's acceptance ratio between neighbours, each half of the ladder's samples used twice.

    :param positions: :math:`\lambda_k`, ``(K,)``, from 0 to 1; the reference at 0 is normalised.
    :param differences: :math:`u - u_0` of samples at each temperature, ``(K, T)``.

    Source: Bennett, Efficient estimation of free energy differences from Monte Carlo data (1976).
    """
    ladder, d = np.asarray(positions), np.asarray(differences, dtype=np.float64)
    total = 0.0
    for k, step in enumerate(np.diff(ladder)):
        # A sample of infinite energy has weight zero further up, and cannot occur there.
        total += bennett_log_normalizer(-step * d[k], -step * d[k + 1])[0]
    return total


def thermodynamic_integral(positions: ArrayLike, differences: ArrayLike) -> float:
    r""":math:`\log Z = -\int_0^1 E_\lambda[u - u_0]\, d\lambda`, as :math:`-\int f\, dt` of
    :math:`f = \lambda E_\lambda[u - u_0]` over :math:`t = \log \lambda`.

    The trapezoidal rule with its end correction :math:`\tfrac{h^2}{12} (f'_k - f'_{k+1})`, where
    :math:`f' = \lambda E_\lambda - \lambda^2 \operatorname{Var}_\lambda`. An independent check of
    :func:`ladder_log_z`, with an error of its own where the ladder is coarse. The interval from the reference, across
    which a mean need not exist, is taken by exponential averaging.

    :param differences: ``(K, T)``.

    Source: Kirkwood, Statistical mechanics of fluid mixtures (1935).
    """
    ladder, d = np.asarray(positions), np.asarray(differences, dtype=np.float64)
    total = float(logsumexp(-ladder[1] * d[0]) - np.log(d.shape[1]))
    upper = ladder[1:]
    f = upper * d[1:].mean(1)
    slope = f - upper**2 * d[1:].var(1)
    h = np.diff(np.log(upper))
    total -= float((0.5 * h * (f[:-1] + f[1:]) + h**2 / 12.0 * (slope[:-1] - slope[1:])).sum())
    return total
