"""Adaptive tempered SMC by BlackJAX, set up like ours: the same start, kernel, moves and overlap of temperatures."""

from __future__ import annotations

from typing import Any

import numpy as np

from pyro_boltzmann.diagnostics.weights import effective_groups
from pyro_boltzmann.exceptions import PyroBoltzmannError
from pyro_boltzmann.experiments.others.clock import CpuClock
from pyro_boltzmann.experiments.others.extra import need
from pyro_boltzmann.experiments.others.problem import BenchProblem
from pyro_boltzmann.experiments.others.record import Outcome

__all__ = ["run_blackjax_smc"]

NUM_MOVES, NUM_LEAPFROGS, OVERLAP = 2, 5, 0.9
MOST_TEMPERATURES = 1000


def run_blackjax_smc(problem: BenchProblem, size: int, seed: int) -> Outcome:
    """``size`` particles from the Gaussian start to the target, two HMC moves of five leapfrog steps a temperature.

    BlackJAX leaves step size and mass to the user: masses are the particles' variances, and the step size follows the
    acceptance to 0.8, as :func:`~pyro_boltzmann.smc` does by itself. Evaluations are the ones the algorithm asks for:
    a value for the next temperature and one for the weight, a gradient to start a move and one a leapfrog step.

    The effective sample size is the effective number of first ancestors, as for our own.

    :raises PyroBoltzmannError: if the temperature does not reach one.
    """
    jax = need("jax")
    clock = CpuClock()
    advance = _compiled_step(problem, size, clock)
    rng = np.random.default_rng(seed)
    with clock("run"):
        x = np.asarray(problem.loc + problem.scale * rng.standard_normal((size, problem.dim)), np.float32)
        weights, position = np.full(size, 1 / size, np.float32), np.float32(0.0)
        roots, log_z, temperatures = np.arange(size), 0.0, 0
        step_size = 1.0 / problem.dim**0.25
        key = jax.random.PRNGKey(seed)
        while position < 1.0:
            if temperatures == MOST_TEMPERATURES:
                raise PyroBoltzmannError(f"BlackJAX's temperature was {position} after {temperatures} steps")
            key, now = jax.random.split(key)
            variance = np.asarray(np.cov(np.asarray(x).T, aweights=np.asarray(weights, np.float64)))
            mass = np.maximum(np.diag(np.atleast_2d(variance)), 1e-12).astype(np.float32)
            out = advance(now, x, weights, position, np.float32(step_size), mass)
            x, weights, position, ancestors, increment, acceptance = out
            roots = roots[np.asarray(ancestors)]
            log_z += float(increment)
            step_size *= float(np.exp(0.5 * (float(acceptance) - 0.8)))
            position = np.float32(position)
            temperatures += 1
            if not np.isfinite(position):
                raise PyroBoltzmannError("BlackJAX found no next temperature (NaN): its particles' ESS is too low")
    with np.errstate(divide="ignore"):
        log_weights = np.log(np.asarray(weights, np.float64))
    gradients = temperatures * size * NUM_MOVES * NUM_LEAPFROGS + temperatures * size
    return Outcome(
        np.asarray(x),
        log_weights,
        effective_groups(log_weights, roots),
        log_z,
        gradients + 2 * temperatures * size,
        gradients,
        clock.seconds["run"],
        clock.seconds.get("compile", 0.0),
    )


_steps: dict[tuple[str, int], Any] = {}


def _compiled_step(problem: BenchProblem, size: int, clock: CpuClock) -> Any:
    """One temperature as a compiled function; seeds share it."""
    key = problem.name, size
    if key not in _steps:
        with clock("compile"):
            _steps[key] = _compile(problem, size)
    return _steps[key]


def _compile(problem: BenchProblem, size: int) -> Any:
    jax, blackjax, numpy = need("jax"), need("blackjax"), need("jax.numpy")
    tempered = need("blackjax.smc.tempered")
    energy = problem.jax_energy()
    loc, scale = np.asarray(problem.loc, np.float32), np.asarray(problem.scale, np.float32)
    normalizer = float(np.log(problem.scale).sum() + 0.5 * problem.dim * np.log(2 * np.pi))
    hmc = blackjax.hmc.build_kernel()

    def log_prior(x: Any) -> Any:
        return -0.5 * (((x - loc) / scale) ** 2).sum() - normalizer

    def log_likelihood(x: Any) -> Any:
        value = -energy(x) - log_prior(x)
        return numpy.where(numpy.isnan(value), -numpy.inf, value)

    def move(key: Any, state: Any, log_density: Any, step_size: Any, inverse_mass_matrix: Any) -> Any:
        return hmc(key, state, log_density, step_size, inverse_mass_matrix, NUM_LEAPFROGS)

    kernel = need("blackjax.smc.adaptive_tempered").build_kernel(
        log_prior,
        log_likelihood,
        move,
        blackjax.hmc.init,
        need("blackjax.smc.resampling").systematic,
        OVERLAP,
    )

    def advance(key: Any, x: Any, weights: Any, position: Any, step_size: Any, mass: Any) -> Any:
        state = tempered.TemperedSMCState(x, weights, position)
        parameters = {"step_size": step_size[None], "inverse_mass_matrix": mass[None]}
        state, info = kernel(key, state, NUM_MOVES, parameters)
        acceptance = info.update_info.acceptance_rate.mean()
        increment = info.log_likelihood_increment
        return state.particles, state.weights, state.tempering_param, info.ancestors, increment, acceptance

    x, weights = np.zeros((size, problem.dim), np.float32), np.zeros(size, np.float32)
    one = np.float32(1.0)
    return jax.jit(advance).lower(jax.random.PRNGKey(0), x, weights, one, one, x[0]).compile()
