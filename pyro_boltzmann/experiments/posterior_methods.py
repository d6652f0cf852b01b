"""Guides and tempered sampling on a posterior of the catalogue, each with its figures and its price."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pyro
import torch
from pyro.infer import SVI
from pyro.infer.autoguide import AutoContinuous, AutoDiagonalNormal, AutoMultivariateNormal
from pyro.infer.autoguide.initialization import init_to_feasible
from pyro.optim import ClippedAdam
from torch import Tensor

from pyro_boltzmann.diagnostics import Metric, WeightedSamples, weight_metrics
from pyro_boltzmann.energies import EvaluationCount, ModelEnergy, count_evaluations, energy_value
from pyro_boltzmann.energies.catalogue.posteriors import PosteriorTarget
from pyro_boltzmann.energies.catalogue.target import Target
from pyro_boltzmann.experiments.adaptation import adapt_scales
from pyro_boltzmann.experiments.eight_schools import autoregressive, stochastic_layers
from pyro_boltzmann.guides import AutoStochasticFlow
from pyro_boltzmann.infer import ReverseKL, importance_sample, smc

__all__ = [
    "GUIDES",
    "NUM_CHAINS",
    "NUM_MOVES",
    "Estimate",
    "Trained",
    "guide_estimate",
    "smc_estimate",
    "smc_replicates",
    "train",
]

GUIDES = ("diagonal", "mvn", "iaf", "snf")
"""Pyro's mean-field and full Gaussians, inverse autoregressive layers, and these behind annealed HMC."""
PARTICLES, LEARNING_RATE, LAST_RATE = 32, 1e-2, 0.01
ADAPTING_SHARE, ADAPTING_PARTICLES = 0.06, 64
NUM_CHAINS = 5
"""Replicates of a run of SMC; errors are taken from them."""
NUM_MOVES = 4
"""HMC moves at each temperature; with the default of two, chains on the seeds data keep too much of their past."""
FEWEST_REPLICATES = 25
RESAMPLED = "draws were resampled on their way: errors are those of replicates"


@dataclass
class Estimate:
    r"""Figures of a method on one program, and its posterior means of the unconstrained coordinates ``(dim,)`` with
    their standard errors."""

    metrics: dict[str, Metric]
    mean: Tensor
    error: Tensor


@dataclass
class Trained:
    """A guide, and what its training cost."""

    guide: AutoContinuous
    evaluations: EvaluationCount
    seconds: float
    steps: int


def train(kind: str, target: PosteriorTarget, seconds: float) -> Trained:
    """Train a guide of :data:`GUIDES` by ``SVI`` with :class:`ReverseKL` for a given CPU time in all, whatever else
    the machine does."""
    start = time.process_time()
    pyro.clear_param_store()
    model, dim = target.model(), target.dim
    with count_evaluations() as count:
        if kind in ("diagonal", "mvn"):
            family = AutoDiagonalNormal if kind == "diagonal" else AutoMultivariateNormal
            guide: AutoContinuous = family(model, init_loc_fn=init_to_feasible)
            steps = _svi(model, guide, start, seconds)
        else:
            flow = autoregressive(dim, max(32, 2 * dim))
            guide = AutoStochasticFlow(model, lambda energy, dim: flow, latent_dim=dim)
            share = 1.0 if kind == "iaf" else 1.0 - ADAPTING_SHARE
            steps = _svi(model, guide, start, share * seconds)
            if kind == "snf":
                layers: Callable[..., Any] = lambda energy, dim: stochastic_layers(energy, dim, flow)  # noqa: E731
                guide = AutoStochasticFlow(model, layers, latent_dim=dim)
                left = seconds - (time.process_time() - start)
                adapt_scales(guide, 0, num_particles=ADAPTING_PARTICLES, max_seconds=left, clock=time.process_time)
    if kind in ("diagonal", "mvn"):
        # Traces of a program count nothing by themselves.
        count = EvaluationCount(steps * PARTICLES, steps * PARTICLES)
    return Trained(guide, count, time.process_time() - start, steps)


def _svi(model: Any, guide: AutoContinuous, start: float, seconds: float) -> int:
    """Pyro's own loop until ``seconds`` after ``start``; the learning rate falls to a hundredth on the way."""
    optimizer = ClippedAdam({"lr": LEARNING_RATE, "clip_norm": 10.0})
    objective = ReverseKL(PARTICLES)
    objective.learn_plates(model, guide, (), {})
    svi = SVI(model, guide, optimizer, objective)
    svi.step()
    steps = 1
    while (spent := time.process_time() - start) < seconds:
        svi.step()
        steps += 1
        for one in optimizer.optim_objs.values():
            for group in one.param_groups:
                group["lr"] = LEARNING_RATE * LAST_RATE ** (spent / seconds)
    return steps


@torch.no_grad()
def guide_estimate(trained: Trained, target: PosteriorTarget, num_samples: int, seed: int) -> Estimate:
    """Importance sampling with a trained guide; from exact draws also EUBO and forward ESS, where there are any."""
    draws = importance_sample(target.model(), trained.guide, num_samples=num_samples, seed=seed)
    z = draws.info["z"] if "z" in draws.info else ModelEnergy(target.model()).unconstrain(draws.samples)
    reverse = None
    if target.has_exact_sampler:
        exact = target.sample(num_samples, generator=torch.Generator().manual_seed(seed + 1))
        reverse = _reverse_log_weights(trained.guide, target, exact, seed)
    metrics = weight_metrics(draws, reverse_log_weights=reverse)
    spent = draws.evaluations["sample"]
    metrics |= _price(
        trained.evaluations + EvaluationCount(spent["values"], spent["gradients"]),
        trained.seconds + draws.info["cpu_seconds"],
    )
    metrics["svi_steps"] = Metric(float(trained.steps))
    mean, error = draws.expectation(lambda *_: z.double())
    return Estimate(metrics, mean, error)


def _reverse_log_weights(guide: AutoContinuous, target: PosteriorTarget, exact: Tensor, seed: int) -> Tensor:
    if isinstance(guide, AutoStochasticFlow):
        generator = torch.Generator().manual_seed(seed + 2)
        return guide.reverse_paths(exact, generator=generator).log_weight
    log_q: Tensor = guide.get_posterior().log_prob(exact)
    return -energy_value(target, exact).double() - log_q.double()


def smc_estimate(
    target: Target, num_samples: int, seed: int, trained: Trained | None = None
) -> tuple[Estimate, WeightedSamples]:
    """Figures of one frozen run of SMC, and its draws; the training of the guide that it starts from, if any, is in the
    price."""
    start = time.process_time()
    draws = smc(
        target.model(),
        num_samples=num_samples,
        num_chains=NUM_CHAINS,
        num_moves=NUM_MOVES,
        proposal=None if trained is None else trained.guide,
        freeze=True,
        seed=seed,
        progress=False,
    )
    seconds = time.process_time() - start
    spent = sum(
        (EvaluationCount(one["values"], one["gradients"]) for one in draws.evaluations.values()), EvaluationCount()
    )
    if trained is not None:
        spent, seconds = spent + trained.evaluations, seconds + trained.seconds
    mean, error = draws.expectation(lambda *_: draws.info["z"].double())
    metrics = {
        "log_z": Metric(draws.log_normalizer, draws.log_normalizer_error),
        "khat": Metric(None, reason=RESAMPLED),
        "roots": Metric(draws.num_independent),
        "num_temperatures": Metric(float(len(draws.info["smc"]["positions"]))),
        **_price(spent, seconds),
    }
    return Estimate(metrics, mean, error), draws


def smc_replicates(
    target: Target, num_samples: int, seeds: list[int], log_z: float | None
) -> tuple[Estimate, WeightedSamples]:
    r"""Frozen runs of SMC from several seeds: the figures of the first, and its draws; the bound of all chains.

    :math:`\hat Z` of a chain of a frozen run is unbiased, so the mean of :math:`\log \hat Z` over chains is a lower
    bound on :math:`\log Z`, the ELBO of SMC.
    """
    (estimate, first), *others = [smc_estimate(target, num_samples, seed) for seed in seeds]
    runs = [first, *(draws for _, draws in others)]
    chains = torch.tensor([value for run in runs for value in run.info["smc"]["log_z_by_chain"]], dtype=torch.float64)
    if len(chains) >= FEWEST_REPLICATES:
        estimate.metrics["elbo"] = Metric(float(chains.mean()), float(chains.std()) / math.sqrt(len(chains)))
    if log_z is not None:
        errors = torch.tensor([abs(run.log_normalizer - log_z) for run in runs], dtype=torch.float64)
        estimate.metrics["median_error"] = Metric(float(errors.median()))
        estimate.metrics["worst_error"] = Metric(float(errors.max()))
    return estimate, first


def _price(count: EvaluationCount, seconds: float) -> dict[str, Metric]:
    return {
        "values": Metric(float(count.values)),
        "gradients": Metric(float(count.gradients)),
        "cpu_seconds": Metric(seconds),
    }
