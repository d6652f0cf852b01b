"""Polynomials on unit intervals with their derivatives, and gradients in closed form; B-splines in this form."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from scipy.interpolate import BSpline, PPoly
from torch import Tensor

from pyro_boltzmann.transforms.continuous.function_transforms import is_transformed

__all__ = ["coefficient_gradients", "evaluate", "even_spline_table", "piecewise_polynomials"]


def piecewise_polynomials(u: Tensor, table: Tensor, order: int) -> tuple[Tensor, ...]:
    r"""Derivatives 0 to ``order`` of :math:`M` functions that are one polynomial in :math:`u - m` for
    :math:`m \le u < m + 1`.

    Their gradient with respect to ``u`` is the next derivative, and the gradient of the coefficients a sum over the
    points of each interval. Both are in closed form; a graph of the gradient is made on demand.

    :param u: points :math:`\ge 0`, ``(L,)``.
    :param table: coefficients ``(M, p + 1, intervals + 1)``, lowest power first; those of the last interval hold for
        all points from there on, and have to be zero.
    :param order: at most :math:`p`.
    :return: tensors ``(M, L)``.

    >>> table = torch.tensor([[[1.0, 0.0], [0.0, 0.0], [-1.0, 0.0]]])  # 1 - u^2 on [0, 1], then 0
    >>> piecewise_polynomials(torch.tensor([0.5, 7.0]), table, 1)
    (tensor([[0.7500, 0.0000]]), tensor([[-1.,  0.]]))
    """
    if torch.is_grad_enabled() and not is_transformed():
        found: tuple[Tensor, ...] = _PiecewisePolynomials.apply(u, table, order)  # type: ignore[no-untyped-call]
        return found
    return tuple(evaluate(u, table, order))


def evaluate(u: Tensor, table: Tensor, order: int) -> list[Tensor]:
    """As :func:`piecewise_polynomials`, in operations that can be differentiated any number of times."""
    index, x = _place(u, table.shape[-1])
    rows = list(table.flatten(0, 1).index_select(1, index).view(*table.shape[:2], len(u)).unbind(1))
    found: list[Tensor] = []
    for n in range(order + 1):  # Horner's scheme: its partial sums are the coefficients of the next derivative
        for power in range(len(rows) - 2, n - 1, -1):
            rows[power] = torch.addcmul(rows[power], rows[power + 1], x)
        found.append(rows[n] if n < 2 else math.factorial(n) * rows[n])
    return found


def coefficient_gradients(gradients: Sequence[Tensor], u: Tensor, shape: torch.Size) -> Tensor:
    r"""The gradient, of a table's shape, of its coefficients: of power a, the sum of
    :math:`\sum_n g_n\, \partial^n_x x^a` over the points of each interval, :math:`g_n` being ``(M, L)``."""
    width, powers, intervals = shape
    index, x = _place(u, intervals)
    found = [torch.ones_like(x), x]
    for _ in range(powers - 2):
        found.append(found[-1] * x)
    monomials = torch.stack(found)
    terms = gradients[0].unsqueeze(1) * monomials
    for n, gradient in enumerate(gradients[1:], 1):
        monomials = monomials[:-1] * _factors(n, powers, x.dtype, x.device)
        terms[:, n:] += gradient.unsqueeze(1) * monomials
    sums = terms.new_zeros(width * powers, intervals)
    return sums.scatter_add(1, index.expand(width * powers, -1), terms.reshape(width * powers, -1)).view(shape)


@functools.lru_cache(maxsize=32)
def even_spline_table(num_kernels: int, degree: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    r"""The tables of :math:`B(u - k) + [k > 0]\, B(u + k)` for :math:`k = 0, \dots, K - 1`, with :math:`B` the centred
    cardinal B-spline: ``(K, (p + 1) (intervals + 1))``, which weights ``(M, K)`` turn into tables of their sums."""
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
    with torch.inference_mode(False):  # it is kept for those who differentiate too
        return torch.as_tensor(table.reshape(num_kernels, -1)).to(device, dtype)


class _PiecewisePolynomials(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, u: Tensor, table: Tensor, order: int) -> tuple[Tensor, ...]:
        found = evaluate(u, table, order + 1)
        ctx.save_for_backward(u, table, *found[1:])
        return tuple(found[:-1])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        u, table, *higher = ctx.saved_tensors
        if torch.is_grad_enabled():
            higher = evaluate(u, table, len(gradients))[1:]
        towards_u = towards_table = None
        if ctx.needs_input_grad[0]:
            towards_u = gradients[0] * higher[0]
            for gradient, derivative in zip(gradients[1:], higher[1:], strict=True):
                towards_u = torch.addcmul(towards_u, gradient, derivative)
            towards_u = towards_u.sum(0)
        if ctx.needs_input_grad[1]:
            towards_table = coefficient_gradients(gradients, u, table.shape)
        return towards_u, towards_table, None


def _place(u: Tensor, intervals: int) -> tuple[Tensor, Tensor]:
    """The interval of each point, and how far it is inside; NaN counts as beyond the end, what it is multiplied with is
    NaN anyway."""
    u = u.fmin(torch.full_like(u, intervals - 1.0))
    return u.long(), u.frac()


@functools.lru_cache(maxsize=32)
def _factors(first: int, end: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """The column of the numbers from ``first`` to below ``end``."""
    with torch.inference_mode(False):
        return torch.arange(first, end, dtype=dtype, device=device).unsqueeze(-1)
