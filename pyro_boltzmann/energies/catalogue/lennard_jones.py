"""Lennard-Jones clusters of 13 and 55 particles."""

from __future__ import annotations

import torch
from torch import Tensor

from pyro_boltzmann.energies.catalogue.particles import PairTarget
from pyro_boltzmann.energies.catalogue.target import LogZOrigin

__all__ = ["LennardJones", "lennard_jones_target"]

# Squared distance below which the pair energy goes on along its tangent: r = 0.01, where it is 1e24 c.
FLOOR = 1e-4
_FLOOR_VALUE = FLOOR**-3
# d/d(r^2) of s (s - 2) with s = r^-6.
_FLOOR_SLOPE = -6.0 * _FLOOR_VALUE * (_FLOOR_VALUE - 1.0) / FLOOR


class LennardJones(PairTarget):
    r"""A Lennard-Jones cluster in three dimensions, held together by a harmonic trap about its centre of mass:

    .. math::

        u(x) = c \sum_{i<j} \left[ r_{ij}^{-12} - 2\, r_{ij}^{-6} \right] + \frac12 \sum_i |x_i - \bar x|^2

    It has :math:`3(N - 1)` degrees of freedom in the Helmert coordinates of
    :class:`~pyro_boltzmann.transforms.mean_free.MeanFreeBasis`. Two conventions are in use: :math:`c = 2` (the sum over
    ordered pairs: iDEM, BNEM, Adjoint Sampling, the data of equivariant flow matching) and :math:`c = 1`. The virial
    :math:`\langle x \cdot \nabla u \rangle = 3(N - 1)` tells which of them a data set belongs to.

    Below :math:`r = 0.01`, where the pair energy is :math:`10^{24} c`, it goes on along its tangent in :math:`r^2`, so
    that energies and forces of any configuration are finite in float32 too.

    :param num_particles: :math:`N`.
    :param pair_factor: :math:`c`.
    :param name: the catalogue name.

    Sources: Koehler, Klein and Noe, Equivariant Flows (2020), arXiv 2006.02425, section 6; Akhound-Sadegh et al.,
    Iterated Denoising Energy Matching (2024), arXiv 2402.06121, appendix.

    >>> target = LennardJones(2)
    >>> pair = torch.tensor([[[0.0, 0.0, 0.5], [0.0, 0.0, -0.5]]])  # r = 1: -c, and 1/4 of the trap
    >>> target.energy(target.from_particles(pair))
    tensor([-1.7500])
    >>> LennardJones(13).dim, LennardJones(55).virial_dof
    (36, 162)
    """

    trap = 1.0

    def __init__(
        self,
        num_particles: int,
        pair_factor: float = 2.0,
        name: str | None = None,
        *,
        log_z: float | None = None,
        log_z_error: float = 0.0,
        log_z_origin: LogZOrigin = "unknown",
        log_z_note: str | None = None,
        mean_energy: float | None = None,
        mean_energy_error: float = 0.0,
    ) -> None:
        self.pair_factor = float(pair_factor)
        super().__init__(
            f"lj{num_particles}" if name is None else name,
            num_particles,
            3,
            constants={"num_particles": num_particles, "pair_factor": self.pair_factor, "trap": self.trap},
            log_z=log_z,
            log_z_error=log_z_error,
            log_z_origin=log_z_origin,
            log_z_note=log_z_note,
            mean_energy=mean_energy,
            mean_energy_error=mean_energy_error,
            bounds=((-3.0, 3.0), (-3.0, 3.0)),
        )

    def pair_energy(self, square: Tensor) -> Tensor:
        near = square.clamp_min(FLOOR)
        s = near.reciprocal() ** 3
        # As square - near, autograd would subtract two huge slopes from each other.
        below = torch.where(square < FLOOR, square - FLOOR, 0.0)
        u = (s * (s - 2.0)).sum(0) + _FLOOR_SLOPE * below.sum(0)
        return self.pair_factor * u

    def pair_energy_and_slope(self, square: Tensor) -> tuple[Tensor, Tensor]:
        near = square.clamp_min(FLOOR)
        below = square.sub_(near).sum(0)
        inverse = near.reciprocal_()
        s = (inverse * inverse).mul_(inverse)
        u = s.sub(2.0).mul_(s).sum(0).add_(below, alpha=_FLOOR_SLOPE).mul_(self.pair_factor)
        # 2 v' = -12 c s (s - 1) / r^2
        slope = s.addcmul_(s, s, value=-1.0).mul_(inverse).mul_(12.0 * self.pair_factor)
        return u, slope


def lennard_jones_target(num_particles: int, pair_factor: float = 2.0) -> LennardJones:
    """The catalogue's :class:`LennardJones` cluster, with what is known of it.

    >>> lennard_jones_target(13).log_z, lennard_jones_target(13, 1.0).name, lennard_jones_target(55).log_z
    (59.87, 'lj13_half', None)
    """
    name = f"lj{num_particles}" + ("_half" if pair_factor == 1.0 else "")
    if (num_particles, pair_factor) == (13, 2.0):
        return LennardJones(
            13,
            log_z=59.87,
            log_z_error=0.02,
            log_z_origin="certified",
            log_z_note="frozen SMC 59.860 +- 0.027, parallel tempering 59.878 +- 0.016: reproduce certify",
            mean_energy=-43.02,
            mean_energy_error=0.05,
        )
    return LennardJones(num_particles, pair_factor, name)
