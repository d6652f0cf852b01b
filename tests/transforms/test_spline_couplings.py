"""Splines and couplings: bijections, with the log-determinants that autograd gives."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from pyro_boltzmann.transforms import SplineCouplings, rational_quadratic_spline


def random_parameters(*shape: int) -> Tensor:
    return 2.0 * torch.randn(*shape, 23, dtype=torch.float64)


def perturbed(couplings: SplineCouplings, size: float = 0.3) -> SplineCouplings:
    for layer in couplings.last:
        torch.nn.init.normal_(layer.weight, std=size)  # type: ignore[arg-type]
        torch.nn.init.normal_(layer.bias, std=size)  # type: ignore[arg-type]
    return couplings.double()


@pytest.mark.parametrize("inverse", [False, True])
def test_the_slope_of_a_spline_is_its_derivative(inverse: bool) -> None:
    x = torch.linspace(-5.0, 5.0, 997, dtype=torch.float64, requires_grad=True)
    parameters = random_parameters(1).expand(997, -1)
    y, ladj = rational_quadratic_spline(x, parameters, 4.0, inverse=inverse)
    (slope,) = torch.autograd.grad(y.sum(), x)
    assert bool((y.diff() > 0).all())
    torch.testing.assert_close(ladj, slope.log(), rtol=0, atol=1e-11)
    back, _ = rational_quadratic_spline(y, parameters, 4.0, inverse=not inverse)
    torch.testing.assert_close(back, x, rtol=0, atol=1e-11)


def test_zero_parameters_and_tails_are_the_identity() -> None:
    x = torch.linspace(-6.0, 6.0, 101, dtype=torch.float64)
    y, ladj = rational_quadratic_spline(x, torch.zeros(101, 23, dtype=torch.float64), 4.0)
    torch.testing.assert_close(y, x, rtol=0, atol=1e-14)
    assert float(ladj.abs().max()) < 1e-14
    y, ladj = rational_quadratic_spline(x, random_parameters(101), 4.0)
    tail = x.abs() >= 4.0
    assert torch.equal(y[tail], x[tail])
    assert float(ladj[x.abs() > 4.0].abs().max()) == 0.0


@pytest.mark.parametrize("dim", [1, 2, 3, 6])
def test_couplings_have_the_determinant_of_their_jacobian(dim: int) -> None:
    couplings = perturbed(SplineCouplings(dim, 5, width=16))
    z, context = torch.randn(4, dim, dtype=torch.float64), torch.randn(4, 5, dtype=torch.float64)
    w, ladj = couplings(z, context)
    for row in range(4):
        jacobian = torch.autograd.functional.jacobian(lambda x, row=row: couplings(x, context[row])[0], z[row])
        torch.testing.assert_close(torch.linalg.slogdet(jacobian).logabsdet, ladj[row], rtol=0, atol=1e-9)
    back, inverse_ladj = couplings.inverse(w, context)
    torch.testing.assert_close(back, z, rtol=0, atol=1e-9)
    torch.testing.assert_close(inverse_ladj, -ladj, rtol=0, atol=1e-9)


def test_many_states_share_one_context() -> None:
    couplings = perturbed(SplineCouplings(3, 5, width=16))
    z, context = torch.randn(7, 4, 3, dtype=torch.float64), torch.randn(4, 5, dtype=torch.float64)
    together = couplings(z, couplings.context_terms(context))[0]
    apart = couplings(z, context.expand(7, 4, 5))[0]
    torch.testing.assert_close(together, apart)


@pytest.mark.parametrize("dim", [1, 3, 6])
def test_every_parameter_has_a_gradient(dim: int) -> None:
    couplings = perturbed(SplineCouplings(dim, 5, width=16))
    w, ladj = couplings(torch.randn(50, dim, dtype=torch.float64), torch.randn(50, 5, dtype=torch.float64))
    (w.square().sum() + ladj.sum()).backward()
    for name, parameter in couplings.named_parameters():
        assert parameter.grad is not None and float(parameter.grad.abs().sum()) > 0.0, name


def test_every_coordinate_moves() -> None:
    for dim in range(1, 9):
        moved = SplineCouplings(dim, 2, width=4).moved
        assert {index for layer in moved for index in layer} == set(range(dim))
