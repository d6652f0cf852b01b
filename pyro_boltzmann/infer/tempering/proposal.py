"""Where tempering starts: a normalised density that can be drawn from and evaluated."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from pyro.infer.autoguide import AutoContinuous
from torch import Tensor

from pyro_boltzmann.energies.evaluation import Energy
from pyro_boltzmann.energies.reference import NormalEnergy
from pyro_boltzmann.exceptions import ShapeError
from pyro_boltzmann.guides import AutoStochasticFlow
from pyro_boltzmann.infer.randomness import kept_generators
from pyro_boltzmann.infer.tempering.problem import Problem
from pyro_boltzmann.transforms import PushforwardEnergy

__all__ = ["Proposal", "resolve_proposal"]


@dataclass(frozen=True)
class Proposal:
    """A normalised density on the unconstrained space.

    :ivar energy: its negative log-density, ``(*batch, dim) -> (*batch)``.
    :ivar sample: ``n -> (n, dim)`` independent draws, from torch's global generator.
    """

    energy: Energy
    sample: Callable[[int], Tensor]

    @property
    def dim(self) -> int:
        """Dimension of the draws, found without moving the random numbers."""
        with kept_generators():
            return int(self.sample(1).shape[-1])

    @property
    def device(self) -> torch.device:
        """Device of the draws, found likewise."""
        with kept_generators():
            return self.sample(1).device


def resolve_proposal(proposal: Any, problem: Problem, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Proposal:
    r"""The density that tempering starts from.

    ``None`` is the Gaussian :math:`N(0, I)` of the unconstrained space, or for a target that knows the box where it
    lives, a Gaussian of that centre whose standard deviation is a third of its half-width. A positive number is the
    standard deviation of a Gaussian about zero. Further: a :class:`Proposal`, a ``torch.distributions.Distribution`` of
    event shape ``(dim,)``, a trained :class:`~pyro_boltzmann.AutoStochasticFlow` of deterministic layers, or one of
    Pyro's continuous autoguides.

    :raises ShapeError: if it lives in another dimension.
    :raises TypeError: for anything else, and for a flow with stochastic blocks, whose density is not known.
    """
    if isinstance(proposal, Proposal):
        if proposal.dim != problem.dim:
            raise ShapeError(f"the proposal draws in dimension {proposal.dim}, the energy has dimension {problem.dim}")
        return proposal
    if proposal is None:
        return _default(problem)
    if isinstance(proposal, int | float) and not isinstance(proposal, bool):
        return _normal(torch.zeros(problem.dim), torch.full((problem.dim,), float(proposal)))
    if isinstance(proposal, AutoStochasticFlow):
        return _of_flow(proposal.initialize(*args, **kwargs), problem.dim)
    if isinstance(proposal, AutoContinuous):
        if proposal.prototype_trace is None:
            proposal(*args, **kwargs)
        return _of_distribution(proposal.get_posterior(*args, **kwargs), problem.dim)
    if hasattr(proposal, "log_prob") and hasattr(proposal, "sample"):
        return _of_distribution(proposal, problem.dim)
    raise TypeError(
        "a proposal must be a standard deviation, a torch distribution over (dim,), a trained guide or a "
        f"Proposal(energy, sample), got {type(proposal).__name__}"
    )


def _default(problem: Problem) -> Proposal:
    if problem.bounds is None:
        return _normal(torch.zeros(problem.dim), torch.ones(problem.dim))
    low, high = torch.tensor(problem.bounds, dtype=torch.get_default_dtype()).unbind(-1)
    return _normal(0.5 * (low + high), (high - low) / 6)


def _normal(loc: Tensor, scale: Tensor) -> Proposal:
    if not bool((scale > 0).all()):
        raise ValueError(f"the standard deviation of a proposal must be positive, got {scale.tolist()}")
    scalar = float(scale[0]) if bool((scale == scale[0]).all()) else scale
    return Proposal(
        NormalEnergy(loc if bool(loc.any()) else 0.0, scalar), lambda n: loc + scale * torch.randn(n, len(loc))
    )


def _of_distribution(distribution: Any, dim: int) -> Proposal:
    shape = torch.Size(distribution.batch_shape) + torch.Size(distribution.event_shape)
    if tuple(distribution.event_shape) != (dim,) or len(distribution.batch_shape):
        raise ShapeError(
            f"the proposal must have batch shape () and event shape ({dim},), got {tuple(distribution.batch_shape)} "
            f"and {tuple(distribution.event_shape)}" + ("; try .to_event(1)" if tuple(shape) == (dim,) else "")
        )
    return Proposal(_DistributionEnergy(distribution), lambda n: distribution.sample((n,)))


class _DistributionEnergy:
    is_reference = True

    def __init__(self, distribution: Any) -> None:
        self.distribution = distribution

    def __call__(self, x: Tensor) -> Tensor:
        # A trajectory may end anywhere, and distributions that check their arguments raise outside their support.
        usable = x.isfinite().all(-1) & self.distribution.support.check(x)
        # Zero times x, because a uniform density does not depend on it and yet has a gradient.
        if bool(usable.all()):
            energy: Tensor = 0.0 * x.sum(-1) - self.distribution.log_prob(x)
            return energy
        inside = x[usable]
        infinite = torch.full_like(x[..., 0], torch.inf)
        return infinite.index_put((usable,), 0.0 * inside.sum(-1) - self.distribution.log_prob(inside))


def _of_flow(guide: AutoStochasticFlow, dim: int) -> Proposal:
    path = guide.get_transform()
    if path.dim != dim:
        raise ShapeError(f"the guide works in dimension {path.dim}, the energy in {dim}")
    if path.stochastic_blocks:
        names = ", ".join(sorted({type(block).__name__ for block in path.stochastic_blocks}))
        raise TypeError(
            f"the density of a flow with stochastic blocks ({names}) is not known, so nothing can be tempered from "
            "it; pass a flow of deterministic layers, or resample inside the path with "
            "importance_sample(model, guide, resample_below=0.5)"
        )
    # Without stochastic blocks there is no noise: the path is a bijection of x alone.
    loc, scale = guide.base_loc, guide.base_scale

    def sample(n: int) -> Tensor:
        x = loc + scale * torch.randn(n, dim, dtype=loc.dtype, device=loc.device)
        return path.call_and_ladj(x)[0]

    return Proposal(PushforwardEnergy(NormalEnergy(loc, scale), [path]), sample)
