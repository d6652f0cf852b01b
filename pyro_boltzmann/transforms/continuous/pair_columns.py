"""Pairs of particles with the pairs innermost: differences, and sums over the pairs of each particle, in N^2 steps."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pyro_boltzmann.exceptions import ShapeError
from pyro_boltzmann.transforms.continuous.function_transforms import is_transformed
from pyro_boltzmann.transforms.mean_free import MeanFreeBasis

__all__ = ["PairColumns"]

_FEW = 48
"""Up to so many particles one product with a constant matrix is quicker, though its operations grow as N^3."""


class PairColumns:
    r"""The :math:`P = N (N - 1) / 2` pairs of :math:`N` particles, each once, in :math:`O(N^2)` without any index.

    Pairs are listed by the cyclic distance of their particles' numbers: first all :math:`(i, i + 1)`, then all
    :math:`(i, i + 2)`, modulo :math:`N`, the last of an even :math:`N` by half. So each gather is a difference of
    shifted views of memory, and each sum over the pairs of a particle is one of shifted views too.

    Tensors are ``(*width, rows, N)`` for particles and ``(*width, rows, P)`` for pairs, the batch flattened into rows.
    :class:`~pyro_boltzmann.transforms.ParticlePairs` keeps the width innermost instead, as linear layers want it. Up to
    48 particles one product with a constant matrix is quicker than shifted views and takes their place.

    :param num_particles: :math:`N \ge 2`.
    :param spatial_dim: :math:`D \ge 1`.
    :raises ShapeError: as :class:`~pyro_boltzmann.transforms.MeanFreeBasis` does.

    >>> pairs = PairColumns(4, 2)
    >>> z = torch.randn(5, 6)
    >>> difference = pairs.differences(z)
    >>> difference.shape
    torch.Size([2, 5, 6])
    >>> bool((pairs.forces(difference, z) - 4 * z).abs().max() < 1e-4)  # sum_j (x_i - x_j) = N x_i
    True
    """

    def __init__(self, num_particles: int, spatial_dim: int) -> None:
        self.basis = MeanFreeBasis(num_particles, spatial_dim)
        self.num_pairs = num_particles * (num_particles - 1) // 2
        self._matrices: dict[tuple[str, torch.dtype, torch.device], Tensor] = {}

    def differences(self, z: Tensor) -> Tensor:
        """:math:`x_i - x_j` of all pairs, ``(D, rows, P)``, from coordinates ``(*batch, (N - 1) D)``.

        :raises ShapeError: if the last dimension is not ``(N - 1) D``.
        """
        basis = self.basis
        if z.dim() < 1 or z.shape[-1] != basis.dim:
            raise ShapeError(
                f"expected mean-free coordinates of shape (*batch, {basis.dim}) for {basis.num_particles} particles in "
                f"{basis.spatial_dim} dimensions, got {tuple(z.shape)}; MeanFreeBasis makes them from positions"
            )
        columns = z.reshape(z.shape[:-1].numel(), basis.num_particles - 1, basis.spatial_dim).permute(2, 0, 1)
        if basis.num_particles <= _FEW:
            return columns @ self._matrix("differences", z)
        return _of_pairs(columns @ self._matrix("basis", z), -1)

    def forces(self, pair_vectors: Tensor, like: Tensor) -> Tensor:
        """What pair vectors ``(D, rows, P)`` do to the particles, plus at i and minus at j, shaped as ``like``."""
        number = self.basis.num_particles
        if number <= _FEW:
            columns = pair_vectors @ self._matrix("differences", pair_vectors).mT
        else:
            columns = _of_particles(pair_vectors, number, -1) @ self._matrix("basis", pair_vectors).mT
        return columns.permute(1, 2, 0).reshape(like.shape)

    def of_both(self, particles: Tensor) -> Tensor:
        """The sum over the two particles of each pair, ``(*width, rows, N)`` to ``(*width, rows, P)``."""
        if self.basis.num_particles <= _FEW:
            return particles @ self._matrix("sums", particles)
        return _of_pairs(particles, 1)

    def of_each(self, pairs: Tensor) -> Tensor:
        """The sum over the pairs of each particle, ``(*width, rows, P)`` to ``(*width, rows, N)``."""
        if self.basis.num_particles <= _FEW:
            return pairs @ self._matrix("sums", pairs).mT
        return _of_particles(pairs, self.basis.num_particles, 1)

    def signed_of_each(self, pairs: Tensor) -> Tensor:
        """As :meth:`of_each`, a pair's second particle taking minus its value."""
        if self.basis.num_particles <= _FEW:
            return pairs @ self._matrix("signed sums", pairs).mT
        return _of_particles(pairs, self.basis.num_particles, -1)

    def _matrix(self, name: str, like: Tensor) -> Tensor:
        """A constant matrix, kept for each dtype and device: the basis ``(N - 1, N)``, or what gives all pairs' values
        from coordinates ``(N - 1, P)`` or particles ``(N, P)``."""
        key = name, like.dtype, like.device
        found = self._matrices.get(key)
        if found is None:
            with torch.inference_mode(False), torch.no_grad():  # it is kept for those who differentiate too
                eye = torch.eye(self.basis.num_particles, dtype=torch.float64)
                helmert = self.basis.matrix(eye)
                made = {
                    "basis": lambda: helmert,
                    "sums": lambda: _shifted_sums(eye, 1),
                    "signed sums": lambda: _shifted_sums(eye, -1),
                    "differences": lambda: helmert @ _shifted_sums(eye, -1),
                }[name]()
                found = self._matrices[key] = made.to(like.device, like.dtype)
        return found


def _shifted_sums(particles: Tensor, sign: int) -> Tensor:
    """``a_i + sign a_j`` for all pairs."""
    number = particles.shape[-1]
    half, full = number // 2, (number - 1) // 2
    parts = []
    if full:
        shifted = torch.cat([particles, particles], -1).unfold(-1, number, 1)[..., 1 : full + 1, :]
        parts.append(torch.add(particles.unsqueeze(-2), shifted, alpha=sign).flatten(-2))
    if half > full:
        parts.append(torch.add(particles[..., :half], particles[..., half:], alpha=sign))
    return parts[0] if len(parts) == 1 else torch.cat(parts, -1)


def _shifted_sums_adjoint(pairs: Tensor, number: int, sign: int) -> Tensor:
    """The sum of ``w_p`` over the pairs where a particle is first, plus ``sign`` times that where it is second."""
    half, full = number // 2, (number - 1) // 2
    parts = []
    if full:
        first = pairs[..., : full * number].unflatten(-1, (full, number))
        # Row s shifted to the right by s + 1, cyclically: the flat memory of all rows twice, in strides one shorter.
        twice = torch.cat([first, first], -1).flatten(-2)
        second = twice[..., number - 1 :].unfold(-1, number, 2 * number - 1)
        parts.append(torch.add(first, second, alpha=sign).sum(-2))
    if half > full:
        last = pairs[..., full * number :]
        parts.append(torch.cat([last, last if sign > 0 else -last], -1))
    return parts[0] if len(parts) == 1 else parts[0] + parts[1]


class _PairsOfParticles(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, particles: Tensor, sign: int) -> Tensor:
        ctx.number, ctx.sign = particles.shape[-1], sign
        return _shifted_sums(particles, sign)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return _of_particles(gradient, ctx.number, ctx.sign), None


class _ParticlesOfPairs(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, pairs: Tensor, number: int, sign: int) -> Tensor:
        ctx.number, ctx.sign = number, sign
        return _shifted_sums_adjoint(pairs, number, sign)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        return _of_pairs(gradient, ctx.sign), None, None


def _of_pairs(particles: Tensor, sign: int) -> Tensor:
    if is_transformed():
        return _shifted_sums(particles, sign)
    pairs: Tensor = _PairsOfParticles.apply(particles, sign)  # type: ignore[no-untyped-call]
    return pairs


def _of_particles(pairs: Tensor, number: int, sign: int) -> Tensor:
    if is_transformed():
        return _shifted_sums_adjoint(pairs, number, sign)
    particles: Tensor = _ParticlesOfPairs.apply(pairs, number, sign)  # type: ignore[no-untyped-call]
    return particles
