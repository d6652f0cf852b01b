"""Pairs of particles with the batch innermost: differences, and sums over the pairs of each particle, in N^2 operations."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pyro_boltzmann.exceptions import ShapeError
from pyro_boltzmann.transforms.mean_free import MeanFreeBasis

__all__ = ["PairColumns"]


class PairColumns:
    r"""The :math:`P = N (N - 1) / 2` pairs of :math:`N` particles, each once, in :math:`O(N^2)` without any index.

    Pairs are listed by the cyclic distance of their particles' numbers: first all :math:`(i, i + 1)`, then all
    :math:`(i, i + 2)`, modulo :math:`N`, the last of an even :math:`N` by half. So each gather is a difference of shifted
    views of memory, and each sum over the pairs of a particle is one of shifted views too.

    Tensors are ``(*width, N, rows)`` for particles and ``(*width, P, rows)`` for pairs, with the batch flattened into
    rows: element-wise work runs along memory. :class:`~pyro_boltzmann.transforms.ParticlePairs` keeps the width innermost
    instead, as linear layers want it.

    :param num_particles: :math:`N \ge 2`.
    :param spatial_dim: :math:`D \ge 1`.
    :raises ShapeError: as :class:`~pyro_boltzmann.transforms.MeanFreeBasis` does.

    >>> pairs = PairColumns(4, 2)
    >>> z = torch.randn(5, 6)
    >>> difference = pairs.differences(z)
    >>> difference.shape
    torch.Size([2, 6, 5])
    >>> bool((pairs.forces(difference, z) - 4 * z).abs().max() < 1e-4)  # sum_j (x_i - x_j) = N x_i
    True
    """

    def __init__(self, num_particles: int, spatial_dim: int) -> None:
        self.basis = MeanFreeBasis(num_particles, spatial_dim)
        self.num_pairs = num_particles * (num_particles - 1) // 2

    def differences(self, z: Tensor) -> Tensor:
        """:math:`x_i - x_j` of all pairs, ``(D, P, rows)``, from coordinates ``(*batch, (N - 1) D)``.

        :raises ShapeError: if the last dimension is not ``(N - 1) D``.
        """
        basis = self.basis
        if z.dim() < 1 or z.shape[-1] != basis.dim:
            raise ShapeError(
                f"expected mean-free coordinates of shape (*batch, {basis.dim}) for {basis.num_particles} particles in "
                f"{basis.spatial_dim} dimensions, got {tuple(z.shape)}; MeanFreeBasis makes them from positions"
            )
        columns = z.reshape(z.shape[:-1].numel(), basis.num_particles - 1, basis.spatial_dim).permute(2, 1, 0)
        return _of_pairs(basis.matrix(z).mT @ columns, -1)

    def forces(self, pair_vectors: Tensor, like: Tensor) -> Tensor:
        """What pair vectors ``(D, P, rows)`` do to the particles, plus at i and minus at j, with the shape of ``like``."""
        particles = _of_particles(pair_vectors, self.basis.num_particles, -1)
        return (self.basis.matrix(particles) @ particles).permute(2, 1, 0).reshape(like.shape)

    def of_both(self, particles: Tensor) -> Tensor:
        """The sum over the two particles of each pair, ``(*width, N, rows)`` to ``(*width, P, rows)``."""
        return _of_pairs(particles, 1)

    def of_each(self, pairs: Tensor) -> Tensor:
        """The sum over the pairs of each particle, ``(*width, P, rows)`` to ``(*width, N, rows)``."""
        return _of_particles(pairs, self.basis.num_particles, 1)

    def signed_of_each(self, pairs: Tensor) -> Tensor:
        """As :meth:`of_each`, a pair's second particle taking minus its value."""
        return _of_particles(pairs, self.basis.num_particles, -1)


class _PairsOfParticles(torch.autograd.Function):
    """``a_i + sign a_j`` for all pairs; its adjoint is :class:`_ParticlesOfPairs`."""

    generate_vmap_rule = True

    @staticmethod
    def forward(particles: Tensor, sign: int) -> Tensor:
        number, rows = particles.shape[-2:]
        half, full = number // 2, (number - 1) // 2
        parts = []
        if full:
            twice = torch.cat([particles, particles], -2).contiguous()
            lead = twice.stride()[:-2]
            shifted = twice.as_strided((*twice.shape[:-2], full, number, rows), (*lead, rows, rows, 1), rows)
            parts.append(torch.add(particles.unsqueeze(-3), shifted, alpha=sign).flatten(-3, -2))
        if half > full:
            parts.append(torch.add(particles[..., :half, :], particles[..., half:, :], alpha=sign))
        return parts[0] if len(parts) == 1 else torch.cat(parts, -2)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.number, ctx.sign = inputs[0].shape[-2], inputs[1]

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return _of_particles(gradient, ctx.number, ctx.sign), None

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, _: None) -> Tensor:
        return _of_pairs(tangent, ctx.sign)


class _ParticlesOfPairs(torch.autograd.Function):
    """The sum of ``w_p`` over the pairs where a particle is first, plus ``sign`` times that where it is second."""

    generate_vmap_rule = True

    @staticmethod
    def forward(pairs: Tensor, number: int, sign: int) -> Tensor:
        rows = pairs.shape[-1]
        half, full = number // 2, (number - 1) // 2
        total = None
        if full:
            first = pairs[..., : full * number, :].unflatten(-2, (full, number))
            twice = torch.cat([first, first], -2).contiguous()
            lead = twice.stride()[:-3]
            shape, steps = (*first.shape[:-3], full, number, rows), (*lead, (2 * number - 1) * rows, rows, 1)
            second = twice.as_strided(shape, steps, (number - 1) * rows)
            total = torch.add(first, second, alpha=sign).sum(-3)
        if half == full and total is not None:
            return total
        last = pairs[..., full * number :, :]
        both = torch.cat([last, last if sign > 0 else -last], -2)
        return both if total is None else total + both

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.number, ctx.sign = inputs[1:]

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        return _of_pairs(gradient, ctx.sign), None, None

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, *_: None) -> Tensor:
        return _of_particles(tangent, ctx.number, ctx.sign)


def _of_pairs(particles: Tensor, sign: int) -> Tensor:
    pairs: Tensor = _PairsOfParticles.apply(particles, sign)  # type: ignore[no-untyped-call]
    return pairs


def _of_particles(pairs: Tensor, number: int, sign: int) -> Tensor:
    particles: Tensor = _ParticlesOfPairs.apply(pairs, number, sign)  # type: ignore[no-untyped-call]
    return particles
