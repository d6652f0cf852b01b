"""Copies of data that were moved by the energy."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from pyro_boltzmann.energies.catalogue import catalogue
from pyro_boltzmann.experiments.moved_data import moved_copies

SIGMAS = 4.5


@pytest.mark.parametrize("name", ["dw2", "dw4"])
def test_moves_keep_the_law_and_leave_the_rows(name: str) -> None:
    """The mean energy of the last copies is that of the rows (4.5 s.e. of the paired difference), and the rows are
    far from where they were."""
    torch.manual_seed(0)
    target: Any = catalogue[name]
    rows = target.sample(4000) if target.has_exact_sampler else moved_copies(target, _settled(target), 4, seed=1)[0]
    copies, _ = moved_copies(target, rows, 3, seed=2)
    assert torch.equal(copies[: len(rows)], rows)
    gap = (target.energy(copies[-len(rows) :]) - target.energy(rows)).double()
    assert gap.mean().abs() < SIGMAS * gap.std() / len(gap) ** 0.5
    assert (copies[-len(rows) :] != rows).any(-1).float().mean() > 0.99


def _settled(target: Any) -> torch.Tensor:
    """Rows of the target's own law, by long moves from draws of a Gaussian."""
    return moved_copies(target, torch.randn(500, target.dim), 200, seed=3)[0][-500:]


def test_gradients_are_counted() -> None:
    """By an energy that counts the rows whose gradient it was asked for."""
    asked = []

    class Counted:
        name, dim = "counted", 3

        def energy(self, x: torch.Tensor) -> torch.Tensor:
            if x.requires_grad:
                asked.append(len(x))
            return 0.5 * x.square().sum(-1)

    target: Any = Counted()
    _, gradients = moved_copies(target, torch.randn(7, 3), 2, seed=0)
    assert gradients == sum(asked)
