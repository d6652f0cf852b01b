"""The trajectory-balance loss: log-variance with a learned normaliser."""

from __future__ import annotations

import math
from typing import Any, cast

import pyro
import torch
from pyro.poutine.runtime import am_i_wrapped
from torch import Tensor, nn

from pyro_boltzmann.guides import AutoStochasticFlow
from pyro_boltzmann.infer.objectives.log_variance import LogVariance

__all__ = ["TrajectoryBalance"]


class TrajectoryBalance(LogVariance):
    r"""The mean square of what keeps paths from balancing,

    .. math:: \mathcal L = E_r\bigl[(\log w_\theta - \log \hat Z)^2\bigr],

    with a learned number :math:`\log \hat Z`, which ends at :math:`\log Z` where the guide is the target. At its best
    value this is twice the :class:`LogVariance`; a number learned over many batches is a calmer baseline than the mean
    of one, at the price of having to follow the guide.

    In :func:`~pyro_boltzmann.fit` :math:`\log \hat Z` learns ten times as fast as the guide (unless ``optimizer`` is
    given); in Pyro's ``SVI`` it is the parameter ``TrajectoryBalance.log_z``.

    :param num_particles: paths per evaluation.
    :param log_z: where to start; the mean log weight of the first batch if not given.
    :param settings: those of :class:`LogVariance`.

    Source: Malkin, Jain, Bengio, Sun and Bengio, arXiv 2201.13259.

    >>> import pyro_boltzmann as pb
    >>> from pyro_boltzmann.transforms import ElementwiseAffine
    >>> model = pb.BoltzmannModel(lambda x: 0.5 * x.square().sum(-1), 2)
    >>> guide = pb.AutoStochasticFlow(model, lambda energy, dim: [ElementwiseAffine(dim)])
    >>> objective = TrajectoryBalance(64)
    >>> loss = objective.loss(model, guide)
    >>> round(objective.log_z, 4)  # log 2 pi
    1.8379
    """

    def __init__(self, num_particles: int = 256, *, log_z: float | None = None, **settings: Any) -> None:
        super().__init__(num_particles, **settings)
        self._start_log_z = math.nan if log_z is None else float(log_z)
        self._log_z = nn.Parameter(torch.tensor(self._start_log_z))

    @property
    def log_z(self) -> float:
        r""":math:`\log \hat Z`; NaN before the first evaluation, unless it was given."""
        return float(self._log_z.detach())

    def parameters(self) -> list[nn.Parameter]:
        return [self._log_z]

    def begin(self) -> None:
        super().begin()
        with torch.no_grad():
            self._log_z.fill_(self._start_log_z)

    def settings(self) -> dict[str, Any]:
        start = None if math.isnan(self._start_log_z) else self._start_log_z
        return {**super().settings(), "log_z": start}

    def _log_weights(self, guide: AutoStochasticFlow, *args: Any, **kwargs: Any) -> Tensor:
        if am_i_wrapped():  # what Pyro's SVI trains it has to be told of
            self._log_z = cast(nn.Parameter, pyro.param("TrajectoryBalance.log_z", self._log_z))
        return super()._log_weights(guide, *args, **kwargs)

    def _reduce(self, log_weight: Tensor) -> Tensor:
        if self._log_z.isnan():
            with torch.no_grad():
                self._log_z.copy_(log_weight.mean())
        return (log_weight - self._log_z).square().mean()
