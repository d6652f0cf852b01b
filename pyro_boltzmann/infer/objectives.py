"""Training objectives as Pyro ELBO objects."""

from __future__ import annotations

from typing import Any

import torch
from pyro.infer import Trace_ELBO
from pyro.infer.elbo import ELBO
from torch import Tensor

from pyro_boltzmann.exceptions import ShapeError
from pyro_boltzmann.guides import AutoStochasticFlow, WeightedPath

__all__ = ["ForwardKL", "ReverseKL"]


class _PathObjective(ELBO):  # type: ignore[misc]
    """What both directions share: a surrogate loss over paths, with the score term where a block asks for it."""

    last_paths: WeightedPath | None = None
    """The paths of the last evaluation, detached: their weights tell the ESS at no cost."""

    def _surrogate(self, per_path: Tensor, paths: WeightedPath) -> Tensor:
        r"""A scalar whose gradient is unbiased: pathwise, plus :math:`(f - b)\,\nabla \log P(\text{branches})`.

        The baseline b is the leave-one-out mean, which leaves the gradient unbiased. Paths of zero weight (their energy is
        +inf) carry no gradient and are left out of the mean.
        """
        self.last_paths = WeightedPath(*(v.detach() if isinstance(v, Tensor) else v for v in paths))
        score = _branch_score(paths)
        if score is not None:
            value = per_path.detach()
            count = value.shape[0]
            baseline = (value.sum() - value) / (count - 1) if count > 1 else torch.zeros_like(value)
            term = (value - baseline) * score
            per_path = per_path + term - term.detach()
        kept = per_path.detach().isfinite()
        return per_path[kept].mean() if bool(kept.any()) else per_path.sum()

    def differentiable_loss(self, model: Any, guide: Any, *args: Any, **kwargs: Any) -> Tensor:
        raise NotImplementedError

    def _get_trace(self, model: Any, guide: Any, args: Any, kwargs: Any) -> Any:
        """Pyro's hook for objectives that work on traces; this one works on paths and leaves traces to Pyro."""
        return Trace_ELBO()._get_trace(model, guide, args, kwargs)

    def loss(self, model: Any, guide: Any, *args: Any, **kwargs: Any) -> float:
        with torch.no_grad():
            return float(self.differentiable_loss(model, guide, *args, **kwargs))

    def loss_and_grads(self, model: Any, guide: Any, *args: Any, **kwargs: Any) -> float:
        loss = self.differentiable_loss(model, guide, *args, **kwargs)
        if loss.requires_grad:
            loss.backward()
        return float(loss.detach())


class ReverseKL(_PathObjective):
    r"""Pyro's ``Trace_ELBO`` for a stochastic flow, taken on the streamed path,

    .. math:: \mathcal L = -E_q[\log w] = D_{KL}(q \,\|\, \pi \times r) - \log Z .

    Same value and, for ``"pathwise"`` blocks, same gradient as ``Trace_ELBO(num_particles, vectorize_particles=True)``,
    without the joint vector of the noise; blocks with ``gradient="score"`` get their unbiased gradient, which no
    ``Trace_ELBO`` can give them. For any other guide it is ``Trace_ELBO``.

    :param num_particles: paths per evaluation.

    Source: Wu, Koehler and Noe, arXiv 2002.06707, equation 19.

    >>> import pyro_boltzmann as pb, pyro.distributions.transforms as T
    >>> model = pb.BoltzmannModel(lambda x: 0.5 * x.square().sum(-1), 2)
    >>> guide = pb.AutoStochasticFlow(model, lambda energy, dim: [T.Planar(dim)])
    >>> loss = ReverseKL(num_particles=64).differentiable_loss(model, guide)
    >>> loss.shape
    torch.Size([])
    """

    def __init__(self, num_particles: int = 256) -> None:
        super().__init__(num_particles=num_particles, vectorize_particles=True)

    def differentiable_loss(self, model: Any, guide: Any, *args: Any, **kwargs: Any) -> Tensor:
        if not isinstance(guide, AutoStochasticFlow):
            self.last_paths = None
            elbo = Trace_ELBO(num_particles=self.num_particles, vectorize_particles=True)
            loss: Tensor = elbo.differentiable_loss(model, guide, *args, **kwargs)
            return loss
        paths = guide.sample_paths(self.num_particles, *args, **kwargs)
        return self._surrogate(-paths.log_weight, paths)


class ForwardKL(_PathObjective):
    r"""Maximum likelihood of data through the inverse path with fresh noise,

    .. math:: \mathcal L = -E_{data}\bigl[\log q(\text{path})\bigr] = \mathrm{EUBO} + E_\pi[u] \;\text{ for data from } \pi .

    :param data: unconstrained latents ``(n, latent_dim)``.
    :param log_weights: ``(n,)``, if the data are weighted draws.
    :param num_particles: minibatch size, drawn with replacement; weighted data are drawn by their weights.

    Source: Wu, Koehler and Noe, arXiv 2002.06707, equation 20.
    """

    def __init__(self, data: Tensor, log_weights: Tensor | None = None, num_particles: int = 256) -> None:
        super().__init__(num_particles=num_particles, vectorize_particles=True)
        if data.dim() != 2 or data.shape[0] == 0:
            raise ShapeError(f"data must have shape (n, latent_dim) with n >= 1, got {tuple(data.shape)}")
        if log_weights is not None and log_weights.shape != data.shape[:1]:
            raise ShapeError(f"log_weights must have shape {tuple(data.shape[:1])}, got {tuple(log_weights.shape)}")
        self.data = data.detach()
        self._cumulative = None if log_weights is None else log_weights.detach().double().softmax(0).cumsum(0)

    def _minibatch(self) -> Tensor:
        count = self.data.shape[0]
        if self._cumulative is None:
            index = torch.randint(count, (self.num_particles,), device=self.data.device)
        else:
            u = torch.rand(self.num_particles, dtype=torch.float64, device=self.data.device)
            index = torch.searchsorted(self._cumulative, u).clamp_max(count - 1)
        return self.data[index]

    def differentiable_loss(self, model: Any, guide: Any, *args: Any, **kwargs: Any) -> Tensor:
        if not isinstance(guide, AutoStochasticFlow):
            raise TypeError(f"ForwardKL runs paths backwards and needs an AutoStochasticFlow, got {type(guide).__name__}")
        paths = guide.reverse_paths(self._minibatch(), *args, with_energy=False, **kwargs)
        return self._surrogate(-paths.log_q, paths)


def _branch_score(paths: WeightedPath) -> Tensor | None:
    terms = [info.log_branch for info in paths.infos if info is not None and info.log_branch is not None]
    return torch.stack(terms).sum(0) if terms else None
