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
    r""":math:`\log Z = -\int_0^1 E_\lambda[u - u_0]\, d\lambda` by the trapezoidal rule with its end correction from
    the variances, :math:`\tfrac{h^2}{12}\,(\mathrm{Var}_{\lambda_{k+1}} - \mathrm{Var}_{\lambda_k})`, since
    :math:`dE_\lambda[u - u_0] / d\lambda = -\mathrm{Var}_\lambda[u - u_0]`.

    An independent check of :func:`ladder_log_z` where the first mean exists; across a hard core it does not, and
    the first interval is taken by exponential averaging from its lower end.

    :param differences: ``(K, T)``.

    Source: Kirkwood, Statistical mechanics of fluid mixtures (1935).
    """
    ladder, d = np.asarray(positions), np.asarray(differences, dtype=np.float64)
    steps, means, variances = np.diff(ladder), d.mean(1), d.var(1)
    total = float(logsumexp(-steps[0] * d[0]) - np.log(d.shape[1]))
    for k in range(1, len(steps)):
        h = steps[k]
        total += -0.5 * h * (means[k] + means[k + 1]) + h**2 / 12.0 * (variances[k] - variances[k + 1])
    return total
