"""Energies are evaluated with checked shapes and counted per particle."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from pyro_boltzmann.energies.evaluation import (
    EvaluationCount,
    count_evaluations,
    energy_and_gradient,
    energy_value,
    record_evaluations,
)
from pyro_boltzmann.exceptions import EnergyError


def quartic(x: Tensor) -> Tensor:
    return x.pow(4).sum(-1)


def test_values_are_counted_per_particle() -> None:
    with count_evaluations() as count:
        energy_value(quartic, torch.ones(3, 5, 2))
        energy_value(quartic, torch.ones(2))
    assert count == EvaluationCount(values=16, gradients=0)


def test_a_value_with_a_graph_counts_as_a_gradient_too() -> None:
    with count_evaluations() as count:
        energy_value(quartic, torch.ones(4, 2, requires_grad=True))
    assert count == EvaluationCount(values=4, gradients=4)


def test_contexts_nest_and_close_even_when_their_counts_are_equal() -> None:
    with count_evaluations() as outer:
        with count_evaluations() as inner:
            energy_value(quartic, torch.ones(3, 2))
        energy_value(quartic, torch.ones(4, 2))
    energy_value(quartic, torch.ones(5, 2))
    assert (outer.values, inner.values) == (7, 3)


def test_context_closes_on_error() -> None:
    with pytest.raises(ZeroDivisionError), count_evaluations() as count:
        raise ZeroDivisionError
    record_evaluations(values=2, gradients=1)
    assert count == EvaluationCount()


def test_arithmetic_and_export_of_counts() -> None:
    total = EvaluationCount(5, 2) + EvaluationCount(1, 1) - EvaluationCount(2, 0)
    copied = total.copy()
    copied.values += 1
    assert total.to_dict() == {"values": 4, "gradients": 3}
    assert copied.values == 5


@pytest.mark.parametrize(("energy", "shape"), [(lambda x: x, "(3, 2)"), (lambda x: x.sum(), "()")])
def test_wrong_shape_names_both_shapes(energy: object, shape: str) -> None:
    with pytest.raises(EnergyError) as caught:
        energy_value(energy, torch.ones(3, 2))  # type: ignore[arg-type]
    assert "(3,)" in str(caught.value)
    assert shape in str(caught.value)


def test_result_must_be_a_tensor() -> None:
    with pytest.raises(EnergyError, match=r"torch\.Tensor"):
        energy_value(lambda x: 1.0, torch.ones(3, 2))  # type: ignore[arg-type, return-value]


@pytest.mark.parametrize("event_dim", [0, 1, 2])
def test_event_dimensions(event_dim: int) -> None:
    x = torch.full((4, 3, 2), 2.0)
    event = tuple(range(3 - event_dim, 3))
    u = energy_value(lambda x: x.square().sum(event) if event else x.square(), x, event_dim)
    assert u.shape == x.shape[: 3 - event_dim]
    assert torch.equal(u, torch.full_like(u, 4.0 * x.numel() / u.numel()))


def test_gradient_is_exact_and_keeps_no_graph_without_grad() -> None:
    x = torch.tensor([[1.0, -2.0], [0.5, 3.0]])
    with torch.no_grad(), count_evaluations() as count:
        u, gradient = energy_and_gradient(quartic, x)
    assert not u.requires_grad and not gradient.requires_grad and not x.requires_grad
    torch.testing.assert_close(u, x.pow(4).sum(-1))
    torch.testing.assert_close(gradient, 4 * x.pow(3))
    assert count == EvaluationCount(2, 2)


def test_gradient_is_differentiable_with_grad() -> None:
    x = torch.tensor([[1.0, -2.0]], requires_grad=True)
    _, gradient = energy_and_gradient(quartic, x)
    (second,) = torch.autograd.grad(gradient.sum(), x)
    torch.testing.assert_close(second, 12 * x.detach().square())


def test_detached_energy_is_refused() -> None:
    with pytest.raises(EnergyError, match="no gradient"):
        energy_and_gradient(lambda x: x.detach().square().sum(-1), torch.ones(3, 2))
