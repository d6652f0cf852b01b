"""No-U-turn sampling by NumPyro and by Pyro, four chains one after another."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pyro_boltzmann.energies.evaluation import count_evaluations, energy_value
from pyro_boltzmann.experiments.others.clock import CpuClock, Deadline
from pyro_boltzmann.experiments.others.extra import need
from pyro_boltzmann.experiments.others.problem import BenchProblem
from pyro_boltzmann.experiments.others.record import Outcome, bulk_ess
from pyro_boltzmann.infer.randomness import seeded

__all__ = ["run_numpyro_nuts", "run_pyro_nuts"]

NUM_CHAINS = 4


def run_numpyro_nuts(problem: BenchProblem, size: int, seed: int) -> Outcome:
    """NumPyro's NUTS with its defaults: ``size`` draws of warm-up and ``size`` draws in each of four chains.

    Leapfrog steps are counted by the sampler; the few of its search for a first step size are not.
    """
    jax = need("jax")
    clock = CpuClock()
    chain = _compiled_chain(problem, size, clock)
    rng = np.random.default_rng(seed)
    draws, leapfrogs = [], 0
    with clock("run"):
        for index in range(NUM_CHAINS):
            first = np.asarray(problem.loc + problem.scale * rng.standard_normal(problem.dim), np.float32)
            x, steps = chain(jax.random.PRNGKey(1000 * seed + index), first)
            draws.append(np.asarray(x))
            leapfrogs += int(steps)
    x = np.stack(draws)
    return Outcome(
        x, None, bulk_ess(x), None, leapfrogs, leapfrogs, clock.seconds["run"], clock.seconds.get("compile", 0.0)
    )


_chains: dict[tuple[str, int], Any] = {}


def _compiled_chain(problem: BenchProblem, size: int, clock: CpuClock) -> Any:
    """A chain as one compiled function; seeds share it."""
    key = problem.name, size
    if key not in _chains:
        with clock("compile"):
            _chains[key] = _compile(problem, size)
    return _chains[key]


def _compile(problem: BenchProblem, size: int) -> Any:
    jax, numpyro = need("jax"), need("numpyro.infer")
    kernel = numpyro.NUTS(potential_fn=problem.jax_energy())

    def chain(key: Any, first: Any) -> Any:
        def step(state: Any, _: Any) -> Any:
            state = kernel.sample(state, (), {})
            return state, (state.z, state.num_steps)

        _, (x, steps) = jax.lax.scan(step, kernel.init(key, size, first, (), {}), length=2 * size)
        return x[size:], steps.sum()

    shape = np.zeros(problem.dim, np.float32)
    return jax.jit(chain).lower(jax.random.PRNGKey(0), shape).compile()


def run_pyro_nuts(problem: BenchProblem, size: int, seed: int) -> Outcome:
    """Pyro's NUTS with its defaults: ``size`` draws of warm-up and ``size`` draws in each of four chains.

    :raises TooLongError: when a run takes more than half a minute of CPU: too short a warm-up can leave a step
        size so small that every draw takes a thousand leapfrog steps.
    """
    from pyro.infer import MCMC, NUTS

    clock, deadline = CpuClock(), Deadline()

    def potential(sites: dict[str, torch.Tensor]) -> torch.Tensor:
        deadline()
        return energy_value(problem.energy, sites["x"])

    loc, scale = (torch.tensor(v, dtype=torch.float32) for v in (problem.loc, problem.scale))
    draws: list[NDArray[Any]] = []
    with seeded(seed), count_evaluations() as count, clock("run"):
        for _ in range(NUM_CHAINS):
            first = {"x": loc + scale * torch.randn(problem.dim)}
            chain = MCMC(
                NUTS(potential_fn=potential), size, warmup_steps=size, initial_params=first, disable_progbar=True
            )
            chain.run()
            draws.append(chain.get_samples()["x"].numpy())
    x = np.stack(draws)
    return Outcome(x, None, bulk_ess(x), None, count.values, count.gradients, clock.seconds["run"])
