"""The alpha = 2 divergence on replayed, annealed draws (FAB)."""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from pyro_boltzmann.guides import AutoStochasticFlow, WeightedPath
from pyro_boltzmann.guides.path_ends import PathEnds, sample_ends, weigh_ends
from pyro_boltzmann.infer.objectives.path_objective import PathObjective, branch_score, without_graph
from pyro_boltzmann.infer.objectives.prioritized_buffer import PrioritizedBuffer
from pyro_boltzmann.infer.objectives.squared_ratio import SquaredRatioAnnealing

__all__ = ["Alpha2"]

FIRST_BATCHES = 4
"""Batches that fill an empty buffer."""


class Alpha2(PathObjective):
    r"""The divergence that has the variance of the weights as its value,

    .. math:: D(\theta) = \int \frac{p(x)^2}{q_\theta(x)}\,dx, \qquad
        \nabla \log D = -E_{p^2/q}[\nabla \log q_\theta], \qquad
        \mathcal L = -\frac1n \sum_i c_i \log q_\theta(x_i), \quad c_i = \frac{q_{old}(x_i)}{q_\theta(x_i)} .

    The points :math:`x_i` are drawn from a replay buffer in proportion to their weights, which aim at
    :math:`p^2/q_{old}` with the density :math:`q_{old}` of the guide when a point was last drawn; the constant
    :math:`c_i` corrects for what the guide has learned since, and enters the weight in the buffer. Regions that the
    target has and the guide lacks weigh most: it covers modes, and needs no data.

    Every ``refresh_every`` evaluations new points come in. For a guide made of flow layers they are annealed from q to
    :math:`p^2/q` by Hamiltonian Monte Carlo. For paths with stochastic blocks (or ``num_rungs=0``) they are the guide's
    own paths, points of the extended space with weights :math:`w^2`: the divergence is then that of the path laws.
    The loss is a surrogate whose value means little; its gradient is that of :math:`\log D`. The
    energy is never differentiated with respect to parameters by flow layers; they need an inverse. Metropolis blocks
    whose acceptance depends on parameters need ``gradient="score"``.

    The buffer and the step sizes stay with this object; :func:`~pyro_boltzmann.fit` empties it at the start of a run
    and keeps it in the checkpoint.

    :param num_particles: points per evaluation, and per batch of new ones.
    :param capacity: points in the buffer.
    :param refresh_every: evaluations per batch of new points.
    :param num_rungs: intermediate energies of the annealing.
    :param num_leapfrog: leapfrog steps at each.
    :param step_size: of the leapfrog steps at first; they are adapted to the acceptance rate.
    :param max_correction: clip :math:`c_i` here, which biases the gradient where the buffer lags far behind; ``None``
        for no clipping.
    :raises ValueError: for numbers out of range.

    Source: Midgley, Stimper, Simm, Schoelkopf and Hernandez-Lobato, Flow annealed importance sampling bootstrap, arXiv
    2208.01893; the form on paths follows from it in the extended space of docs/design.md.

    >>> import pyro_boltzmann as pb
    >>> from pyro_boltzmann.transforms import ElementwiseAffine
    >>> model = pb.BoltzmannModel(lambda x: 0.5 * x.square().sum(-1), 2)
    >>> guide = pb.AutoStochasticFlow(model, lambda energy, dim: [ElementwiseAffine(dim)])
    >>> objective = Alpha2(64)
    >>> objective.differentiable_loss(model, guide).requires_grad
    True
    >>> len(objective.buffer)
    256
    """

    draws_from_guide = True

    def __init__(
        self,
        num_particles: int = 256,
        *,
        capacity: int = 10_000,
        refresh_every: int = 4,
        num_rungs: int = 4,
        num_leapfrog: int = 5,
        step_size: float = 0.1,
        max_correction: float | None = 10.0,
    ) -> None:
        super().__init__(num_particles)
        if refresh_every < 1 or num_rungs < 0 or num_leapfrog < 1:
            raise ValueError(
                "Alpha2 needs refresh_every >= 1, num_rungs >= 0 and num_leapfrog >= 1, got "
                f"{refresh_every}, {num_rungs} and {num_leapfrog}"
            )
        if not step_size > 0 or (max_correction is not None and not max_correction > 0):
            raise ValueError(
                f"step_size and max_correction must be positive, got {step_size} and {max_correction}; "
                "max_correction=None does not clip"
            )
        self.buffer = PrioritizedBuffer(capacity)
        self.refresh_every = refresh_every
        self.num_rungs = num_rungs
        self.num_leapfrog = num_leapfrog
        self.step_size = float(step_size)
        self.max_correction = max_correction
        self._age = 0
        self._guide: weakref.ref[AutoStochasticFlow] | None = None
        self._annealing: SquaredRatioAnnealing | None = None

    def differentiable_loss(self, model: Any, guide: Any, *args: Any, **kwargs: Any) -> Tensor:
        guide = self._flow(guide).initialize(*args, **kwargs)
        self._meet(guide)
        self.last_paths, self.left_out = None, False
        if not len(self.buffer):
            for _ in range(FIRST_BATCHES):
                self._refresh(guide, *args, **kwargs)
        elif self._age % self.refresh_every == 0:
            self._refresh(guide, *args, **kwargs)
        self._age += 1
        if not len(self.buffer):
            return torch.full((), torch.inf)
        index, drawn = self.buffer.draw(self.num_particles)
        paths = weigh_ends(guide, PathEnds(drawn.points), *args, **kwargs)
        log_q = paths.log_q.detach()
        log_correction = drawn.log_q - log_q
        self.buffer.reweigh(index, drawn.log_weights + log_correction, log_q)
        correction = log_correction.exp().clamp_max(self.max_correction or torch.inf)
        per_point = -correction * paths.log_q
        score = branch_score(paths)
        if score is not None:
            per_point = per_point + correction * (score - score.detach())
        per_point = per_point[per_point.detach().isfinite()]
        return per_point.mean() if len(per_point) else per_point.sum() + torch.inf

    def _refresh(self, guide: AutoStochasticFlow, *args: Any, **kwargs: Any) -> None:
        """Put a batch of new points into the buffer."""
        if self._annealing is not None:
            drawn = self._annealing.draw(self.num_particles, *args, **kwargs)
            self.buffer.add(drawn.z, drawn.log_weight, drawn.log_q)
            self._remember(drawn.starts)
            return
        ends = sample_ends(guide, self.num_particles, *args, **kwargs)
        assert ends.energy is not None and ends.log_q is not None
        log_weight = -ends.energy.double() - ends.log_q
        self.buffer.add(ends.joint, 2.0 * log_weight, ends.log_q)
        z = ends.joint[..., : guide.get_transform().dim]
        self._remember(WeightedPath(z, log_weight, ends.log_q, ends.energy, ends.infos))

    def _remember(self, paths: WeightedPath) -> None:
        self.last_paths = without_graph(paths)
        self.left_out = not bool(paths.log_weight.isfinite().all())

    def _meet(self, guide: AutoStochasticFlow) -> None:
        """Start anew with another guide."""
        if self._guide is not None and self._guide() is guide:
            return
        self.begin()
        self._guide = weakref.ref(guide)
        if self.num_rungs and not guide.get_transform().stochastic_blocks:
            self._annealing = SquaredRatioAnnealing(guide, self.num_rungs, self.num_leapfrog, self.step_size)

    # What fit asks for -------------------------------------------------------------------------------------------

    def settings(self) -> dict[str, Any]:
        names = ("num_particles", "refresh_every", "num_rungs", "num_leapfrog", "step_size", "max_correction")
        return {"capacity": self.buffer.capacity, **{name: getattr(self, name) for name in names}}

    def begin(self) -> None:
        self.buffer.clear()
        self._age, self._guide, self._annealing = 0, None, None

    def state(self) -> dict[str, Tensor]:
        tensors = {f"buffer.{name}": column for name, column in self.buffer.state().items()}
        tensors["age"] = torch.tensor(self._age)
        if self._annealing is not None:
            tensors["log_step_sizes"] = self._annealing.log_step_sizes
        return tensors

    def load_state(self, tensors: Mapping[str, Tensor], guide: Any) -> None:
        self.begin()
        self._meet(self._flow(guide))
        device = guide.base_loc.device
        rows = {k.removeprefix("buffer."): v.to(device) for k, v in tensors.items() if k.startswith("buffer.")}
        self.buffer.load_state(rows)
        self._age = int(tensors["age"])
        if self._annealing is not None and "log_step_sizes" in tensors:
            self._annealing.log_step_sizes = tensors["log_step_sizes"]
