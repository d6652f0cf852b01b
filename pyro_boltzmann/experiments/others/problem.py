"""A target as the benchmark sees it: its energy in torch and in JAX, where samplers start, and what is known."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pyro_boltzmann.diagnostics.metrics import mode_mass_tv, mode_weight_error, modes_found
from pyro_boltzmann.energies.catalogue import Target, catalogue
from pyro_boltzmann.energies.evaluation import Energy
from pyro_boltzmann.experiments.others.jax_energies import jax_energy

__all__ = ["TARGETS", "BenchProblem", "bench_problem", "gaussian_problem"]

TARGETS = ("double_well", "gmm40", "funnel10", "many_well32", "eight_schools", "seeds")
FloatArray = NDArray[np.float64]


@dataclass(frozen=True)
class BenchProblem:
    """An unnormalised density on R^d for all samplers alike.

    :ivar energy: in torch, ``(*batch, dim) -> (*batch)``.
    :ivar jax_energy: makes the same function of one point in JAX.
    :ivar loc: centre ``(dim,)`` and
    :ivar scale: standard deviation ``(dim,)`` of the Gaussian where tempering, chains and flows start.
    :ivar log_z: exact.
    :ivar mean_energy: exact.
    :ivar target: of the catalogue, for its modes.
    """

    name: str
    dim: int
    energy: Energy
    jax_energy: Callable[[], Callable[[Any], Any]]
    loc: FloatArray
    scale: FloatArray
    log_z: float
    mean_energy: float
    target: Target | None = None

    @property
    def num_modes(self) -> int | None:
        """Modes that can be found; for many wells both sides of each. ``None`` where modes are no question."""
        if self.target is None:
            return None
        if hasattr(self.target, "well_assignment"):
            return self.dim
        masses = self.target.mode_probabilities
        return None if masses is None else len(masses)

    def modes(self, x: torch.Tensor, log_weights: FloatArray) -> tuple[int, float] | None:
        """Number of modes found, and total variation of their masses (for many wells, the mean error of one well's)."""
        target = self.target
        if target is None or self.num_modes is None:
            return None
        if hasattr(target, "well_assignment"):
            seen = target.well_assignment(x[torch.from_numpy(np.isfinite(log_weights))]).double().mean(0)
            found = int((seen > 0).sum() + (seen < 1).sum())
            return found, mode_weight_error(x[:, ::2].numpy(), target.right_well_probability, log_weights)  # type: ignore[attr-defined]
        assert target.mode_probabilities is not None
        masses = target.mode_probabilities.double().numpy()
        mode = target.mode_assignment(x).numpy()
        return modes_found(mode, len(masses), log_weights), mode_mass_tv(mode, masses / masses.sum(), log_weights)


def bench_problem(name: str) -> BenchProblem:
    """A target of the catalogue that has a JAX energy.

    Samplers start from the Gaussian that :func:`~pyro_boltzmann.smc` takes by itself: a third of the half-width of the
    target's box where it is known in all coordinates, :math:`N(0, I)` elsewhere.

    >>> problem = bench_problem("double_well")
    >>> problem.dim, problem.num_modes, problem.scale.round(3).tolist()
    (2, 2, [1.0, 1.333])
    """
    target = catalogue[name]
    loc, scale = np.zeros(target.dim), np.ones(target.dim)
    if len(target.bounds) == target.dim:
        low, high = np.asarray(target.bounds, dtype=np.float64).T
        loc, scale = 0.5 * (low + high), (high - low) / 6
    assert target.log_z is not None and target.mean_energy is not None
    return BenchProblem(
        name,
        target.dim,
        target.energy,
        lambda: jax_energy(name),
        loc,
        scale,
        target.log_z,
        target.mean_energy,
        target,
    )


def gaussian_problem() -> BenchProblem:
    r"""A Gaussian in the plane off its start, :math:`u = |x - m|^2 / 2 s^2` with :math:`m = (2, -1)` and
    :math:`s = 1/2`: :math:`\log Z = \log 2 \pi s^2`.

    >>> round(gaussian_problem().log_z, 4)
    0.4516
    """
    mean = (2.0, -1.0)

    def energy(x: torch.Tensor) -> torch.Tensor:
        return 2.0 * (x - x.new_tensor(mean)).square().sum(-1)

    def in_jax() -> Callable[[Any], Any]:
        return lambda x: 2.0 * ((x[0] - mean[0]) ** 2 + (x[1] - mean[1]) ** 2)

    return BenchProblem("gaussian", 2, energy, in_jax, np.zeros(2), np.ones(2), float(np.log(np.pi / 2)), 1.0)
