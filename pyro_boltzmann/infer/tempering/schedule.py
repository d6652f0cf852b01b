"""Which temperature comes next, and what a finished run of sequential Monte Carlo can be repeated from."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np
from scipy.optimize import brentq
from scipy.special import softmax
from torch import Tensor

from pyro_boltzmann.diagnostics.weights import FloatArray
from pyro_boltzmann.infer.tempering.preconditioner import Preconditioner

__all__ = ["Stage", "as_numpy", "conditional_ess", "next_position"]

SMALLEST_STEP = 1e-12


@dataclass
class Stage:
    r"""One temperature of a ladder: everything that must be fixed for a run on it to be unbiased.

    :ivar position: :math:`\lambda`, from 0 (the reference) to 1 (the target).
    :ivar resample: whether the particles are resampled before they move.
    :ivar scale: the variables in which they move.
    :ivar num_steps: leapfrog steps of each move.
    :ivar step_sizes: one for each move.
    """

    position: float
    resample: bool
    scale: Preconditioner
    num_steps: int = 1
    step_sizes: list[float] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers, which JSON returns bit for bit."""
        return {**self.__dict__, "scale": self.scale.to_dict(), "step_sizes": list(self.step_sizes)}

    @classmethod
    def from_dict(cls, plain: dict[str, Any], like: Tensor) -> Stage:
        """The inverse of :meth:`to_dict`."""
        scale = Preconditioner.from_dict(plain["scale"], like)
        return cls(plain["position"], plain["resample"], scale, plain["num_steps"], list(plain["step_sizes"]))


def conditional_ess(log_weights: Tensor, increments: Tensor) -> float:
    r"""Conditional effective sample size, a fraction, averaged over chains:

    .. math:: \frac{(\sum_i W_i v_i)^2}{\sum_i W_i v_i^2}, \qquad v = e^{\mathrm{increments}}.

    Unlike the ESS of the new weights it measures the distance of two successive densities alone.

    :param log_weights: ``(num_chains, n)``, before the step.
    :param increments: ``(num_chains, n)``, what the step adds to them.

    Source: Zhou, Johansen and Aston, arXiv 1303.3123, section 3.3.

    >>> import torch
    >>> conditional_ess(torch.zeros(1, 4), torch.zeros(1, 4))
    1.0
    """
    gains = as_numpy(increments)
    return _conditional_ess(softmax(as_numpy(log_weights), axis=-1), np.exp(gains - gains.max(-1, keepdims=True)))


def _conditional_ess(weights: FloatArray, ratio: FloatArray) -> float:
    # Relative to the largest of its chain, so that nothing overflows; what underflows has no weight.
    weighted = weights * ratio
    if len(weights) == 1:
        return min(1.0, float(weighted.sum() ** 2 / (weighted[0] @ ratio[0])))
    return min(1.0, float((weighted.sum(-1) ** 2 / (weighted * ratio).sum(-1)).mean()))


def as_numpy(values: Tensor) -> FloatArray:
    """In float64: of tiny operations, NumPy's cost a fraction of torch's."""
    array: FloatArray = values.double().cpu().numpy()
    return array


def next_position(position: float, log_weights: Tensor, differences: Tensor, threshold: float) -> float:
    r"""The largest :math:`\lambda' \le 1` whose conditional ESS is at least ``threshold``, by Brent's method.

    Particles of infinite energy have weight zero at any :math:`\lambda' > 0`, whatever the step, and are left out.

    :param differences: :math:`u - u_0` of each particle, ``(num_chains, n)``.
    :param threshold: a fraction in (0, 1).

    >>> import torch
    >>> u = torch.linspace(0, 10, 100).unsqueeze(0)
    >>> 0.05 < next_position(0.0, torch.zeros(1, 100), u, 0.9) < 0.2
    True
    """
    room, weights, losses = 1.0 - position, as_numpy(log_weights), as_numpy(differences)
    alive = losses < np.inf
    if not alive.any(-1).all():
        return 1.0  # of a chain that has lost all its particles there is nothing to adapt to
    if not alive.all():
        weights, losses = np.where(alive, weights, -np.inf), np.where(alive, losses, 0.0)
    weights = softmax(weights, axis=-1)
    losses = losses.min(-1, keepdims=True) - losses

    @cache
    def excess(log_step: float) -> float:
        return _conditional_ess(weights, np.exp(math.exp(log_step) * losses)) - threshold

    # In logarithms, because the first steps from a reference into a hard core are minute. It falls with the step, like
    # 1 / (1 + step^2 Var) at first, which tells where to look.
    low, high = math.log(SMALLEST_STEP * room), math.log(room)
    with np.errstate(over="ignore"):  # near a hard core a squared energy may be too large for a number
        variance = float((weights * (losses - (weights * losses).sum(-1, keepdims=True)) ** 2).sum(-1).mean())
    guess = 0.5 * math.log((1.0 / threshold - 1.0) / variance) if 0.0 < variance < math.inf else math.inf
    for edge in (guess - 0.1, guess + 0.1):
        if low < edge < high:
            low, high = (edge, high) if excess(edge) >= 0.0 else (low, edge)
    if excess(high) >= 0.0:
        return 1.0
    return min(1.0, position + math.exp(brentq(excess, low, high, xtol=1e-3) if excess(low) > 0.0 else low))
