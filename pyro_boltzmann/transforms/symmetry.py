"""The symmetry group of identical particles, acting on positions and on Helmert coordinates."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from pyro_boltzmann.exceptions import ShapeError
from pyro_boltzmann.transforms.mean_free import MeanFreeBasis

__all__ = ["ParticleElement", "ParticleSymmetry", "random_orthogonal"]


@dataclass(frozen=True)
class ParticleElement:
    r"""Elements :math:`g` of the group, :math:`(g x)_i = R\, x_{\sigma(i)} + t`: one, or one for each configuration.

    :ivar rotation: orthogonal :math:`R`, ``(*batch, D, D)``.
    :ivar order: the permutation :math:`\sigma`, ``(*batch, N)`` of integers.
    :ivar translation: :math:`t`, ``(*batch, D)``. Helmert coordinates do not feel it.
    """

    rotation: Tensor
    order: Tensor
    translation: Tensor

    def inverse(self) -> ParticleElement:
        r""":math:`g^{-1} = (R^T, \sigma^{-1}, -R^T t)`."""
        back = self.rotation.mT
        return ParticleElement(back, self.order.argsort(-1), -_rotate(back, self.translation))

    def __matmul__(self, first: ParticleElement) -> ParticleElement:
        """The element that does ``first``, then this one."""
        order, first_order = torch.broadcast_tensors(self.order, first.order)
        return ParticleElement(
            self.rotation @ first.rotation,
            first_order.gather(-1, order),
            _rotate(self.rotation, first.translation) + self.translation,
        )


class ParticleSymmetry:
    r"""Rotations, reflections, permutations and translations of :math:`N` identical particles in :math:`D` dimensions:

    .. math:: (g x)_i = R\, x_{\sigma(i)} + t, \qquad R \in O(D) \text{ or } SO(D), \quad \sigma \in S_N .

    In Helmert coordinates, :math:`z = H x`, it is :math:`Z \mapsto H P_\sigma H^T Z R^T` for the rows :math:`Z`
    ``(N - 1, D)`` of :math:`z`: an orthogonal map, so densities keep their values along it.

    :param num_particles: :math:`N \ge 2`.
    :param spatial_dim: :math:`D \ge 1`.
    :param rotations: draw :math:`R`, else :math:`R = I`.
    :param reflections: draw it from :math:`O(D)`, else from :math:`SO(D)`.
    :param permutations: draw permutations.
    :param translation_scale: standard deviation of normal translations, for functions of positions.
    :raises ShapeError: for a size out of range.

    >>> symmetry = ParticleSymmetry(4, 2)
    >>> z = torch.randn(5, 6)
    >>> g = symmetry.random(5, generator=torch.Generator().manual_seed(0))
    >>> torch.allclose(symmetry.act(g, z).norm(dim=-1), z.norm(dim=-1))
    True
    >>> torch.allclose(symmetry.act(g.inverse(), symmetry.act(g, z)), z, atol=1e-5)
    True
    """

    def __init__(
        self,
        num_particles: int,
        spatial_dim: int,
        *,
        rotations: bool = True,
        reflections: bool = True,
        permutations: bool = True,
        translation_scale: float = 0.0,
    ) -> None:
        self.basis = MeanFreeBasis(num_particles, spatial_dim)
        self.rotations = rotations
        self.reflections = reflections
        self.permutations = permutations
        self.translation_scale = translation_scale

    @property
    def num_particles(self) -> int:
        """:math:`N`."""
        return self.basis.num_particles

    @property
    def spatial_dim(self) -> int:
        """:math:`D`."""
        return self.basis.spatial_dim

    def random(
        self,
        num_elements: int | None = None,
        *,
        generator: Generator | None = None,
        like: Tensor | None = None,
    ) -> ParticleElement:
        """Independent elements by the Haar measure; one that all configurations share without ``num_elements``.

        :param num_elements: one for each configuration.
        :param like: a tensor of the dtype and device to draw in.
        """
        like = torch.empty(()) if like is None else like
        batch = () if num_elements is None else (num_elements,)
        size, dim = self.num_particles, self.spatial_dim
        rotation = torch.eye(dim, dtype=like.dtype, device=like.device).expand(*batch, dim, dim)
        if self.rotations:
            rotation = random_orthogonal(batch, dim, proper=not self.reflections, generator=generator, like=like)
        order = torch.arange(size, device=like.device).expand(*batch, size)
        if self.permutations:
            order = torch.rand(*batch, size, generator=generator, dtype=torch.float64, device=like.device).argsort(-1)
        translation = torch.zeros(*batch, dim, dtype=like.dtype, device=like.device)
        if self.translation_scale:
            translation = self.translation_scale * torch.randn(
                *batch, dim, generator=generator, dtype=like.dtype, device=like.device
            )
        return ParticleElement(rotation, order, translation)

    def act(self, g: ParticleElement, z: Tensor) -> Tensor:
        """:math:`g z` of Helmert coordinates ``(*batch, (N - 1) D)``, one element each or one for all.

        :raises ShapeError: if the last dimension is not ``(N - 1) D``.
        """
        return self.basis.to_coordinates(self.act_on_particles(g, self.basis.to_particles(z), translate=False))

    def act_on_particles(self, g: ParticleElement, x: Tensor, *, translate: bool = True) -> Tensor:
        """:math:`g x` of positions ``(*batch, N, D)``.

        :raises ShapeError: if the last two dimensions are not ``(N, D)``.
        """
        if x.dim() < 2 or x.shape[-2:] != (self.num_particles, self.spatial_dim):
            raise ShapeError(
                f"expected positions of shape (*batch, {self.num_particles}, {self.spatial_dim}), got {tuple(x.shape)}"
                "; Helmert coordinates are moved by .act(g, z)"
            )
        batch = torch.broadcast_shapes(x.shape[:-2], g.order.shape[:-1])
        index = g.order.unsqueeze(-1).expand(*batch, *x.shape[-2:])
        moved = x.expand(*batch, *x.shape[-2:]).gather(-2, index) @ g.rotation.to(x).mT
        return moved + g.translation.to(x).unsqueeze(-2) if translate else moved

    def augment(self, z: Tensor) -> Tensor:
        """A copy of the data ``(n, (N - 1) D)``, each row moved by an element of its own.

        Data augmentation for models that do not know the symmetry: ``symmetry.augment`` is the callable to apply to
        each minibatch. Random numbers come from torch's global generator, so that a seeded run repeats them.

        >>> ParticleSymmetry(4, 2).augment(torch.zeros(3, 6)).shape
        torch.Size([3, 6])
        """
        if z.dim() != 2:
            raise ShapeError(f"expected data of shape (n, {self.basis.dim}), got {tuple(z.shape)}")
        return self.act(self.random(len(z), like=z), z)


def random_orthogonal(
    batch: tuple[int, ...], dim: int, *, proper: bool = False, generator: Generator | None = None, like: Tensor
) -> Tensor:
    r"""Matrices ``(*batch, D, D)`` by the Haar measure of :math:`O(D)`, or of :math:`SO(D)` if ``proper``.

    The factor :math:`Q` of a Gaussian matrix :math:`QR` with the signs that make the diagonal of :math:`R` positive.
    Source: Mezzadri, Notices of the AMS 54 (2007), 592.

    >>> q = random_orthogonal((4,), 3, proper=True, like=torch.empty((), dtype=torch.float64))
    >>> torch.allclose(torch.linalg.det(q), torch.ones(4).double())
    True
    """
    gaussian = torch.randn(*batch, dim, dim, generator=generator, dtype=like.dtype, device=like.device)
    factor, r = torch.linalg.qr(gaussian)
    # sign(0) = 0 would lose a column.
    q: Tensor = factor * torch.where(r.diagonal(dim1=-2, dim2=-1) < 0, -1.0, 1.0).to(r).unsqueeze(-2)
    if proper:
        q = torch.cat([q[..., :1] * torch.linalg.det(q).sign()[..., None, None], q[..., 1:]], -1)
    return q


def _rotate(rotation: Tensor, vector: Tensor) -> Tensor:
    return (rotation @ vector.unsqueeze(-1)).squeeze(-1)
