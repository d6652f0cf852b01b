"""Flow matching: learn the velocities of a continuous flow without integrating it."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from typing import Any

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from pyro_boltzmann.exceptions import ShapeError
from pyro_boltzmann.guides import AutoStochasticFlow
from pyro_boltzmann.infer.objectives.path_objective import PathObjective
from pyro_boltzmann.infer.objectives.weighted_data import WeightedData
from pyro_boltzmann.stochastic.block import StochasticBlock
from pyro_boltzmann.transforms.continuous import ContinuousTransform

__all__ = ["FlowMatching"]

Align = Callable[[Tensor, Tensor], Tensor]
"""``(x0, x1) -> x0``, each ``(n, dim)``: each row of x0 moved by the symmetry that brings it nearest to its x1."""


class FlowMatching(PathObjective):
    r"""Regress the velocity of a continuous flow on straight lines from draws of the base to data,

    .. math::
        \mathcal L = \frac1d\, E\, \bigl| v_\theta(t, x_t) - (x_1 - x_0) \bigr|^2, \qquad
        x_t = (1 - t)\, x_0 + t\, x_1 + \sigma \epsilon,

    with :math:`t = 1 - (1 - s)^p`, s even on [0, 1] (stratified), :math:`x_0` from the guide's base and :math:`x_1`
    from the data. The minimiser, :math:`E[x_1 - x_0 \mid x_t]`, is the velocity of a flow from the base to the data.
    No equation is solved and no divergence taken; no energy is asked for.

    Lines that cross make a flow bend. Pairs may therefore be chosen: ``pairing="optimal"`` assigns the base draws of a
    minibatch to its data so that the sum of squared distances is least, and ``align`` then moves each :math:`x_0` by a
    symmetry of the base (permutation, rotation, reflection) close to its :math:`x_1`. With ``num_rounds`` both are
    repeated in turn, which never lengthens the lines. Alignment is for fields that have this symmetry, and for those
    alone: only for them is it all one how the pairs are turned.

    The guide's first block must be the :class:`~pyro_boltzmann.transforms.ContinuousTransform`; stochastic blocks may
    follow, and are left as they are.

    :param data: unconstrained latents ``(n, latent_dim)``.
    :param log_weights: ``(n,)``, if the data are weighted draws.
    :param num_particles: pairs for each evaluation, the data drawn with replacement.
    :param pairing: ``"independent"`` or ``"optimal"``, whose cost grows as the cube of ``num_particles``.
    :param align: ``(x0, x1) -> x0``, rows moved by symmetries of the base, and perhaps reordered; ``None`` for none.
    :param num_rounds: how often minibatches are paired and aligned in turn.
    :param sigma: :math:`\sigma \ge 0`, the width of the lines.
    :param time_power: :math:`p > 0`; above one, more times near the data, where the velocity of a target with walls is
        steepest.
    :param num_times: times for each evaluation of a field that takes one time a call; others get one for each pair.
    :param weight_power: see :class:`ForwardKL`.
    :raises ShapeError: if there are no data or the shapes do not match.
    :raises ValueError: for settings out of range, or data that are not finite.
    :raises TypeError: at the first evaluation, for a guide that does not start with a continuous flow.

    Source: Lipman et al., arXiv 2210.02747, equation 14; optimal pairs, Tong et al., arXiv 2302.00482, section 3.2.3;
    with symmetries, Klein, Kraemer and Noe, arXiv 2306.15030, section 4.

    >>> import pyro_boltzmann as pb
    >>> from pyro_boltzmann.transforms import ContinuousTransform, MLPField
    >>> model = pb.BoltzmannModel(lambda x: 0.5 * (x - 1).square().sum(-1), 2)
    >>> guide = pb.AutoStochasticFlow(model, lambda energy, dim: [ContinuousTransform(MLPField(dim), dim)])
    >>> result = pb.fit(model, guide, objective=FlowMatching(torch.randn(500, 2) + 1, num_particles=64), num_steps=20,
    ...                 seed=0, progress=False)
    >>> result.evaluations
    EvaluationCount(values=0, gradients=0)
    """

    looks_forward = False

    def __init__(
        self,
        data: Tensor,
        log_weights: Tensor | None = None,
        num_particles: int = 256,
        *,
        pairing: str = "independent",
        align: Align | None = None,
        num_rounds: int = 1,
        sigma: float = 0.0,
        time_power: float = 1.0,
        num_times: int = 8,
        weight_power: float = 1.0,
    ) -> None:
        super().__init__(num_particles)
        if pairing not in ("independent", "optimal"):
            raise ValueError(f'pairing must be "independent" or "optimal", got {pairing!r}')
        if not 0.0 <= sigma < math.inf:
            raise ValueError(f"sigma must be finite and not negative, got {sigma}")
        if not 0.0 < time_power < math.inf:
            raise ValueError(f"time_power must be finite and positive, got {time_power}")
        if num_times < 1 or num_rounds < 1:
            raise ValueError(
                f"num_times and num_rounds must be positive, got num_times={num_times}, num_rounds={num_rounds}"
            )
        self._data = WeightedData(data, log_weights, weight_power)
        self.pairing, self.align, self.num_rounds = pairing, align, num_rounds
        self.sigma, self.time_power, self.num_times = float(sigma), float(time_power), num_times
        given = (data, log_weights)
        self._settings = {
            "data": [None if tensor is None else _digest(tensor) for tensor in given],
            "weight_power": weight_power,
            "pairing": pairing,
            "align": None if align is None else getattr(align, "__qualname__", type(align).__qualname__),
            "num_rounds": num_rounds,
            "sigma": self.sigma,
            "time_power": self.time_power,
            "num_times": num_times,
            "num_particles": num_particles,
        }

    @property
    def data(self) -> Tensor:
        """All the data, ``(n, latent_dim)``."""
        return self._data.data

    def differentiable_loss(self, model: Any, guide: Any, *args: Any, **kwargs: Any) -> Tensor:
        flow = self._flow(guide).initialize(*args, **kwargs)
        transform = _continuous_part(flow)
        if self.data.shape[-1] != transform.width:
            raise ShapeError(f"data must have shape (n, {transform.width}), got {tuple(self.data.shape)}")
        x0, x1 = self.pairs(flow)
        target = x1 - x0
        error: list[Tensor] = []
        for t, rows in self._times(transform, x0):
            x = x0[rows] + t * target[rows] if t.dim() == 0 else x0[rows] + t.unsqueeze(-1) * target[rows]
            if self.sigma:
                x = x + self.sigma * torch.randn_like(x)
            error.append((transform.field(t, x) - target[rows]).square().sum())
        return torch.stack(error).sum() / target.numel()

    @torch.no_grad()
    def pairs(self, guide: AutoStochasticFlow) -> tuple[Tensor, Tensor]:
        """One minibatch of pairs, ``(num_particles, dim)`` each: draws of the base, and the data that they go to."""
        x1 = self._data.draw(self.num_particles).to(guide.base_loc)
        x0 = guide.base_loc + guide.base_scale * torch.randn_like(x1)
        for _ in range(self.num_rounds):
            if self.pairing == "optimal":
                x0 = x0[optimal_assignment(x0, x1)]
            if self.align is not None:
                x0 = self.align(x0, x1)
                if x0.shape != x1.shape:
                    raise ShapeError(f"align must return the shape of x0, {tuple(x1.shape)}, got {tuple(x0.shape)}")
        return x0, x1

    def _times(self, transform: ContinuousTransform, x0: Tensor) -> list[tuple[Tensor, slice]]:
        """Stratified times, each with the rows that it is for."""
        each_row = getattr(transform.field, "takes_times_of_rows", False)
        count = len(x0) if each_row else min(self.num_times, len(x0))
        u = torch.rand(count, dtype=x0.dtype, device=x0.device)
        even = (torch.arange(count, dtype=x0.dtype, device=x0.device) + u) / count
        t = 1.0 - (1.0 - even) ** self.time_power
        if each_row:
            return [(t, slice(None))]
        edges = [len(x0) * k // count for k in range(count + 1)]
        return [(t[k], slice(edges[k], edges[k + 1])) for k in range(count)]

    def settings(self) -> dict[str, Any]:
        return self._settings


def optimal_assignment(x0: Tensor, x1: Tensor) -> Tensor:
    r"""The permutation :math:`\pi` that minimises :math:`\sum_i |x_0^{\pi(i)} - x_1^i|^2`, ``(n,)``.

    :param x0: ``(n, dim)``, like ``x1``.

    >>> optimal_assignment(torch.tensor([[5.0], [0.0]]), torch.tensor([[1.0], [4.0]]))
    tensor([1, 0])
    """
    cost = torch.cdist(x1.double(), x0.double()).square().cpu().numpy()
    return torch.as_tensor(linear_sum_assignment(cost)[1], device=x0.device)


def _continuous_part(guide: AutoStochasticFlow) -> ContinuousTransform:
    directed = guide.get_transform()._directed()
    first, is_backwards = directed[0] if directed else (None, False)
    are_stochastic = all(isinstance(block, StochasticBlock) for block, _ in directed[1:])
    if not isinstance(first, ContinuousTransform) or is_backwards or not are_stochastic:
        names = ", ".join(type(block).__name__ for block in guide.get_transform().blocks) or "no block"
        raise TypeError(
            "FlowMatching trains a guide that is a ContinuousTransform, followed by stochastic blocks at most; got "
            f"{names}"
        )
    return first


def _digest(data: Tensor) -> str:
    """What tells one set of data from another."""
    return hashlib.sha256(data.detach().cpu().double().contiguous().numpy().tobytes()).hexdigest()[:16]
