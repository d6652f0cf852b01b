"""Metastable states: minima of an energy below a set of draws, told apart and verified."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pyro_boltzmann.energies.evaluation import Energy, energy_and_gradient
from pyro_boltzmann.exceptions import ShapeError
from pyro_boltzmann.infer.descent import descend
from pyro_boltzmann.transforms.mean_free import MeanFreeBasis

__all__ = ["Minima", "find_minima"]


@dataclass(frozen=True)
class Minima:
    """Distinct stationary points, the lowest first.

    :ivar x: one of each, ``(k, dim)`` in float64.
    :ivar energy: ``(k,)``.
    :ivar count: draws that ended there, ``(k,)``.
    :ivar curvature: the smallest eigenvalue of the Hessian but for rotations, ``(k,)``.
    :ivar label: where each draw ended, ``(n,)``; -1 for draws whose descent did not converge.
    """

    x: Tensor
    energy: Tensor
    count: Tensor
    curvature: Tensor
    label: Tensor

    @property
    def is_minimum(self) -> Tensor:
        """Whether the curvature is positive beyond rounding; a stationary point that is not is a saddle, ``(k,)``."""
        return self.curvature > 1e-6

    def __len__(self) -> int:
        return len(self.energy)


@torch.no_grad()
def find_minima(
    energy: Energy,
    x: Tensor,
    basis: MeanFreeBasis | None = None,
    *,
    threshold: float = 1e-3,
    tolerance: float = 1e-5,
    max_steps: int = 2000,
    max_length: float = 0.3,
) -> Minima:
    r"""Descend from each draw, and tell apart where the descents end.

    Two ends are one state if the :math:`L_1` distance of their features is below ``threshold`` times the
    :math:`L_1` norm of those of the lower one plus ``max_length``. Features are the sorted pair distances of particles,
    which no symmetry changes (mirror images are one state), else the coordinates. Each state is verified: the Hessian
    at a minimum is positive but for rotations, along which it is zero.

    :param energy: differentiable.
    :param x: draws ``(n, dim)``; rows whose energy is not finite are left where they are, unlabelled.
    :param basis: of the particles, such as ``catalogue["lj13"].basis``; without it rows are plain vectors.
    :param threshold: relative; descents end far closer to each other than states differ. The published count of
        Lennard-Jones states takes the much coarser 3 of about 140, for 13 particles.
    :param tolerance: :math:`|\nabla u|` at which a descent ends.
    :param max_steps: evaluations of each draw, at most.
    :param max_length: of one step.
    :raises ShapeError: if ``x`` does not have the shape ``(n, dim)``.

    States that a flow knows and its training data do not: descend from both together, ``torch.cat([data, draws])``, and
    compare ``label[:len(data)]`` with the rest.

    Source: Koehler, Klein and Noe, Equivariant Flows, arXiv 2006.02425, section 6 (descent, sorted distances, Hessian).

    >>> x = torch.linspace(-2, 2, 10).unsqueeze(-1)
    >>> found = find_minima(lambda x: (x.square() - 1).square().sum(-1) + 0.3 * x.sum(-1), x)
    >>> found.x.squeeze(-1), found.count, bool(found.is_minimum.all())
    (tensor([-1.0356,  0.9601], dtype=torch.float64), tensor([5, 5]), True)
    """
    if x.dim() != 2 or len(x) == 0 or (basis is not None and x.shape[1] != basis.dim):
        width = "dim" if basis is None else str(basis.dim)
        raise ShapeError(f"expected draws of shape (n, {width}) with n >= 1, got {tuple(x.shape)}")
    ends, u, converged = descend(energy, x.double(), tolerance=tolerance, max_steps=max_steps, max_length=max_length)
    label = torch.full((len(x),), -1, dtype=torch.long, device=x.device)
    rows = converged.nonzero().squeeze(-1)
    rows = rows[u[rows].argsort()]
    features = ends[rows] if basis is None else _sorted_distances(basis.to_particles(ends[rows]))
    chosen: list[int] = []
    while bool((left := label[rows] < 0).any()):
        first = int(left.nonzero()[0])
        distance = (features - features[first]).abs().sum(-1)
        # The length of a step is a scale where the state itself has none, at the origin.
        near = distance <= threshold * (features[first].abs().sum() + max_length)
        label[rows[left & near]] = len(chosen)
        chosen.append(int(rows[first]))
    states = ends[chosen]
    return Minima(
        states,
        u[chosen],
        torch.bincount(label[label >= 0], minlength=len(chosen)),
        _curvature(energy, states, None if basis is None else basis.spatial_dim),
        label,
    )


def _sorted_distances(particles: Tensor) -> Tensor:
    i, j = torch.triu_indices(particles.shape[-2], particles.shape[-2], offset=1)
    distances: Tensor = torch.linalg.vector_norm(particles[:, i] - particles[:, j], dim=-1)
    return distances.sort(-1).values


def _curvature(energy: Energy, x: Tensor, spatial_dim: int | None) -> Tensor:
    """Smallest eigenvalues of the Hessians, with the rotations moved to the largest one, ``(k,)``."""
    if len(x) == 0:
        return x.new_zeros(0)
    hessian = _hessians(energy, x)
    if spatial_dim is not None and spatial_dim > 1:
        # One rotation fewer for particles on a line; directions, not their number, are taken out.
        left, singular, _ = torch.linalg.svd(_rotations(x, spatial_dim).mT, full_matrices=False)
        used = left * (singular > 1e-8 * singular.amax(-1, keepdim=True).clamp_min(1e-300)).unsqueeze(-2)
        largest = torch.linalg.matrix_norm(hessian)[:, None, None]
        hessian = hessian + largest * (used @ used.mT)
    eigenvalues: Tensor = torch.linalg.eigvalsh(hessian)
    return eigenvalues[:, 0]


def _hessians(energy: Energy, x: Tensor) -> Tensor:
    with torch.enable_grad():
        z = x.detach().requires_grad_()
        _, gradient = energy_and_gradient(energy, z)
        rows = [torch.autograd.grad(column.sum(), z, retain_graph=True)[0] for column in gradient.unbind(-1)]
    hessian = torch.stack(rows, -2)
    return 0.5 * (hessian + hessian.mT)


def _rotations(x: Tensor, spatial_dim: int) -> Tensor:
    """Directions in which rotations move Helmert coordinates, ``(k, D (D - 1) / 2, dim)``."""
    rows = x.reshape(len(x), 1, -1, spatial_dim)
    a, b = torch.triu_indices(spatial_dim, spatial_dim, offset=1)
    generators = x.new_zeros(len(a), spatial_dim, spatial_dim)
    index = torch.arange(len(a))
    generators[index, a, b], generators[index, b, a] = 1.0, -1.0
    return (rows @ generators).flatten(-2)
