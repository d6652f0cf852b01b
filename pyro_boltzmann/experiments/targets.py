"""What a TARGET on the command line stands for: a name of the catalogue, or ``module:object`` of the user's own."""

from __future__ import annotations

import difflib
import hashlib
import importlib
import inspect
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

import torch
from torch import nn

from pyro_boltzmann.energies.boltzmann_model import BoltzmannModel
from pyro_boltzmann.energies.catalogue import Target, UnknownTargetError, catalogue
from pyro_boltzmann.energies.evaluation import Energy, energy_value
from pyro_boltzmann.energies.model_energy import ModelEnergy
from pyro_boltzmann.exceptions import EnergyError, PyroBoltzmannError, ShapeError

__all__ = ["ResolvedTarget", "resolve_target"]


@dataclass(frozen=True)
class ResolvedTarget:
    """A target that can be sampled.

    :ivar name: what the user typed.
    :ivar model: a Pyro program without arguments.
    :ivar target: the target with its truths, or ``None`` for an energy or program of the user's own.
    :ivar target_hash: changes whenever the energy changes.
    """

    name: str
    model: Callable[..., Any]
    target: Target | None
    target_hash: str


def resolve_target(text: str, dim: int | None = None) -> ResolvedTarget:
    """Find a target by its catalogue name or as ``module:object``, importing from the current directory too.

    The object may be an energy (with an attribute ``dim``, unless ``dim`` is given), a
    :class:`~pyro_boltzmann.BoltzmannModel`, a :class:`~pyro_boltzmann.energies.catalogue.Target`, a class of one of
    these, or a Pyro program without arguments. Energies are tried on a few points at once, so that a wrong shape is
    found before any training. The hash of the user's own energy is made of its values at these points.

    :raises UnknownTargetError: if there is no such name, module or attribute; with the closest name there is.
    :raises EnergyError: if the object is not an energy, or fails on a batch.
    :raises ShapeError: if the dimension is missing or contradicts the object.

    >>> resolve_target("double_well").target_hash == catalogue["double_well"].target_hash
    True
    """
    thing = _load(text) if ":" in text else _from_catalogue(text)
    if inspect.isclass(thing):
        thing = _instance(text, thing)
    if isinstance(thing, Target):
        _agree(text, dim, thing.dim)
        if ":" in text:
            _probe(text, thing.energy, thing.dim)
        return ResolvedTarget(text, thing.model(), thing, thing.target_hash)
    if isinstance(thing, BoltzmannModel):
        _agree(text, dim, thing.latent_dim)
        return ResolvedTarget(text, thing, None, _probe(text, thing.unconstrained_energy, thing.latent_dim))
    if not callable(thing):
        raise EnergyError(f"{text} is a {type(thing).__name__}, expected an energy, a Pyro program or a BoltzmannModel")
    own = getattr(thing, "dim", None)
    if isinstance(own, int):
        _agree(text, dim, own)
        dim = own
    if dim is not None:
        return ResolvedTarget(text, BoltzmannModel(thing, dim), None, _probe(text, thing, dim))
    if _num_required(thing):
        raise ShapeError(f"the dimension of {text} is not known: pass --dim D, or give the energy an attribute dim")
    energy = _program_energy(text, thing)
    return ResolvedTarget(text, thing, None, _probe(text, energy, energy.latent_dim))


def _from_catalogue(name: str) -> Target:
    try:
        return catalogue[name]
    except UnknownTargetError as error:
        raise UnknownTargetError(f"{error}; an energy of your own is written module:function") from None


def _load(text: str) -> Any:
    module_name, _, attribute = text.partition(":")
    if not module_name or not attribute:
        raise UnknownTargetError(f"expected a catalogue name or module:function, got {text!r}")
    # The console script, unlike python -m, does not look here by itself.
    if os.getcwd() not in sys.path and "" not in sys.path:
        sys.path.insert(0, os.getcwd())
    importlib.invalidate_caches()
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is not None and module_name.startswith(error.name):
            raise UnknownTargetError(
                f"there is no module {module_name!r} in the current directory or on the Python path; write "
                "module:function with the file's name without .py"
            ) from error
        raise EnergyError(f"importing {module_name!r} failed: {error}; install what it needs") from error
    except Exception as error:  # a user's module may fail in any way it likes
        raise EnergyError(f"importing {module_name!r} failed: {type(error).__name__}: {error}") from error
    try:
        return attrgetter(attribute)(module)
    except AttributeError as error:
        close = difflib.get_close_matches(
            attribute, [n for n in vars(module) if not n.startswith("_")], n=1, cutoff=0.5
        )
        suggestion = f"; did you mean {close[0]!r}?" if close else ""
        raise UnknownTargetError(f"the module {module_name!r} has no {attribute!r}{suggestion}") from error


def _instance(text: str, cls: type) -> Any:
    try:
        return cls()
    except Exception as error:
        raise EnergyError(
            f"{text} is a class that cannot be made without arguments ({type(error).__name__}: {error}); name an "
            "instance of it instead"
        ) from error


def _program_energy(text: str, program: Callable[..., Any]) -> ModelEnergy:
    try:
        return ModelEnergy(program)
    except PyroBoltzmannError:
        raise
    except Exception as error:
        raise EnergyError(
            f"the Pyro program {text} failed: {type(error).__name__}: {error}; for an energy give --dim D"
        ) from error


def _num_required(thing: Callable[..., Any]) -> int:
    """Number of arguments without a default; an ``nn.Module`` hides those of its ``forward``."""
    try:
        parameters = inspect.signature(thing.forward if isinstance(thing, nn.Module) else thing).parameters.values()
    except ValueError:  # builtins have no signature; nobody writes a Pyro program as one
        return 1
    plain = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return sum(p.default is p.empty and p.kind in plain for p in parameters)


def _agree(text: str, asked: int | None, known: int) -> None:
    if asked is not None and asked != known:
        raise ShapeError(f"{text} has dimension {known}, but --dim {asked} was given; leave --dim out")


@torch.no_grad()
def _probe(text: str, energy: Energy, dim: int) -> str:
    points = torch.randn(8, dim, generator=torch.Generator().manual_seed(0))
    try:
        values = energy_value(energy, points)
        # Pyro looks at one configuration without a batch when it sets a guide up.
        energy_value(energy, points[0])
    except PyroBoltzmannError as error:
        raise EnergyError(f"{text}: {error}") from error
    except Exception as error:
        raise EnergyError(
            f"{text} failed on points of shape (8, {dim}) or ({dim},): {type(error).__name__}: {error}; an energy maps "
            "(*batch, dim) to (*batch) for any batch: index from the right (x[..., 0]) and sum with .sum(-1)"
        ) from error
    described = f"{dim}:" + ",".join(f"{value:.5g}" for value in values.double().tolist())
    return hashlib.sha256(described.encode()).hexdigest()[:16]
