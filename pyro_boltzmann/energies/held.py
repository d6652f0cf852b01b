"""Hold an energy outside the module tree, so that no optimiser trains the target by accident."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

from torch import Tensor, nn

from pyro_boltzmann.energies.annealed import AnnealedEnergy
from pyro_boltzmann.energies.evaluation import Energy

__all__ = ["HeldEnergy", "hold"]


class HeldEnergy:
    """A plain-object reference to an energy: invisible to ``parameters()`` and shared, not copied, by ``deepcopy``.

    An energy with ``copies_with_path = True`` is copied, because it belongs to one path or guide.
    """

    def __init__(self, energy: Energy) -> None:
        self.energy = energy

    def __call__(self, x: Tensor) -> Tensor:
        return self.energy(x)

    @property
    def is_local(self) -> bool:
        """Whether rows of a batch belong to data of their own, as in a
        :class:`~pyro_boltzmann.energies.LocalEnergy`."""
        return bool(getattr(self.energy, "is_local", False))

    def __deepcopy__(self, memo: dict[int, Any]) -> HeldEnergy:
        copies = getattr(self.energy, "copies_with_path", False)
        return HeldEnergy(deepcopy(self.energy, memo) if copies else self.energy)

    def __repr__(self) -> str:
        return f"HeldEnergy({self.energy!r})"


def hold(energy: Energy | HeldEnergy) -> AnnealedEnergy | HeldEnergy:
    """Wrap an energy for storage on a block.

    An :class:`~pyro_boltzmann.energies.AnnealedEnergy` is kept as a module, because its position may be learned; it
    holds its own target outside the tree. Everything else, ``nn.Module`` energies included, is hidden.

    :raises TypeError: if ``energy`` is not callable.
    """
    if isinstance(energy, AnnealedEnergy | HeldEnergy):
        return energy
    if not callable(energy):
        raise TypeError(f"an energy must be callable, (*batch, dim) -> (*batch); got {type(energy).__name__}")
    return HeldEnergy(energy)


def bare(energy: Energy | HeldEnergy | nn.Module) -> Energy:
    """The energy a user handed in, whose identity keys the memo."""
    return energy.energy if isinstance(energy, HeldEnergy) else energy
