"""The log-variance loss: make all weights equal, on whatever paths."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from pyro_boltzmann.guides import AutoStochasticFlow, WeightedPath
from pyro_boltzmann.guides.path_ends import PathEnds, sample_ends, weigh_ends
from pyro_boltzmann.infer.objectives.path_objective import PathObjective, without_graph
from pyro_boltzmann.infer.objectives.prioritized_buffer import PrioritizedBuffer
from pyro_boltzmann.infer.objectives.weighted_data import WeightedData

__all__ = ["LogVariance"]


class LogVariance(PathObjective):
    r"""Half the variance of the log weights over paths of any law r,

    .. math:: \mathcal L = \tfrac12 \operatorname{Var}_r[\log w_\theta], \qquad
        \log w_\theta = -u(x_T) + \log p(n') - \log \hat q_\theta(x_T, n'),

    which is zero exactly where the guide is the target. Paths are fixed by their ends in the extended space; only their
    density under the guide is differentiated, never the draw, so the energy of a guide made of flow layers is asked
    for values alone. The law r is the guide's own (then the expected gradient is that of
    :class:`~pyro_boltzmann.infer.ReverseKL`), a wider one, that of backward paths from data, or a mixture.

    Stochastic blocks run twice on forward paths, once to draw and once backwards with a graph; paths from data run
    once. For a Metropolis block the branches taken are part of what is fixed: the loss and its zero are right, but the
    equality with reverse KL then needs blocks whose acceptance depends on no parameter. Parameters of the model are
    not trained. Flow layers need an inverse.

    :param num_particles: paths per evaluation, two or more.
    :param spread: of forward paths: multiplies the standard deviation of the base and of all Gaussian noise.
    :param data: unconstrained latents ``(n, latent_dim)`` from which backward paths start.
    :param log_weights: ``(n,)``, if the data are weighted draws.
    :param replay: instead of data, keep the end states of this many of the newest forward paths and start backward
        paths from them, drawn by their weights; :func:`~pyro_boltzmann.fit` keeps them in its checkpoint.
    :param data_share: share of the paths that run backwards; one half if there are data or a replay.
    :param weight_power: the data's weights are raised to this power.
    :raises ValueError: for settings out of range, data and replay together, or a share of neither.

    Source: Richter, Boustati, Nuesken, Ruiz and Akyildiz, arXiv 2010.10436 (VarGrad); for paths,
    Richter and Berner, arXiv 2307.01198.

    >>> import pyro_boltzmann as pb
    >>> from pyro_boltzmann.transforms import ElementwiseAffine
    >>> model = pb.BoltzmannModel(lambda x: 0.5 * x.square().sum(-1), 2)
    >>> guide = pb.AutoStochasticFlow(model, lambda energy, dim: [ElementwiseAffine(dim)])
    >>> abs(LogVariance(64, spread=2.0).loss(model, guide)) < 1e-9  # the guide is the target, wherever one looks
    True
    """

    def __init__(
        self,
        num_particles: int = 256,
        *,
        spread: float = 1.0,
        data: Tensor | None = None,
        log_weights: Tensor | None = None,
        replay: int | None = None,
        data_share: float | None = None,
        weight_power: float = 1.0,
    ) -> None:
        if num_particles < 2:
            raise ValueError(f"a variance needs num_particles >= 2, got {num_particles}")
        super().__init__(num_particles)
        if not 0 < spread < torch.inf:
            raise ValueError(f"spread must be positive and finite, got {spread}; 1 draws from the guide itself")
        if spread != 1 and replay is not None:
            raise ValueError(f"a replay weighs the guide's own paths, which spread={spread} changes; leave one out")
        if data is not None and replay is not None:
            raise ValueError("backward paths start from data= or from a replay=, not from both")
        has_starts = data is not None or replay is not None
        share = (0.5 if has_starts else 0.0) if data_share is None else data_share
        if not 0 <= share <= 1 or (share and not has_starts) or (share == 1 and replay is not None):
            raise ValueError(
                "data_share must lie in [0, 1], above 0 only with data= or replay=, and below 1 with replay=, got "
                f"{data_share}"
            )
        self.spread = float(spread)
        self.weight_power = weight_power
        self._data = None if data is None else WeightedData(data, log_weights, weight_power)
        self.buffer = None if replay is None else PrioritizedBuffer(replay)
        self._num_backward = round(share * num_particles)
        self.draws_from_guide = spread == 1 and self._num_backward < num_particles

    def settings(self) -> dict[str, Any]:
        return {
            "num_particles": self.num_particles,
            "spread": self.spread,
            "from_data": self._num_backward,
            "weight_power": self.weight_power,
            "replay": None if self.buffer is None else self.buffer.capacity,
        }

    def begin(self) -> None:
        if self.buffer is not None:
            self.buffer.clear()

    def state(self) -> dict[str, Tensor]:
        return {} if self.buffer is None else self.buffer.state()

    def load_state(self, tensors: Mapping[str, Tensor], guide: Any) -> None:
        if self.buffer is not None:
            self.buffer.load_state({name: tensor.to(guide.base_loc.device) for name, tensor in tensors.items()})

    def differentiable_loss(self, model: Any, guide: Any, *args: Any, **kwargs: Any) -> Tensor:
        log_weight = self._log_weights(self._flow(guide), *args, **kwargs)
        kept = log_weight.detach().isfinite()
        self.left_out = not bool(kept.all())
        if self.left_out:
            log_weight = log_weight[kept]
        if log_weight.numel() < 2:
            return log_weight.sum() + torch.inf
        return self._reduce(log_weight)

    def _log_weights(self, guide: AutoStochasticFlow, *args: Any, **kwargs: Any) -> Tensor:
        """Log weights ``(num_particles,)`` of paths with fixed ends, first those that run backwards."""
        log_weights = []
        starts = self._starts(self._num_backward)
        if starts is not None:
            backward = guide.reverse_paths(starts, *args, **kwargs)
            self.last_paths = without_graph(backward)
            log_weights.append(-backward.energy.detach().double() - backward.log_q)
        num_forward = self.num_particles - (0 if starts is None else len(starts))
        if num_forward:
            ends = sample_ends(guide, num_forward, *args, spread=self.spread, **kwargs)
            log_weights.append(self._weigh(guide, ends, *args, **kwargs))
        return torch.cat(log_weights)

    def _starts(self, count: int) -> Tensor | None:
        """Where ``count`` backward paths start."""
        if not count or (self.buffer is not None and not len(self.buffer)):
            return None
        if self.buffer is not None:
            return self.buffer.draw(count)[1].points
        return None if self._data is None else self._data.draw(count)

    def _weigh(self, guide: AutoStochasticFlow, ends: PathEnds, *args: Any, **kwargs: Any) -> Tensor:
        """Log weights of the ends; those of zero weight are not run backwards, where they could spoil the gradient."""
        assert ends.energy is not None
        alive = ends.energy.isfinite() & ends.joint.isfinite().all(-1)
        paths = weigh_ends(guide, ends if bool(alive.all()) else ends.rows(alive), *args, **kwargs)
        log_weight, log_q = paths.log_weight, paths.log_q
        if len(log_weight) < len(alive):
            lost = log_weight.new_full(alive.shape, -torch.inf)
            log_weight, log_q = lost.index_put((alive,), log_weight), lost.index_put((alive,), log_q)
        z = ends.joint[..., : guide.get_transform().dim]
        self.last_paths = without_graph(WeightedPath(z, log_weight, log_q, ends.energy, paths.infos))
        if self.buffer is not None:
            self.buffer.add(z, self.last_paths.log_weight, self.last_paths.log_q)
        return log_weight

    def _reduce(self, log_weight: Tensor) -> Tensor:
        return 0.5 * log_weight.var()
