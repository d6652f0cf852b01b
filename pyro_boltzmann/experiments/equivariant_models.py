"""The flows that the experiments on equivariant flows compare, and how each is trained."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import pyro.distributions.transforms as T
import torch

from pyro_boltzmann.energies.catalogue.particles import ParticleTarget
from pyro_boltzmann.experiments.architectures import even_knots
from pyro_boltzmann.experiments.paired_flow_matching import BLOCK
from pyro_boltzmann.guides import AutoStochasticFlow
from pyro_boltzmann.infer import MuonAdam
from pyro_boltzmann.transforms import ElementwiseAffine, ParticleSymmetry
from pyro_boltzmann.transforms.continuous import (
    ContinuousTransform,
    EmbeddedAtomField,
    GraphField,
    KernelField,
    MLPField,
    SplineKernels,
    VelocityField,
)

__all__ = ["BASE_SCALE", "CLUSTER_MODELS", "MODELS", "FlowModel", "base_scale", "symmetry_of"]

BASE_SCALE = 2.0
"""Standard deviation of the base: about that of the coordinates of DW-2 and DW-4."""
BASE_SCALES = {"lj13": 0.71}
"""Of other targets: the root mean square of their coordinates."""
TRAINING_STEPS = 6
"""Runge-Kutta steps where the equation is solved in training."""


@dataclass(frozen=True)
class FlowModel:
    """A flow and its training on data.

    :ivar layers: builds the blocks of its path for a target.
    :ivar updates: for each second that it may be trained, about what a core of 2020's servers does.
    :ivar matrix_rate: learning rate of :class:`~pyro_boltzmann.infer.MuonAdam` for matrices; Adam for all if ``None``.
    :ivar matches: trained by flow matching, else by maximum likelihood.
    :ivar knows_symmetry: its density is invariant by construction.
    :ivar augmented: its data are moved by random symmetries.
    :ivar pairs: in the pool of flow matching, for each update: with 256 in a minibatch each comes up four times.
    :ivar time_power: of flow matching, see :class:`~pyro_boltzmann.FlowMatching`.
    :ivar exchanged: base draws that are exchanged among one another before they are aligned with data.
    """

    layers: Callable[[ParticleTarget], list[Any]]
    updates: float
    learning_rate: float
    matrix_rate: float | None = None
    matches: bool = False
    knows_symmetry: bool = True
    augmented: bool = False
    num_particles: int = 256
    pairs: int = 64
    exchanged: int = BLOCK
    time_power: float = 1.0

    def optimizer(self, parameters: Iterable[torch.nn.Parameter]) -> torch.optim.Optimizer:
        """What trains it."""
        if self.matrix_rate is None:
            return torch.optim.Adam(parameters, lr=self.learning_rate)
        return MuonAdam(parameters, lr=self.learning_rate, matrix_lr=self.matrix_rate)

    def guide(self, target: ParticleTarget) -> AutoStochasticFlow:
        """An untrained guide; its first weights come from torch's global generator."""
        layers = self.layers(target)
        scale = base_scale(target) if isinstance(layers[0], ContinuousTransform) else 1.0
        return AutoStochasticFlow(target.model(), lambda energy, dim: layers, latent_dim=target.dim, base_scale=scale)


def base_scale(target: ParticleTarget) -> float:
    """Standard deviation of the base of continuous flows."""
    return BASE_SCALES.get(target.name, BASE_SCALE)


def symmetry_of(target: ParticleTarget) -> ParticleSymmetry:
    """Rotations, reflections and permutations of the particles."""
    return ParticleSymmetry(target.num_particles, target.spatial_dim)


def _flow(field: VelocityField, target: ParticleTarget) -> list[Any]:
    return [ContinuousTransform(field, target.dim, TRAINING_STEPS)]


def _kernels() -> SplineKernels:
    """Kernels 0.4 apart: finer ones let the training make fields that its few steps do not resolve."""
    return SplineKernels(24, 10.0)


def _kernel(target: ParticleTarget) -> list[Any]:
    return _flow(KernelField(target.num_particles, target.spatial_dim, kernels=_kernels()), target)


def _embedded_atom(target: ParticleTarget) -> list[Any]:
    return _flow(EmbeddedAtomField(target.num_particles, target.spatial_dim, kernels=_kernels()), target)


def _graph(target: ParticleTarget) -> list[Any]:
    field = GraphField(target.num_particles, target.spatial_dim, width=64, depth=3, length_scale=BASE_SCALE)
    return _flow(field, target)


def _plain(target: ParticleTarget) -> list[Any]:
    return _flow(MLPField(target.dim, width=256, depth=4, length_scale=BASE_SCALE), target)


def _coupling(target: ParticleTarget) -> list[Any]:
    """Spline couplings of Pyro on [-5, 5] in units of the base."""
    dim = target.dim
    layers: list[Any] = [ElementwiseAffine(dim)]
    for _ in range(4):
        layers.append(even_knots(T.spline_coupling(dim, dim // 2, [64, 64], count_bins=12, bound=5.0)))
        layers.append(T.Permute(torch.arange(dim - 1, -1, -1)))
    return [*layers, T.AffineTransform(0.0, BASE_SCALE)]


def _real_nvp(target: ParticleTarget) -> list[Any]:
    """Affine couplings of Pyro (RealNVP), each with the other half's coordinates moved in the next."""
    dim = target.dim
    layers: list[Any] = []
    for _ in range(8):
        layers.append(T.affine_coupling(dim, [64, 64], split_dim=dim // 2))
        layers.append(T.Permute(torch.arange(dim - 1, -1, -1)))
    return [*layers, T.AffineTransform(0.0, BASE_SCALE)]


def _dense(target: ParticleTarget) -> list[Any]:
    """An embedded-atom field of a cluster that fills a ball of radius 1.5, with walls of a tenth of that."""
    kernels = SplineKernels(24, 3.6)
    return _flow(EmbeddedAtomField(target.num_particles, target.spatial_dim, kernels=kernels), target)


def _dense_graph(target: ParticleTarget) -> list[Any]:
    field = GraphField(target.num_particles, target.spatial_dim, width=64, depth=3, length_scale=base_scale(target))
    return _flow(field, target)


def _dense_plain(target: ParticleTarget) -> list[Any]:
    return _flow(MLPField(target.dim, width=256, depth=3, length_scale=base_scale(target)), target)


GRAPH = "graph"
MODELS: dict[str, FlowModel] = {
    "kernel": FlowModel(_kernel, 20.0, 2e-3, num_particles=128),
    "embedded_atom": FlowModel(_embedded_atom, 12.0, 1e-3, num_particles=128),
    GRAPH: FlowModel(_graph, 20.0, 1e-2, 3e-2, matches=True, num_particles=512),
    "plain": FlowModel(_plain, 35.0, 5e-3, 1e-2, matches=True, knows_symmetry=False),
    "plain_augmented": FlowModel(_plain, 35.0, 5e-3, 1e-2, matches=True, knows_symmetry=False, augmented=True),
    "coupling_augmented": FlowModel(_coupling, 25.0, 3e-3, knows_symmetry=False, augmented=True),
    "real_nvp_augmented": FlowModel(_real_nvp, 50.0, 3e-3, knows_symmetry=False, augmented=True),
}
"""By name; ``graph`` is in the headline."""
CLUSTER_MODELS: dict[str, FlowModel] = {
    "embedded_atom": FlowModel(_dense, 6.0, 1e-3, num_particles=64),
    GRAPH: FlowModel(
        _dense_graph, 18.0, 1e-2, 7.5e-3, matches=True, num_particles=64, pairs=8, exchanged=1, time_power=2.0
    ),
    "plain_augmented": FlowModel(_dense_plain, 120.0, 1e-3, matches=True, knows_symmetry=False, augmented=True),
}
"""The same for Lennard-Jones clusters, whose pairs of 13 particles take a search each: exchanging the base draws too
would shorten the pairs by another tenth, at ten times the cost."""
