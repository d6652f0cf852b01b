"""The network of a diffusion guide: the default one, and whether a given one fits."""

from __future__ import annotations

from typing import Any

from torch import nn

from pyro_boltzmann.diffusion.networks import EnergyMLP, EquivariantNetwork, InvariantNetwork, ScoreMLP
from pyro_boltzmann.exceptions import ShapeError

__all__ = ["check_network", "default_network"]


def check_network(network: nn.Module, kind: str, dim: int) -> None:
    """Refuse one of our networks that is of the other kind or dimension.

    :param kind: as for :class:`~pyro_boltzmann.AutoDiffusion`.
    :raises TypeError: for the other kind.
    :raises ShapeError: for another dimension.
    """
    is_scalar = isinstance(network, EnergyMLP | InvariantNetwork)
    if is_scalar if kind == "score" else isinstance(network, ScoreMLP | EquivariantNetwork) and not is_scalar:
        needed = "vector (ScoreMLP, EquivariantNetwork)" if kind == "score" else "number (EnergyMLP, InvariantNetwork)"
        raise TypeError(
            f"kind={kind!r} needs a network whose result is a {needed}, got {type(network).__name__}; take one of "
            "these, the other kind, or no network for the default"
        )
    own = getattr(network, "dim", dim)
    if isinstance(own, int) and own != dim:
        raise ShapeError(
            f"the model has {dim} unconstrained latents, the {type(network).__name__} was built for {own}; a function "
            "of the dimension, network=lambda dim: ..., cannot get it wrong"
        )


def default_network(kind: str, target: Any, dim: int, **size: int) -> nn.Module:
    """The network of a guide that was given none: for particles one that knows their symmetries, else a perceptron.

    :param kind: as for :class:`~pyro_boltzmann.AutoDiffusion`.
    :param target: anything; particles have ``num_particles`` and ``spatial_dim``.
    :param size: ``width`` and ``depth``, in place of the network's own.

    >>> type(default_network("score", None, 2, width=16)).__name__
    'ScoreMLP'
    """
    particles, space = getattr(target, "num_particles", None), getattr(target, "spatial_dim", None)
    if isinstance(particles, int) and isinstance(space, int) and (particles - 1) * space == dim:
        if kind == "energy":
            return InvariantNetwork(particles, space, **size)
        return EquivariantNetwork(particles, space, num_scalars=1, **size)
    mlp = EnergyMLP if kind == "energy" else ScoreMLP
    features: dict[str, Any] = {"num_scalars": dim, "num_frequencies": 12, "finest": 32.0}
    return mlp(dim, **size, **features)
