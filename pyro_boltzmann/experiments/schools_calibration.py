"""Simulation-based calibration of samplers on eight schools: many data sets of the prior, one run each."""

from __future__ import annotations

import time
from typing import NamedTuple

import torch
from torch import Tensor

from pyro_boltzmann.diagnostics import RankTest, calibration_ranks, multinomial, rank_test
from pyro_boltzmann.energies import EvaluationCount
from pyro_boltzmann.experiments.schools_posterior import SchoolsPosterior, draw_schools
from pyro_boltzmann.infer import smc

__all__ = ["NUM_BINS", "NUM_DRAWS", "QUANTITIES", "Calibration", "calibrate"]

QUANTITIES = ("mu", "log_tau", *(f"eta_{school}" for school in range(1, 9)), "log_likelihood")
"""What is ranked: the coordinates, and a function of them and the data, which sees what marginals miss."""
NUM_DRAWS = 63
"""Posterior draws of each replication, so that there are 64 ranks."""
NUM_BINS = 16


class Calibration(NamedTuple):
    """Ranks ``(num_sets, 11)`` and their price, in CPU seconds."""

    ranks: Tensor
    evaluations: EvaluationCount
    seconds: float

    @property
    def tests(self) -> dict[str, RankTest]:
        """Of uniformity, by quantity."""
        return {
            name: rank_test(self.ranks[:, index].numpy(), NUM_DRAWS + 1, NUM_BINS)
            for index, name in enumerate(QUANTITIES)
        }

    @property
    def smallest_p(self) -> float:
        """Of all quantities, times their number (Bonferroni), at most one."""
        return min(1.0, len(QUANTITIES) * min(test.p_value for test in self.tests.values()))


def calibrate(num_sets: int, num_particles: int, seed: int, *, error_scale: float = 1.0) -> Calibration:
    r"""Rank the parameters of simulated data sets among the draws of SMC from their posteriors.

    Each data set has a run of its own, from the standard normal of the unconstrained space; :data:`NUM_DRAWS` of its
    weighted particles are drawn. (Data of one prior draw are thousands of times larger than of another, because tau
    has a half-Cauchy prior: one ladder of temperatures for all of them leaves some behind.)

    :param error_scale: multiplies the standard errors that the sampler believes in; anything but one is a mistake
        that the test must find.

    >>> calibrate(2, 32, seed=0).ranks.shape
    torch.Size([2, 11])
    """
    start = time.process_time()
    generator = torch.Generator().manual_seed(seed)
    truths, data = draw_schools(num_sets, generator)
    ranks, count = [], EvaluationCount()
    for index, (truth, y) in enumerate(zip(truths, data, strict=True)):
        draws = smc(
            SchoolsPosterior(y, error_scale),
            num_samples=num_particles,
            seed=seed * num_sets + index,
            progress=False,
        )
        z = draws.info["z"].double()[multinomial(draws.log_weights, NUM_DRAWS, generator)]
        known = torch.cat([truth.unsqueeze(0), z])
        known = torch.cat([known, SchoolsPosterior(y).log_likelihood(known).unsqueeze(-1)], -1)
        ranks.append(calibration_ranks(known[:1], known[1:].unsqueeze(0), generator))
        spent = draws.evaluations["sample"]
        count = count + EvaluationCount(spent["values"], spent["gradients"])
    return Calibration(torch.cat(ranks), count, time.process_time() - start)
