"""Functions of a distance as even B-splines: a handful of multiplications a pair, whatever the resolution."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pyro_boltzmann.transforms.continuous.function_transforms import is_transformed
from pyro_boltzmann.transforms.continuous.piecewise_polynomials import (
    coefficient_gradients,
    evaluate,
    even_spline_table,
    piecewise_polynomials,
)
from pyro_boltzmann.transforms.continuous.radial_kernels import RadialKernels, smooth_distance

__all__ = ["SplineKernels"]


class SplineKernels(RadialKernels):
    r"""Even B-splines of odd degree :math:`p` on :math:`[0, R]`: with :math:`B` the centred cardinal B-spline and
    :math:`u = d / h`,

    .. math::

        \kappa_k(d) = B(u - k) + [k > 0]\, B(u + k), \qquad k = 0, \dots, K - 1, \qquad
        h = R \big/ \bigl(K + \tfrac{p - 1}{2}\bigr).

    Sums of them are :math:`p - 1` times continuously differentiable everywhere, at :math:`d = 0` as functions of the
    vector too, since they are even there: :math:`F'(d) / d` is finite. They and all derivatives vanish from :math:`R`
    on, and the kernels add up to one on :math:`[0, R - p h]`. In each interval a sum is one polynomial: one look-up and
    Horner's scheme give it and its derivatives, at a cost that does not depend on :math:`K`. No number underflows.

    :param num_kernels: :math:`K \ge 1`.
    :param radius: :math:`R > 0`.
    :param degree: :math:`p`, 3 or 5.
    :raises ValueError: for anything else.

    >>> kernels = SplineKernels(64, radius=8.0)
    >>> value, slope = kernels.derivatives(torch.tensor([0.0, 4.0, 8.0, 80.0]), torch.ones(1, 64), order=1)
    >>> value.round(decimals=5), bool(slope.abs().max() < 1e-5)
    (tensor([[1., 1., 0., 0.]]), True)

    Source: C. de Boor, A Practical Guide to Splines (1978), chapter IX.
    """

    spacing: Tensor

    def __init__(self, num_kernels: int = 64, radius: float = 10.0, *, degree: int = 5) -> None:
        super().__init__()
        if num_kernels < 1 or not radius > 0.0 or degree not in (3, 5):
            raise ValueError(
                "spline kernels need num_kernels >= 1, radius > 0 and degree 3 or 5, got "
                f"num_kernels={num_kernels}, radius={radius}, degree={degree}"
            )
        self.num_kernels = num_kernels
        self.degree = degree
        self.num_intervals = num_kernels + (degree - 1) // 2
        self.register_buffer("spacing", torch.tensor(radius / self.num_intervals))

    @property
    def centres(self) -> Tensor:
        """Where each kernel peaks, :math:`k h`, ``(K,)``."""
        return self.spacing * torch.arange(self.num_kernels, dtype=self.spacing.dtype, device=self.spacing.device)

    def forward(self, values: Tensor) -> Tensor:
        """All kernels ``(*shape, K)`` of values ``(*shape)``."""
        every = torch.eye(self.num_kernels, dtype=values.dtype, device=values.device)
        return self.derivatives(values, every, 0)[0].movedim(0, -1)

    def derivatives(self, distance: Tensor, weights: Tensor, order: int) -> tuple[Tensor, ...]:
        """As :meth:`RadialKernels.derivatives`, up to one below the degree.

        :raises ValueError: for higher derivatives.
        """
        if not 0 <= order < self.degree:
            raise ValueError(f"splines of degree {self.degree} have {self.degree - 1} derivatives, got order={order}")
        found = piecewise_polynomials(distance.reshape(-1) / self.spacing, self._table(weights), order)
        shaped = [one.view(len(weights), *distance.shape) for one in found]
        return (shaped[0], *(one / self.spacing**n for n, one in enumerate(shaped[1:], 1)))

    def pair_forces(self, difference: Tensor, weights: Tensor, constant: Tensor) -> tuple[Tensor, Tensor]:
        """As :meth:`RadialKernels.pair_forces`, with forward and backward pass in closed form."""
        table = self._table(weights)
        if torch.is_grad_enabled() and not is_transformed():
            found: tuple[Tensor, Tensor] = _PairForces.apply(  # type: ignore[no-untyped-call]
                difference, table, constant, self.spacing
            )
            return found
        return _pair_forces(difference, table, constant, self.spacing, 1)[:2]

    def _table(self, weights: Tensor) -> Tensor:
        """The polynomials ``(M, p + 1, intervals + 1)`` of sums with given weights ``(M, K)``."""
        table = weights @ even_spline_table(self.num_kernels, self.degree, weights.dtype, weights.device)
        return table.view(len(weights), self.degree + 1, self.num_intervals + 1)


def _pair_forces(
    difference: Tensor, table: Tensor, constant: Tensor, spacing: Tensor, order: int
) -> tuple[Tensor, Tensor, tuple[Tensor, ...]]:
    """Forces and divergence, and what they were made of: square, distance, u, and the radial function's derivatives."""
    square, distance = smooth_distance(difference)
    u = (distance / spacing).view(-1)
    force, slope, *higher = (one.view(square.shape) for one in evaluate(u, table, order))
    force, slope = force + constant, slope / spacing
    local = torch.addcmul(len(difference) * force, slope, square / distance)
    return force * difference, 2.0 * local.sum(-1), (square, distance, u, force, slope, *higher)


class _PairForces(torch.autograd.Function):
    r"""With :math:`q = 2 \bar c` and :math:`p = \bar w \cdot r` of the cotangents of :math:`w = f r` and of
    :math:`c = 2 \sum (D f + f' |r|^2 / d)`,

    .. math::

        \bar f = p + D q, \quad \bar{f'} = q |r|^2 / d, \quad
        \bar r = f \bar w
        + \bigl[\tfrac{f'}{d} (p + q (D + 2 - \tfrac{|r|^2}{d^2})) + q f'' \tfrac{|r|^2}{d^2}\bigr] r .
    """

    @staticmethod
    def forward(
        ctx: Any, difference: Tensor, table: Tensor, constant: Tensor, spacing: Tensor
    ) -> tuple[Tensor, Tensor]:
        forces, divergence, parts = _pair_forces(difference, table, constant, spacing, 2)
        ctx.save_for_backward(difference, table, constant, spacing, *parts)
        return forces, divergence

    @staticmethod
    def backward(ctx: Any, towards_forces: Tensor, towards_divergence: Tensor) -> tuple[Tensor | None, ...]:
        difference, table, constant, spacing, square, distance, u, force, slope, bend = ctx.saved_tensors
        if torch.is_grad_enabled():
            inputs = [one for one, needed in zip(ctx.saved_tensors[:3], ctx.needs_input_grad, strict=False) if needed]
            outputs = _pair_forces(difference, table, constant, spacing, 1)[:2]
            made = iter(torch.autograd.grad(outputs, inputs, (towards_forces, towards_divergence), create_graph=True))
            return (*(next(made) if needed else None for needed in ctx.needs_input_grad[:3]), None)
        dim = len(difference)
        along = (towards_forces * difference).sum(0)
        both = (2.0 * towards_divergence).unsqueeze(-1)
        towards_force = torch.add(along, both, alpha=dim)
        towards_difference = towards_table = None
        if ctx.needs_input_grad[0]:
            share = square / distance.square()
            radial = torch.addcmul(along, both, dim + 2.0 - share) * (slope / distance)
            radial = torch.addcmul(radial, both / spacing**2, bend * share)
            towards_difference = torch.addcmul(force * towards_forces, radial, difference)
        if ctx.needs_input_grad[1]:
            towards_slope = both / spacing * (square / distance)
            gradients = [one.reshape(1, -1) for one in (towards_force, towards_slope)]
            towards_table = coefficient_gradients(gradients, u, table.shape)
        return towards_difference, towards_table, towards_force.sum() if ctx.needs_input_grad[2] else None, None
