"""Reference means of a posterior: exact draws, parallel tempering, and Pyro's NUTS on the written-out energy."""

from __future__ import annotations

import importlib
import time
import warnings
from typing import Any, NamedTuple

import pyro
import torch
from pyro.infer import MCMC, NUTS
from torch import Tensor

from pyro_boltzmann.diagnostics import Metric
from pyro_boltzmann.diagnostics.compat import arviz
from pyro_boltzmann.energies import EvaluationCount, count_evaluations, energy_and_gradient
from pyro_boltzmann.energies.catalogue.posteriors import PosteriorTarget
from pyro_boltzmann.experiments.posterior_methods import Estimate
from pyro_boltzmann.experiments.schools_posterior import SchoolsPosterior
from pyro_boltzmann.infer import parallel_tempering

__all__ = ["ChainSummary", "Reference", "exact_reference", "nuts_estimate", "summarize_chains", "tempered_reference"]

NUM_EXACT = 200_000
PT_CHAINS = 16
NUTS_CHAINS = 2


class Reference(NamedTuple):
    """Posterior means ``(dim,)``, their standard errors, and posterior standard deviations."""

    mean: Tensor
    error: Tensor
    scale: Tensor


class ChainSummary(NamedTuple):
    """Of chains ``(num_chains, draws, dim)``: means and their Monte Carlo errors, the largest R-hat and the smallest
    bulk ESS."""

    mean: Tensor
    error: Tensor
    rhat: float
    ess: float


def summarize_chains(chains: Tensor) -> ChainSummary:
    """Means, errors, R-hat and bulk ESS by ArviZ.

    >>> summary = summarize_chains(torch.randn(4, 500, 2, generator=torch.Generator().manual_seed(0)))
    >>> summary.rhat < 1.02, summary.mean.shape
    (True, torch.Size([2]))
    """
    xarray = importlib.import_module("xarray")
    data = xarray.Dataset({"x": (("chain", "draw", "coordinate"), chains.double().numpy())})
    az = arviz()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        error, rhat, ess = az.mcse(data, method="mean"), az.rhat(data), az.ess(data, method="bulk")
    return ChainSummary(
        chains.double().mean((0, 1)),
        torch.from_numpy(error["x"].values.copy()).double(),
        float(rhat["x"].max()),
        float(ess["x"].min()),
    )


def exact_reference(target: PosteriorTarget, num_samples: int = NUM_EXACT) -> Reference:
    """From independent exact draws of a fixed seed."""
    z = target.sample(num_samples, generator=torch.Generator().manual_seed(2**31), dtype=torch.float64)
    return Reference(z.mean(0), z.std(0) / num_samples**0.5, z.std(0))


def tempered_reference(
    target: PosteriorTarget, rounds: int, seed: int, proposal: Any = None
) -> tuple[Reference, Estimate]:
    """From parallel tempering, with its own row of figures.

    :param rounds: draws kept of each of the chains; half as many rounds before.
    """
    draws = parallel_tempering(
        target.model(),
        num_samples=PT_CHAINS * rounds,
        num_chains=PT_CHAINS,
        num_warmup=max(8, rounds // 2),
        proposal=proposal,
        seed=seed,
        progress=False,
    )
    z = draws.info["z"].double()
    summary = summarize_chains(z.reshape(PT_CHAINS, -1, target.dim))
    spent, seconds = draws.evaluations["sample"], draws.info["cpu_seconds"]
    metrics = {
        "log_z": Metric(draws.log_normalizer, draws.log_normalizer_error),
        "khat": Metric(None, reason="draws of Markov chains: errors are those of replicates"),
        **_chain_metrics(summary, EvaluationCount(spent["values"], spent["gradients"]), seconds),
    }
    return Reference(summary.mean, summary.error, z.std(0)), Estimate(metrics, summary.mean, summary.error)


def nuts_estimate(target: PosteriorTarget, num_warmup: int, num_draws: int, seed: int) -> Estimate:
    """Pyro's NUTS on the energy of the unconstrained vector, in float64, a few chains one after the other."""
    energy: Any = SchoolsPosterior() if target.name == "eight_schools" else target
    potential: Any = _Potential.apply
    start = time.process_time()
    chains = []
    with count_evaluations() as count:
        for chain in range(NUTS_CHAINS):
            pyro.set_rng_seed(seed * NUTS_CHAINS + chain)
            first = {"z": torch.randn(target.dim, dtype=torch.float64)}
            kernel = NUTS(potential_fn=lambda sites: potential(sites["z"], energy))
            mcmc = MCMC(kernel, num_draws, warmup_steps=num_warmup, initial_params=first, disable_progbar=True)
            mcmc.run()
            chains.append(mcmc.get_samples()["z"])
    summary = summarize_chains(torch.stack(chains))
    return Estimate(_chain_metrics(summary, count, time.process_time() - start), summary.mean, summary.error)


def _chain_metrics(summary: ChainSummary, count: EvaluationCount, seconds: float) -> dict[str, Metric]:
    return {
        "rhat": Metric(summary.rhat),
        "mcmc_ess": Metric(summary.ess),
        "values": Metric(float(count.values)),
        "gradients": Metric(float(count.gradients)),
        "cpu_seconds": Metric(seconds),
    }


class _Potential(torch.autograd.Function):
    """An energy of one vector whose gradient is the formula of the energy, if it has one; both are counted."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, energy: Any) -> Tensor:
        with torch.no_grad():
            u, gradient = energy_and_gradient(energy, z.detach().unsqueeze(0))
        ctx.save_for_backward(gradient[0])
        return u[0]

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor, None]:
        return grad_output * ctx.saved_tensors[0], None
