"""Metastable states that a flow's draws lead to and its training data do not."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pyro_boltzmann.diagnostics import Metric
from pyro_boltzmann.energies.catalogue.particles import ParticleTarget
from pyro_boltzmann.energies.evaluation import energy_value
from pyro_boltzmann.experiments.bendem_rows import to_plain
from pyro_boltzmann.infer import find_minima

__all__ = ["States", "find_states"]


@dataclass(frozen=True)
class States:
    """Minima below training data and draws.

    :ivar rows: by the name of the draws, in JSON: ``states_data``, the minima below the training data;
        ``states_drawn``, below the draws; ``states_new``, those of the draws that are not below the data;
        ``draws`` that count, and how many of them end in a new state, ``draws_new``.
    :ivar lowest: the lowest minimum of all, ``(dim,)``, and ``lowest_energy``.
    :ivar new: the lowest new minimum of each set of draws that has one, ``(k, dim)``, with ``new_energy`` ``(k,)``.
    """

    rows: dict[str, dict[str, Any]]
    lowest: Tensor
    lowest_energy: float
    new: Tensor
    new_energy: Tensor


def find_states(
    target: ParticleTarget, data: Tensor, draws: Mapping[str, tuple[int, Tensor]], highest: float = math.inf
) -> States:
    """Descend from data and draws together, and count the states of each; a state counts if its Hessian, rotations
    apart, is positive.

    From any point at all one descends to some minimum. So draws only count that could be the target's own: whose
    energy is not above ``highest``.

    :param data: ``(n, dim)``.
    :param draws: by name, the size of the training set, the first rows of ``data``, and the draws ``(m, dim)``.
    :param highest: energy of a draw, such as the highest among reference samples.
    """
    finite = {name: x[energy_value(target.energy, x) <= highest] for name, (_, x) in draws.items()}
    found = find_minima(target.energy, torch.cat([data, *finite.values()]), target.basis)
    good = found.is_minimum
    below_data, *parts = found.label.split([len(data), *map(len, finite.values())])
    rows, new_states = {}, []
    for (name, (size, _)), labels in zip(draws.items(), parts, strict=True):
        known, drawn = _states(below_data[:size], good), _states(labels, good)
        new = drawn[~torch.isin(drawn, known)]
        numbers = {
            "train_size": size,
            "states_data": len(known),
            "states_drawn": len(drawn),
            "states_new": len(new),
            "draws": len(labels),
            "draws_new": int(torch.isin(labels, new).sum()),
        }
        rows[name] = {key: to_plain(Metric(float(number))) for key, number in numbers.items()}
        new_states += new[:1].tolist()
    lowest = int(good.nonzero()[0])
    chosen = torch.tensor(sorted(set(new_states)), dtype=torch.long)
    return States(rows, found.x[lowest], float(found.energy[lowest]), found.x[chosen], found.energy[chosen])


def _states(labels: Tensor, good: Tensor) -> Tensor:
    """The verified states among labels, the lowest first."""
    states: Tensor = torch.unique(labels[labels >= 0])
    verified: Tensor = states[good[states]]
    return verified
