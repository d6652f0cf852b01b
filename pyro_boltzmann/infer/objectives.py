"""Training objectives as Pyro ELBO objects."""

from __future__ import annotations

from typing import Any

import torch
from pyro.infer import Trace_ELBO
from pyro.infer.elbo import ELBO
from torch import Tensor

from pyro_boltzmann.exceptions import ShapeError
from pyro_boltzmann.guides import AutoStochasticFlow, WeightedPath

__all__ = ["ForwardKL", "PathObjective", "ReverseKL", "learn_plates"]


class PathObjective(ELBO):
    """What both directions share: a surrogate loss over paths, with the score term where a block asks for it.

    :param num_particles: paths per evaluation.
    """

    last_paths: WeightedPath | None = None
    """The paths of the last evaluation, without a graph: their weights tell the ESS at no cost."""
    left_out: bool = False
    """Whether the last evaluation left paths out of its mean."""

    def __init__(self, num_particles: int = 256) -> None:
        if num_particles < 1:
            raise ValueError(f"num_particles must be positive, got {num_particles}")
        super().__init__(num_particles=num_particles, vectorize_particles=True)  # type: ignore[no-untyped-call]

    def _surrogate(self, per_path: Tensor, paths: WeightedPath) -> Tensor:
        r"""A scalar whose gradient is unbiased: pathwise, plus :math:`(f - b)\,\nabla \log P(\text{branches})`.

        The baseline b is the leave-one-out mean, which leaves the gradient unbiased. Paths of zero weight (their energy
        is +inf) carry no gradient and are left out of the mean, as are paths that are not finite for any other reason.
        """
        self.last_paths = _without_graph(paths)
        score = _branch_score(paths)
        kept = per_path.detach().isfinite()
        self.left_out = not bool(kept.all())
        if self.left_out:
            per_path = per_path[kept]
            score = None if score is None else score[kept]
        if per_path.numel() == 0:
            return per_path.sum() + torch.inf
        if score is not None:
            value = per_path.detach()
            count = value.shape[0]
            baseline = (value.sum() - value) / (count - 1) if count > 1 else torch.zeros_like(value)
            term = (value - baseline) * score
            per_path = per_path + term - term.detach()
        return per_path.mean()

    def differentiable_loss(self, model: Any, guide: Any, *args: Any, **kwargs: Any) -> Tensor:
        """A scalar with a graph."""
        raise NotImplementedError

    def _get_trace(self, model: Any, guide: Any, args: Any, kwargs: Any) -> Any:
        """Pyro's hook for objectives that work on traces; this one works on paths and leaves traces to Pyro."""
        return Trace_ELBO()._get_trace(model, guide, args, kwargs)

    def loss(self, model: Any, guide: Any, *args: Any, **kwargs: Any) -> float:
        """The value alone."""
        with torch.no_grad():
            return float(self.differentiable_loss(model, guide, *args, **kwargs))

    def loss_and_grads(self, model: Any, guide: Any, *args: Any, **kwargs: Any) -> float:
        """The value, with gradients added to the parameters: what Pyro's ``SVI`` calls."""
        loss = self.differentiable_loss(model, guide, *args, **kwargs)
        if loss.requires_grad:
            loss.backward()
        return float(loss.detach())


class ReverseKL(PathObjective):
    r"""Pyro's ``Trace_ELBO`` for a stochastic flow, taken on the streamed path,

    .. math:: \mathcal L = -E_q[\log w] = D_{KL}(q \,\|\, \pi \times r) - \log Z .

    Same value and, for ``"pathwise"`` blocks, same gradient as ``Trace_ELBO(num_particles, vectorize_particles=True)``,
    without the joint vector of the noise; blocks with ``gradient="score"`` get their unbiased gradient, which no
    ``Trace_ELBO`` can give them. For any other guide it is ``Trace_ELBO``. Where the energy is +inf the loss is
    infinite; such paths are left out, so that the rest can train.

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


class ForwardKL(PathObjective):
    r"""Maximum likelihood of data through the inverse path with fresh noise,

    .. math:: \mathcal L = -E_{data}\bigl[\log q(\text{path})\bigr],

    which is :math:`\mathrm{EUBO} + E_\pi[u]` for data from :math:`\pi`.

    :param data: unconstrained latents ``(n, latent_dim)``.
    :param log_weights: ``(n,)``, if the data are weighted draws.
    :param num_particles: minibatch size, drawn with replacement; weighted data are drawn by their weights.
    :raises ShapeError: if there are no data or the shapes do not match.
    :raises ValueError: if data or weights are not finite (a weight may be zero), or all weights are zero.

    Source: Wu, Koehler and Noe, arXiv 2002.06707, equation 20.

    >>> import pyro_boltzmann as pb, pyro.distributions.transforms as T
    >>> model = pb.BoltzmannModel(lambda x: 0.5 * x.square().sum(-1), 2)
    >>> guide = pb.AutoStochasticFlow(model, lambda energy, dim: [])
    >>> ForwardKL(torch.zeros(5, 2)).loss(model, guide)  # -log N(0; 0, I) = log 2 pi
    1.837877...
    """

    def __init__(self, data: Tensor, log_weights: Tensor | None = None, num_particles: int = 256) -> None:
        super().__init__(num_particles)
        if data.dim() != 2 or data.shape[0] == 0:
            raise ShapeError(f"data must have shape (n, latent_dim) with n >= 1, got {tuple(data.shape)}")
        if log_weights is not None and log_weights.shape != data.shape[:1]:
            raise ShapeError(f"log_weights must have shape {tuple(data.shape[:1])}, got {tuple(log_weights.shape)}")
        weighted = torch.ones_like(data[:, 0], dtype=torch.bool) if log_weights is None else log_weights > -torch.inf
        bad = int((~data[weighted.to(data.device)].isfinite().all(-1)).sum())
        if bad:
            raise ValueError(f"{bad} of {len(data)} rows of data are NaN or infinite; leave them out")
        self.data = data.detach()
        self._cumulative = None if log_weights is None else _cumulative_weights(log_weights)

    def _minibatch(self) -> Tensor:
        count = self.data.shape[0]
        if self._cumulative is None:
            index = torch.randint(count, (self.num_particles,), device=self.data.device)
        else:
            u = torch.rand(self.num_particles, dtype=torch.float64, device=self._cumulative.device)
            index = torch.searchsorted(self._cumulative, u, right=True).clamp_max(count - 1).to(self.data.device)
        return self.data[index]

    def differentiable_loss(self, model: Any, guide: Any, *args: Any, **kwargs: Any) -> Tensor:
        if not isinstance(guide, AutoStochasticFlow):
            raise TypeError(
                f"ForwardKL runs paths backwards and needs an AutoStochasticFlow, got {type(guide).__name__}"
            )
        paths = guide.reverse_paths(self._minibatch(), *args, with_energy=False, **kwargs)
        return self._surrogate(-paths.log_q, paths)


def learn_plates(elbo: ELBO, model: Any, guide: Any, args: Any, kwargs: Any) -> None:
    """Learn how plates nest, which draws random numbers, before a run whose random numbers matter begins."""
    if isinstance(elbo, ReverseKL):
        elbo.learn_plates(model, guide, args, kwargs)
    elif not isinstance(elbo, ForwardKL) and elbo.max_plate_nesting == torch.inf:
        elbo._guess_max_plate_nesting(model, guide, args, kwargs)


def _cumulative_weights(log_weights: Tensor) -> Tensor:
    cumulative = log_weights.detach().double().softmax(0).cumsum(0)
    if not bool(cumulative[-1].isfinite()):
        raise ValueError(
            "the weights of the data must be finite or zero, and not all zero: some are NaN or +inf, or none counts"
        )
    return cumulative / cumulative[-1]


def _without_graph(paths: WeightedPath) -> WeightedPath:
    infos = tuple(None if info is None else info._replace(log_branch=None) for info in paths.infos)
    return WeightedPath(paths.z.detach(), paths.log_weight.detach(), paths.log_q.detach(), paths.energy.detach(), infos)


def _branch_score(paths: WeightedPath) -> Tensor | None:
    terms = [info.log_branch for info in paths.infos if info is not None and info.log_branch is not None]
    return torch.stack(terms).sum(0) if terms else None
