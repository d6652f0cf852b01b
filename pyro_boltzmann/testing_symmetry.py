"""Checks of invariance and equivariance under the symmetries of identical particles."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Generator, Tensor

from pyro_boltzmann.exceptions import ShapeError
from pyro_boltzmann.transforms.symmetry import ParticleSymmetry

__all__ = ["check_equivariance", "check_invariance", "is_equivariant", "is_invariant"]


def check_invariance(
    f: Callable[[Tensor], Tensor],
    symmetry: ParticleSymmetry,
    x: Tensor,
    *,
    tolerance: float = 1e-5,
    num_elements: int = 8,
    seed: int = 0,
) -> float:
    r"""Check :math:`f(g x) = f(x)` for random elements, a fresh one for each row each time.

    :param f: from configurations to anything with the same batch: an energy, a log-density, features.
    :param symmetry: the group; its ``translation_scale`` counts for functions of positions alone.
    :param x: Helmert coordinates ``(n, (N - 1) D)``, or positions ``(n, N, D)``. Their dtype is that of the check.
    :param tolerance: of :math:`|f(g x) - f(x)| / \max(1, |f(x)|)`, the largest over rows, elements and entries.
    :param num_elements: elements tried for each row.
    :return: that largest deviation.
    :raises AssertionError: if it is above the tolerance, or NaN.
    :raises ShapeError: if ``x`` is neither, or ``f`` does not keep the batch.

    >>> symmetry = ParticleSymmetry(4, 2)
    >>> check_invariance(lambda z: z.square().sum(-1), symmetry, torch.randn(10, 6)) < 1e-5
    True
    """
    error = _deviation(f, symmetry, x, num_elements, seed, moves_value=False)
    # Negated, so that NaN is a failure.
    if not error <= tolerance:
        raise AssertionError(f"f(g x) differs from f(x) by {error:.3g} (tolerance {tolerance:g}): f is not invariant")
    return error


def check_equivariance(
    f: Callable[[Tensor], Tensor],
    symmetry: ParticleSymmetry,
    x: Tensor,
    *,
    tolerance: float = 1e-5,
    num_elements: int = 8,
    seed: int = 0,
) -> float:
    r"""Check :math:`f(g x) = g f(x)`, as :func:`check_invariance` does.

    :param f: from configurations to configurations of the same form: a flow, a force, a field. Forces and fields are
        differences of positions: give ``symmetry`` no ``translation_scale`` for them.
    :return: the largest deviation, over :math:`\max(1, |f(x)|)`.
    :raises AssertionError: if it is above the tolerance, or NaN.

    >>> symmetry = ParticleSymmetry(4, 2)
    >>> check_equivariance(lambda z: z * z.norm(dim=-1, keepdim=True), symmetry, torch.randn(10, 6)) < 1e-5
    True
    """
    error = _deviation(f, symmetry, x, num_elements, seed, moves_value=True)
    if not error <= tolerance:
        raise AssertionError(
            f"f(g x) differs from g f(x) by {error:.3g} (tolerance {tolerance:g}): f is not equivariant"
        )
    return error


def is_invariant(
    f: Callable[[Tensor], Tensor], symmetry: ParticleSymmetry, x: Tensor, *, tolerance: float = 1e-5, seed: int = 0
) -> bool:
    """Whether :func:`check_invariance` passes.

    >>> is_invariant(lambda z: z.sum(-1), ParticleSymmetry(4, 2), torch.randn(10, 6))
    False
    """
    return _deviation(f, symmetry, x, 8, seed, moves_value=False) <= tolerance


def is_equivariant(
    f: Callable[[Tensor], Tensor], symmetry: ParticleSymmetry, x: Tensor, *, tolerance: float = 1e-5, seed: int = 0
) -> bool:
    """Whether :func:`check_equivariance` passes.

    >>> is_equivariant(torch.tanh, ParticleSymmetry(4, 2), torch.randn(10, 6))
    False
    """
    return _deviation(f, symmetry, x, 8, seed, moves_value=True) <= tolerance


@torch.no_grad()
def _deviation(
    f: Callable[[Tensor], Tensor],
    symmetry: ParticleSymmetry,
    x: Tensor,
    num_elements: int,
    seed: int,
    *,
    moves_value: bool,
) -> float:
    if num_elements < 1:
        raise ValueError(f"num_elements must be at least 1, got {num_elements}")
    on_particles = x.dim() == 3
    if x.dim() not in (2, 3) or x.shape[0] == 0:
        raise ShapeError(
            f"expected coordinates (n, (N - 1) D) or positions (n, N, D) with n >= 1, got {tuple(x.shape)}"
        )
    act = symmetry.act_on_particles if on_particles else symmetry.act
    generator = Generator(x.device).manual_seed(seed)
    value = f(x)
    expected = x.shape if moves_value else x.shape[:1]
    if value.shape[: len(expected)] != expected:
        raise ShapeError(f"f of {tuple(x.shape)} must have the shape {tuple(expected)}, got {tuple(value.shape)}")
    scale = value.abs().clamp(min=1.0)
    if moves_value:
        scale = scale.flatten(1).amax(-1).reshape(-1, *[1] * (x.dim() - 1))
    worst = x.new_zeros(())
    for _ in range(num_elements):
        g = symmetry.random(len(x), generator=generator, like=x)
        expected_value = act(g, value) if moves_value else value
        worst = torch.maximum(worst, ((f(act(g, x)) - expected_value).abs() / scale).max())
    return float(worst)
