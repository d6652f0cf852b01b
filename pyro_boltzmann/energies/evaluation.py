"""Evaluate energies: checked shapes, counted calls, forces without a graph unless one is needed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from pyro_boltzmann.energies.columns import by_columns
from pyro_boltzmann.exceptions import EnergyError

__all__ = [
    "Energy",
    "EvaluationCount",
    "count_evaluations",
    "energy_and_gradient",
    "energy_value",
    "record_evaluations",
]

Energy = Callable[[Tensor], Tensor]
"""Anything that maps ``(*batch, *event)`` to ``(*batch)``.
One that keeps its argument should keep a clone: while paths are streamed, the memory of a state is used again."""


@dataclass
class EvaluationCount:
    """Energy evaluations, counted per particle (one value of one configuration counts 1).

    Energies marked ``is_reference = True`` (the Gaussian base, a flow's own density) are not counted.
    A value whose autograd graph is kept counts as one value and one gradient, because its backward pass follows.
    """

    values: int = 0
    gradients: int = 0

    def __sub__(self, other: EvaluationCount) -> EvaluationCount:
        return EvaluationCount(self.values - other.values, self.gradients - other.gradients)

    def __add__(self, other: EvaluationCount) -> EvaluationCount:
        return EvaluationCount(self.values + other.values, self.gradients + other.gradients)

    def copy(self) -> EvaluationCount:
        return EvaluationCount(self.values, self.gradients)

    def to_dict(self) -> dict[str, int]:
        return {"values": self.values, "gradients": self.gradients}


_open_counts: list[EvaluationCount] = []


@contextmanager
def count_evaluations() -> Iterator[EvaluationCount]:
    """Count every energy evaluation made inside the block (contexts nest, each sees its own).

    >>> import torch
    >>> with count_evaluations() as count:
    ...     u = energy_value(lambda x: 0.5 * x.square().sum(-1), torch.zeros(5, 2))
    >>> count
    EvaluationCount(values=5, gradients=0)
    """
    count = EvaluationCount()
    _open_counts.append(count)
    try:
        yield count
    finally:
        # Remove this object, not an equal one: two counts with the same numbers compare equal.
        for index in reversed(range(len(_open_counts))):
            if _open_counts[index] is count:
                del _open_counts[index]
                break


def record_evaluations(values: int = 0, gradients: int = 0) -> None:
    """Add evaluations made elsewhere (for example inside a traced Pyro model) to every open count."""
    for count in _open_counts:
        count.values += values
        count.gradients += gradients


def energy_value(energy: Energy, x: Tensor, event_dim: int = 1) -> Tensor:
    """Evaluate ``energy`` at ``x`` of shape ``(*batch, *event)``; the result has shape ``(*batch)``.

    :raises EnergyError: if the result is not a tensor of the batch shape.
    """
    u = energy(x)
    _check(u, x, event_dim)
    keeps_graph = u.requires_grad
    _count(energy, u.numel(), u.numel() if keeps_graph else 0)
    return u


def energy_and_gradient(energy: Energy, x: Tensor, event_dim: int = 1) -> tuple[Tensor, Tensor]:
    r"""Evaluate :math:`u(x)` and :math:`\nabla u(x)` in one pass.

    Under ``torch.no_grad()`` neither keeps a graph; otherwise the gradient is differentiable, so that parameters
    upstream of ``x`` (and of the energy) receive exact gradients through it.

    An energy with a method ``energy_and_gradient(x) -> (u, gradient)`` of its own (a closed form, a molecular engine)
    is asked for both instead of being differentiated.

    :raises EnergyError: if the energy does not depend differentiably on ``x``.
    """
    closed_form = getattr(energy, "energy_and_gradient", None)
    if closed_form is not None:
        u, gradient = closed_form(x)
        _check(u, x, event_dim)
        _count(energy, u.numel(), u.numel())
        return u, gradient
    keeps_graph = torch.is_grad_enabled()
    with torch.enable_grad():
        if not keeps_graph or not x.requires_grad:
            x = x.detach().requires_grad_()
        u = energy(x)
        _check(u, x, event_dim)
        if not u.requires_grad:
            raise EnergyError(
                "the energy has no gradient with respect to x; write it with differentiable torch operations "
                "(no .detach(), .numpy() or torch.no_grad() inside), or use blocks that need values only, such as "
                "MetropolisAdjusted(RandomWalkTransform(...), energy)"
            )
        (gradient,) = torch.autograd.grad(u.sum(), x, create_graph=keeps_graph)
    _count(energy, u.numel(), u.numel())
    return (u, gradient) if keeps_graph else (u.detach(), gradient if x.is_contiguous() else by_columns(gradient))


def _count(energy: Energy, values: int, gradients: int) -> None:
    # A reference (the base of a path, a flow's own density) is no target: what it costs is not what a result cost.
    if not getattr(energy, "is_reference", False):
        record_evaluations(values, gradients)


def _check(u: object, x: Tensor, event_dim: int) -> None:
    expected = x.shape[: x.dim() - event_dim]
    if not isinstance(u, Tensor):
        raise EnergyError(f"the energy must return a torch.Tensor of shape {tuple(expected)}, got {type(u).__name__}")
    if u.shape != expected:
        raise EnergyError(
            f"the energy of x with shape {tuple(x.shape)} must have the batch shape {tuple(expected)}, got "
            f"{tuple(u.shape)}; reduce over the event dimensions only, for example with .sum(-1)"
        )
