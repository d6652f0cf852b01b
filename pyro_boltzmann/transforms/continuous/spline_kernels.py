"""Functions of a distance as even B-splines: a handful of multiplications a pair, whatever the resolution."""

from __future__ import annotations

import functools
import math
from typing import Any

import numpy as np
import torch
from scipy.interpolate import BSpline, PPoly
from torch import Tensor, nn

from pyro_boltzmann.transforms.continuous.function_transforms import is_transformed
from pyro_boltzmann.transforms.continuous.radial_kernels import RadialKernels

__all__ = ["SplineKernels"]


class SplineKernels(RadialKernels):
    r"""Even B-splines of odd degree :math:`p` on :math:`[0, R]`: with :math:`B` the centred cardinal B-spline and :math:`u = d / h`,

    .. math:: \kappa_k(d) = B(u - k) + [k > 0]\, B(u + k), \qquad k = 0, \dots, K - 1, \qquad h = R \big/ \bigl(K + \tfrac{p - 1}{2}\bigr).

    Sums of them are :math:`p - 1` times continuously differentiable everywhere, at :math:`d = 0` as functions of the
    vector too, since they are even there: :math:`F'(d) / d` is finite. They and all derivatives vanish from :math:`R` on, and
    add up to one on :math:`[0, R - p h]`. In each interval a sum is one polynomial: one look-up and Horner's scheme give it and its
    derivatives, at a cost that does not depend on :math:`K`. The backward pass is in closed form as well.

    :param num_kernels: :math:`K \ge 1`.
    :param radius: :math:`R > 0`.
    :param degree: :math:`p`, 3 or 5.
    :param trainable_radius: make :math:`\log h` a parameter; otherwise a buffer.
    :raises ValueError: for anything else.

    >>> kernels = SplineKernels(64, radius=8.0)
    >>> value, slope = kernels.derivatives(torch.tensor([0.0, 4.0, 8.0, 80.0]), torch.ones(1, 64), order=1)
    >>> value.round(decimals=5), bool(slope.abs().max() < 1e-5)
    (tensor([[1., 1., 0., 0.]]), True)

    Source: C. de Boor, A Practical Guide to Splines (1978), chapter IX.
    """

    log_spacing: Tensor

    def __init__(
        self, num_kernels: int = 64, radius: float = 8.0, *, degree: int = 5, trainable_radius: bool = False
    ) -> None:
        super().__init__()
        if num_kernels < 1 or not radius > 0.0 or degree not in (3, 5):
            raise ValueError(
                "spline kernels need num_kernels >= 1, radius > 0 and degree 3 or 5, got "
                f"num_kernels={num_kernels}, radius={radius}, degree={degree}"
            )
        self.num_kernels = num_kernels
        self.degree = degree
        self.num_intervals = num_kernels + (degree - 1) // 2
        log_spacing = torch.tensor(math.log(radius / self.num_intervals))
        if trainable_radius:
            self.log_spacing = nn.Parameter(log_spacing)
        else:
            self.register_buffer("log_spacing", log_spacing)

    @property
    def centres(self) -> Tensor:
        """Where each kernel peaks, :math:`k h`, ``(K,)``."""
        spacing = self.log_spacing.detach().exp()
        return spacing * torch.arange(self.num_kernels, dtype=spacing.dtype, device=spacing.device)

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
        table = weights @ _polynomials(self.num_kernels, self.degree, weights.dtype, weights.device)
        table = table.view(len(weights), self.degree + 1, self.num_intervals + 1)
        inverse = (-self.log_spacing).exp()
        u = distance.reshape(-1) * inverse
        if torch.is_grad_enabled() and not is_transformed():
            found = _PiecewisePolynomials.apply(u, table, order)  # type: ignore[no-untyped-call]
        else:
            found = _evaluate(u, table, order)
        shaped = [one.view(len(weights), *distance.shape) for one in found]
        return (shaped[0], *(one * inverse**n for n, one in enumerate(shaped[1:], 1)))


class _PiecewisePolynomials(torch.autograd.Function):
    """:func:`_evaluate` with a backward pass in closed form.

    The gradient with respect to ``u`` is the next derivative; the gradients with respect to the coefficients are sums
    over the points of each interval. A graph of the gradient is made on demand.
    """

    @staticmethod
    def forward(ctx: Any, u: Tensor, table: Tensor, order: int) -> tuple[Tensor, ...]:
        found = _evaluate(u, table, order + 1)
        ctx.save_for_backward(u, table, *found[1:])
        return tuple(found[:-1])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        u, table, *higher = ctx.saved_tensors
        if torch.is_grad_enabled():
            higher = _evaluate(u, table, len(gradients))[1:]
        towards_u = towards_table = None
        if ctx.needs_input_grad[0]:
            towards_u = gradients[0] * higher[0]
            for gradient, derivative in zip(gradients[1:], higher[1:], strict=True):
                towards_u = torch.addcmul(towards_u, gradient, derivative)
            towards_u = towards_u.sum(0)
        if ctx.needs_input_grad[1]:
            towards_table = _sums_of_intervals(gradients, u, table.shape)
        return towards_u, towards_table, None


def _evaluate(u: Tensor, table: Tensor, order: int) -> list[Tensor]:
    """Derivatives 0 to ``order``, each ``(M, points)``, of polynomials ``(M, p + 1, intervals + 1)`` in ``u - floor(u)``,
    the last of which are zero."""
    index, local = _place(u, table.shape[-1])
    rows = table.flatten(0, 1).index_select(1, index).view(*table.shape[:2], -1)
    return _horner(rows, local, order)


def _place(u: Tensor, intervals: int) -> tuple[Tensor, Tensor]:
    """The interval of each point, and how far it is inside; NaN counts as beyond the end, what it is multiplied with is
    NaN anyway."""
    u = u.fmin(torch.full_like(u, intervals - 1.0))
    return u.long(), u.frac()


def _horner(coefficients: Tensor, x: Tensor, order: int) -> list[Tensor]:
    """Derivatives 0 to ``order`` at ``x`` of polynomials ``(M, p + 1, points)``, lowest power first."""
    rows = list(coefficients.unbind(1))
    found: list[Tensor] = []
    for n in range(order + 1):
        for power in range(len(rows) - 2, n - 1, -1):
            rows[power] = torch.addcmul(rows[power], rows[power + 1], x)
        found.append(rows[n] if n < 2 else math.factorial(n) * rows[n])
    return found


def _sums_of_intervals(gradients: tuple[Tensor, ...], u: Tensor, shape: torch.Size) -> Tensor:
    r"""The gradient ``(M, p + 1, intervals + 1)`` of the coefficients: of power a, the sums of
    :math:`\sum_n g_n\, \partial^n_x x^a` over the points of each interval."""
    width, powers, intervals = shape
    index, x = _place(u, intervals)
    monomials = [torch.ones_like(x)]
    for _ in range(powers - 1):
        monomials.append(monomials[-1] * x)
    terms = []
    for power in range(powers):
        term = gradients[0] * monomials[power]
        for n, gradient in enumerate(gradients[1 : power + 1], 1):
            term = torch.addcmul(term, gradient, monomials[power - n], value=math.perm(power, n))
        terms.append(term)
    sums = gradients[0].new_zeros(width * powers, intervals)
    where = index.expand(width * powers, -1)
    return sums.scatter_add(1, where, torch.stack(terms, 1).flatten(0, 1)).view(shape)


@functools.lru_cache(maxsize=32)
def _polynomials(num_kernels: int, degree: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Each kernel's polynomials in all intervals, ``(K, (p + 1) (intervals + 1))``, lowest power first."""
    half = (degree + 1) // 2
    element = BSpline.basis_element(np.arange(degree + 2.0))
    pieces = PPoly.from_spline(element).c[::-1, degree:-degree]  # without the empty intervals of repeated end knots
    intervals = num_kernels + half - 1
    table = np.zeros((num_kernels, degree + 1, intervals + 1))
    for kernel in range(num_kernels):
        for centre in {kernel, -kernel}:
            for piece in range(degree + 1):
                interval = centre - half + piece
                if 0 <= interval < intervals:
                    table[kernel, :, interval] += pieces[:, piece]
    table[:, 1:degree:2, 0] = 0.0  # an even function has no odd powers but the last; rounding would leave some
    return torch.as_tensor(table.reshape(num_kernels, -1)).to(device, dtype)
