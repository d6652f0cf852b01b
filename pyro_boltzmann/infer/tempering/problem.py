"""What is to be sampled: an energy on R^d with its dimension, however the user wrote it."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pyro_boltzmann.energies.boltzmann_model import BoltzmannModel
from pyro_boltzmann.energies.catalogue.target import Target
from pyro_boltzmann.energies.evaluation import Energy, energy_value
from pyro_boltzmann.energies.model_energy import ModelEnergy
from pyro_boltzmann.exceptions import ShapeError

__all__ = ["Problem", "resolve_problem"]


@dataclass(frozen=True)
class Problem:
    """An energy of flat unconstrained vectors.

    :ivar energy: ``(*batch, dim) -> (*batch)``.
    :ivar dim: dimension of the unconstrained space.
    :ivar constrain: maps ``(*batch, dim)`` to the model's sites.
    :ivar bounds: a box for each coordinate where the density is known to live, if any.
    """

    energy: Energy
    dim: int
    constrain: Callable[[Tensor], dict[str, Tensor]]
    bounds: tuple[tuple[float, float], ...] | None = None


def resolve_problem(model_or_energy: Any, args: tuple[Any, ...], kwargs: dict[str, Any], dim: int | None) -> Problem:
    """Read a Pyro program with its arguments, a ``BoltzmannModel``, a catalogue target, or an energy with ``dim``.

    :raises ShapeError: if the dimension of an energy is missing or contradicts its own.
    :raises TypeError: if the object is not callable.
    :raises ModelError: for a program that is not an energy (discrete latents, subsampled plates).
    :raises EnergyError: if the energy returns a wrong shape.

    >>> resolve_problem(lambda x: 0.5 * x.square().sum(-1), (), {}, 3).dim
    3
    """
    if not callable(model_or_energy):
        raise TypeError(
            f"expected a Pyro program or an energy (*batch, dim) -> (*batch), got {type(model_or_energy).__name__}"
        )
    if isinstance(model_or_energy, Target | BoltzmannModel) and (args or kwargs):
        unknown = ", ".join([*map(repr, args), *kwargs])
        raise TypeError(f"unexpected arguments: {unknown}; a {type(model_or_energy).__name__} takes none of its own")
    if isinstance(model_or_energy, Target):
        _agree(dim, model_or_energy.dim)
        bounds = model_or_energy.bounds if len(model_or_energy.bounds) == model_or_energy.dim else None
        return Problem(model_or_energy, model_or_energy.dim, _as_x, bounds)
    if isinstance(model_or_energy, BoltzmannModel):
        _agree(dim, model_or_energy.latent_dim)
        return Problem(model_or_energy.unconstrained_energy, model_or_energy.latent_dim, model_or_energy.constrain)
    own = getattr(model_or_energy, "dim", None)
    if dim is None and isinstance(own, int) and not args and not kwargs:
        dim = own
    if dim is not None:
        if isinstance(own, int):
            _agree(dim, own)
        if args or kwargs:
            unknown = ", ".join([*map(repr, args), *kwargs])
            raise TypeError(
                f"unexpected arguments: {unknown}; an energy with dim= takes none of its own (bind them with "
                "functools.partial)"
            )
        energy_value(model_or_energy, torch.zeros(2, dim))
        return Problem(model_or_energy, dim, _as_x)
    try:
        inspect.signature(model_or_energy).bind(*args, **kwargs)
    except TypeError as error:
        raise TypeError(
            f"the program cannot be called with the arguments given ({error}); pass what it needs, or dim= if this is "
            "an energy (*batch, dim) -> (*batch)"
        ) from None
    except ValueError:  # callables without a signature speak for themselves
        pass
    energy = ModelEnergy(model_or_energy, *args, **kwargs)
    return Problem(energy, energy.latent_dim, energy.constrain)


def _as_x(z: Tensor) -> dict[str, Tensor]:
    return {"x": z}


def _agree(asked: int | None, own: int) -> None:
    if asked not in (None, own):
        raise ShapeError(f"the energy has dimension {own}, but dim={asked} was given; leave dim out")
