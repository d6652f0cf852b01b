"""Two or four particles in the plane, bound pairwise by double wells."""

from __future__ import annotations

import math
from functools import cache
from typing import Any

import torch
from torch import Tensor

from pyro_boltzmann.energies.catalogue.exact_sampling import GridRejectionSampler
from pyro_boltzmann.energies.catalogue.particles import PairTarget

__all__ = ["DW2", "DW4", "DoubleWellParticles"]

OFFSET, QUADRATIC, QUARTIC = 4.0, -4.0, 0.9
# Adaptive quadrature of r exp(-v(r)) below and above r = 4, to 1e-12.
DW2_LOG_Z = 7.260392993087
DW2_MEAN_ENERGY = -3.870727130806
DW2_LOOSE_PROBABILITY = 0.675387717183


class DoubleWellParticles(PairTarget):
    r"""Particles in the plane with a double well in every pair distance.

    .. math:: u(x) = \sum_{i<j} \left[ 0.9\, (d_{ij} - 4)^4 - 4\, (d_{ij} - 4)^2 \right]

    Each pair is counted once. The centre of mass is fixed at the origin by working in the :math:`2(N - 1)`
    orthonormal Helmert coordinates of :class:`~pyro_boltzmann.transforms.mean_free.MeanFreeBasis`. The density is
    invariant under permutations, rotations and reflections of the particles.

    :param num_particles: :math:`N`.
    :param truths: keyword arguments of :class:`Target`.

    Source: Koehler, Klein and Noe, Equivariant Flows (2020), arXiv 2006.02425, section 6.1.
    """

    def __init__(self, num_particles: int, **truths: Any) -> None:
        constants: dict[str, float | int | str | Tensor] = {
            "offset": OFFSET,
            "quadratic": QUADRATIC,
            "quartic": QUARTIC,
        }
        super().__init__(f"dw{num_particles}", num_particles, 2, constants=constants, **truths)
        # The coordinates belong to the target's identity: pair differences along x, then those along y.
        axes = torch.eye(2, dtype=torch.float64).unsqueeze(-1).unbind()
        along_one_axis = self._derived["pairs"].mT.contiguous()
        self.constants["pair_differences"] = torch.cat([torch.kron(along_one_axis, axis) for axis in axes], -1)

    def pair_energy(self, square: Tensor) -> Tensor:
        return _double_well(_distance(square)).sum(0)

    def pair_energy_and_slope(self, square: Tensor) -> tuple[Tensor, Tensor]:
        distance = _distance(square)
        t = distance - OFFSET
        t_square = torch.mul(t, t, out=square)
        u = (t_square * QUARTIC).add_(QUADRATIC).mul_(t_square).sum(0)
        slope = t_square.mul_(4.0 * QUARTIC).add_(2.0 * QUADRATIC).mul_(t).div_(distance)
        return u, slope


def _distance(square: Tensor) -> Tensor:
    # The distance is not differentiable where two particles coincide: a floor keeps both derivatives finite.
    return square.clamp(min=1e-16).sqrt()


def _double_well(distance: Tensor) -> Tensor:
    t = (distance - OFFSET).square()
    return t * (QUARTIC * t + QUADRATIC)


class DW4(DoubleWellParticles):
    r"""Four particles in two dimensions: :class:`DoubleWellParticles` on :math:`\mathbb{R}^6`.

    There is no exact sampler. :math:`\log Z = 29.669 \pm 0.003` and the mean energy are certified by two estimators
    that agree, frozen sequential Monte Carlo and parallel tempering (``pyro-boltzmann reproduce certify``).

    >>> target = DW4()
    >>> particles = target.to_particles(torch.zeros(3, 6))
    >>> particles.shape, target(torch.zeros(3, 6)).shape, target.virial_dof
    (torch.Size([3, 4, 2]), torch.Size([3]), 6)
    """

    def __init__(self) -> None:
        super().__init__(
            4,
            log_z=29.669,
            log_z_error=0.003,
            log_z_origin="certified",
            log_z_note="frozen SMC 29.6689 +- 0.0031, parallel tempering 29.6704 +- 0.0060: reproduce certify",
            mean_energy=-22.544,
            mean_energy_error=0.004,
            bounds=((-6.0, 6.0), (-6.0, 6.0)),
        )


class DW2(DoubleWellParticles):
    r"""Two particles in two dimensions: :class:`DoubleWellParticles` on :math:`\mathbb{R}^2`, where all is known.

    With one pair :math:`d_{12} = \sqrt 2\, |y|` for Helmert coordinates :math:`y`, so

    .. math:: Z = \int_{\mathbb{R}^2} e^{-v(\sqrt 2 |y|)}\, dy = \pi \int_0^\infty r\, e^{-v(r)}\, dr .

    Mode 0 is the bound pair (:math:`d_{12} < 4`), mode 1 the loose one, which the larger circle makes more likely.

    >>> target = DW2()
    >>> target.dim, round(target.log_z, 4), round(target.delta_f, 4)
    (2, 7.2604, -0.7327)
    >>> target.mode_assignment(target.from_particles(torch.tensor([[[0.0, 0.0], [2.5, 0.0]]]))).item()
    0
    """

    def __init__(self) -> None:
        super().__init__(
            2,
            log_z=DW2_LOG_Z,
            log_z_origin="exact",
            log_z_note="one-dimensional quadrature over the distance",
            mean_energy=DW2_MEAN_ENERGY,
            delta_f=math.log(1 - DW2_LOOSE_PROBABILITY) - math.log(DW2_LOOSE_PROBABILITY),
            mode_probabilities=torch.tensor([1 - DW2_LOOSE_PROBABILITY, DW2_LOOSE_PROBABILITY], dtype=torch.float64),
            bounds=((-6.0, 6.0), (-6.0, 6.0)),
        )

    def mode_assignment(self, x: Tensor) -> Tensor:
        return (2.0 * x.square().sum(-1) > OFFSET**2).long()

    def _sample(self, num_samples: int, generator: torch.Generator | None, device: torch.device) -> Tensor:
        radius = _distance_sampler().sample(num_samples, generator) / math.sqrt(2.0)
        angle = torch.rand(num_samples, 1, generator=generator, device=device, dtype=torch.float64) * (2.0 * math.pi)
        return radius * torch.cat([angle.cos(), angle.sin()], -1)


@cache
def _distance_sampler() -> GridRejectionSampler:
    # Outside [0.5, 8] the mass is below exp(-80).
    def energy(distance: Tensor) -> Tensor:
        return (_double_well(distance) - distance.log()).squeeze(-1)

    return GridRejectionSampler(energy, [0.5], [8.0], [4096])
