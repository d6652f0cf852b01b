"""Nested sampling by dynesty."""

from __future__ import annotations

import math
import warnings
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyro_boltzmann.diagnostics.weights import effective_sample_size
from pyro_boltzmann.experiments.others.clock import CpuClock, Deadline
from pyro_boltzmann.experiments.others.extra import need
from pyro_boltzmann.experiments.others.problem import BenchProblem
from pyro_boltzmann.experiments.others.record import Outcome

__all__ = ["run_dynesty"]

WORST = -1e300
"""A likelihood of zero: dynesty's live points may not be infinitely bad."""


def run_dynesty(problem: BenchProblem, size: int, seed: int) -> Outcome:
    r"""Static nested sampling with dynesty's defaults and ``size`` live points (at least twice the dimension).

    An energy has no prior. Each coordinate gets a Cauchy prior :math:`p` at the common start's place and scale, whose
    tails no target here exceeds, and the likelihood is :math:`e^{-u} / p`: its evidence is Z. The energy is
    JAX's, compiled, one point a call.

    :raises TooLongError: after half a minute of CPU.
    """
    jax, dynesty = need("jax"), need("dynesty")
    clock, deadline = CpuClock(), Deadline()
    loc, scale, dim = problem.loc, problem.scale, problem.dim
    normalizer = float(np.log(math.pi * scale).sum())
    with clock("compile"):
        energy = jax.jit(problem.jax_energy()).lower(np.zeros(dim, np.float32)).compile()

    def log_likelihood(x: NDArray[np.float64]) -> float:
        deadline()
        log_prior = -float(np.log1p(np.square((x - loc) / scale)).sum()) - normalizer
        value = -float(energy(x.astype(np.float32))) - log_prior
        return value if math.isfinite(value) else WORST

    def from_cube(u: NDArray[np.float64]) -> Any:
        return loc + scale * np.tan(math.pi * (u - 0.5))

    with clock("run"), warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        sampler = dynesty.NestedSampler(
            log_likelihood, from_cube, dim, nlive=max(size, 2 * dim), rstate=np.random.default_rng(seed)
        )
        sampler.run_nested(print_progress=False)
        results = sampler.results
    log_weights = np.asarray(results["logwt"], np.float64)
    return Outcome(
        np.asarray(results["samples"]),
        log_weights,
        effective_sample_size(log_weights),
        float(results["logz"][-1]),
        int(np.sum(results["ncall"])),
        0,
        clock.seconds["run"],
        clock.seconds["compile"],
    )
