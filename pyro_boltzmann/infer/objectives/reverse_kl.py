"""Reverse KL: the negative ELBO of streamed paths."""

from __future__ import annotations

from typing import Any

from pyro.infer import Trace_ELBO
from torch import Tensor

from pyro_boltzmann.guides import AutoStochasticFlow
from pyro_boltzmann.infer.objectives.path_objective import PathObjective
from pyro_boltzmann.infer.objectives.plates import learn_plates

__all__ = ["ReverseKL"]


class ReverseKL(PathObjective):
    r"""Pyro's ``Trace_ELBO`` for a stochastic flow, taken on the streamed path,

    .. math:: \mathcal L = -E_q[\log w] = D_{KL}(q \,\|\, \pi \times r) - \log Z .

    Same value and, for ``"pathwise"`` blocks, same gradient as ``Trace_ELBO(num_particles, vectorize_particles=True)``,
    without the joint vector of the noise; blocks with ``gradient="score"`` get their unbiased gradient, which no
    ``Trace_ELBO`` can give them. For any other guide it is ``Trace_ELBO``. Where the energy is +inf the loss is
    infinite; such paths are left out, so that the rest can train.

    :param num_particles: paths per evaluation.

    Source: Wu, Koehler and Noe, arXiv 2002.06707, equation 19.

    >>> import torch, pyro_boltzmann as pb, pyro.distributions.transforms as T
    >>> model = pb.BoltzmannModel(lambda x: 0.5 * x.square().sum(-1), 2)
    >>> guide = pb.AutoStochasticFlow(model, lambda energy, dim: [T.Planar(dim)])
    >>> loss = ReverseKL(num_particles=64).differentiable_loss(model, guide)
    >>> loss.shape
    torch.Size([])
    """

    draws_from_guide = True

    def __init__(self, num_particles: int = 256) -> None:
        super().__init__(num_particles)
        # Kept: a new one would run model and guide once more to learn their plates, at every evaluation.
        self._trace_elbo = Trace_ELBO(num_particles=num_particles, vectorize_particles=True)

    def learn_plates(self, model: Any, guide: Any, args: Any, kwargs: Any) -> None:
        """Do now what Pyro would do at the first evaluation: run model and guide once to see how their plates nest."""
        if not isinstance(guide, AutoStochasticFlow):
            learn_plates(self._trace_elbo, model, guide, args, kwargs)

    def differentiable_loss(self, model: Any, guide: Any, *args: Any, **kwargs: Any) -> Tensor:
        if not isinstance(guide, AutoStochasticFlow):
            self.last_paths = None
            loss: Tensor = self._trace_elbo.differentiable_loss(model, guide, *args, **kwargs)
            return loss
        paths = guide.sample_paths(self.num_particles, *args, **kwargs)
        return self._surrogate(-paths.log_weight, paths)
