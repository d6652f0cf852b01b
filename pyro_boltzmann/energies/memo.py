"""What is already known about the energies at the current state, so that nothing is computed twice."""

from __future__ import annotations

import math
from collections.abc import Hashable

import torch
from torch import Tensor

from pyro_boltzmann.energies.annealed import AnnealedEnergy, combine
from pyro_boltzmann.energies.evaluation import Energy, energy_and_gradient, energy_value
from pyro_boltzmann.energies.held import HeldEnergy, bare
from pyro_boltzmann.energies.rows import RowMask
from pyro_boltzmann.energies.tracing import is_tracing

__all__ = ["EnergyMemo"]

Entry = tuple[Tensor, Tensor | None]


class EnergyMemo:
    r"""Values and gradients of energies at one batch of states ``x``.

    Blocks pass it along a path: a force computed after one step is the force before the next, and the energy of the
    last state is the one in the weight. Annealed energies are stored as their components, so that a change of
    :math:`\lambda` costs nothing. An entry is only ever valid for the ``x`` it was computed at; whoever moves ``x``
    starts a new memo.
    """

    __slots__ = ("entries",)

    def __init__(self, entries: dict[Hashable, Entry] | None = None) -> None:
        self.entries: dict[Hashable, Entry] = {} if entries is None else entries

    def value(self, energy: Energy | HeldEnergy, x: Tensor) -> Tensor:
        """:math:`u(x)`, shape ``(*batch)``."""
        return combine([(c, self._component(e, x, gradient=False)[0]) for c, e in _components(energy)])

    def gradient(self, energy: Energy | HeldEnergy, x: Tensor) -> Tensor:
        r""":math:`\nabla u(x)`, shape ``(*batch, dim)``; its value comes in the same pass and is kept."""
        terms: list[tuple[float | Tensor, Tensor]] = []
        for c, e in _components(energy):
            gradient = self._component(e, x, gradient=True)[1]
            assert gradient is not None
            terms.append((c, gradient))
        return combine(terms)

    def known_value(self, energy: Energy | HeldEnergy) -> Tensor | None:
        """The value if it needs no new evaluation."""
        components = _components(energy)
        found = [self.entries.get(_key(e)) for _, e in components]
        if any(entry is None for entry in found):
            return None
        return combine([(c, entry[0]) for (c, _), entry in zip(components, found, strict=True) if entry is not None])

    def known_gradient(self, energy: Energy | HeldEnergy) -> Tensor | None:
        """The gradient if it needs no new evaluation."""
        terms: list[tuple[float | Tensor, Tensor]] = []
        for c, e in _components(energy):
            gradient = self.entries.get(_key(e), (None, None))[1]
            if gradient is None:
                return None
            terms.append((c, gradient))
        return combine(terms)

    def where(self, mask: RowMask, other: EnergyMemo) -> EnergyMemo:
        """Rows of this memo where ``mask``, rows of ``other`` elsewhere; only what both know survives."""
        merged: dict[Hashable, Entry] = {}
        for key, (value, gradient) in self.entries.items():
            if key in other.entries:
                old_value, old_gradient = other.entries[key]
                both = None
                if gradient is not None and old_gradient is not None:
                    both = mask.select(gradient, old_gradient)
                merged[key] = (mask.select(value, old_value), both)
        return EnergyMemo(merged)

    def count_nonfinite(self) -> Tensor | None:
        """How many rows have an energy that is not finite; ``None`` if no energy is known."""
        bad: Tensor | None = None
        for value, _ in self.entries.values():
            value = value.detach()
            if not value.is_cuda and not is_tracing() and math.isfinite(float(value.sum())):
                bad = torch.zeros_like(value, dtype=torch.bool) if bad is None else bad
            else:
                bad = ~value.isfinite() if bad is None else bad | ~value.isfinite()
        return None if bad is None else bad.sum()

    def rows(self, index: Tensor) -> EnergyMemo:
        """The memo of ``x[index]``, for a boolean mask or integer index over the (flat) batch."""
        return EnergyMemo({k: (v[index], None if g is None else g[index]) for k, (v, g) in self.entries.items()})

    def only(self, energy: Energy | HeldEnergy) -> EnergyMemo:
        """What is known of this energy alone."""
        keys = [_key(e) for _, e in _components(energy)]
        return EnergyMemo({key: self.entries[key] for key in keys if key in self.entries})

    def _component(self, energy: Energy, x: Tensor, *, gradient: bool) -> Entry:
        key = _key(energy)
        entry = self.entries.get(key)
        if entry is None or (gradient and entry[1] is None):
            entry = _evaluate(energy, x, gradient)
            self.entries[key] = entry
        return entry


def _components(energy: Energy | HeldEnergy) -> list[tuple[float | Tensor, Energy]]:
    energy = bare(energy)
    return energy.components() if isinstance(energy, AnnealedEnergy) else [(1.0, energy)]


def _key(energy: Energy) -> Hashable:
    try:
        hash(energy)
    except TypeError:
        return id(energy)
    return energy


def _evaluate(energy: Energy, x: Tensor, gradient: bool) -> Entry:
    """Value and, on request, force. A force that is not finite is zero, at both ends of a step alike, so that no path
    loses its weight to NaN."""
    guard = _Guard(x) if x.requires_grad and torch.is_grad_enabled() and not is_tracing() else None
    x = x if guard is None else guard.x
    value, force = energy_and_gradient(energy, x) if gradient else (energy_value(energy, x), None)
    if guard is not None:
        guard.lost = ~value.detach().isfinite().unsqueeze(-1)
        if force is not None:
            guard.lost = guard.lost | ~force.detach().isfinite().all(-1, keepdim=True)
    if force is None:
        return value, None
    if not torch.is_grad_enabled() and not force.is_cuda and math.isfinite(float(force.sum())):
        return value, force  # one sum is much cheaper than mending what needs no mending
    return value, force.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)


class _Guard:
    """Keeps states of infinite energy or force from sending anything back through their evaluation.

    Paths that reach them have weight zero or reject them, so their derivative is left out of every loss as a factor of
    zero; but zero times an infinite derivative is NaN, and one such state would spoil the gradient of all parameters.
    """

    def __init__(self, x: Tensor) -> None:
        self.lost: Tensor | None = None
        self.x = x.view_as(x)  # a tensor of its own: only what comes back through this evaluation is seen
        self.x.register_hook(self._drop)

    def _drop(self, gradient: Tensor) -> Tensor | None:
        return None if self.lost is None else torch.where(self.lost, 0.0, gradient)
