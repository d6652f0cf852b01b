"""What a trained flow saves sequential Monte Carlo: energy evaluations for the same error of log Z."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pyro_boltzmann.diagnostics import Metric, WeightedSamples
from pyro_boltzmann.energies.catalogue import Target
from pyro_boltzmann.experiments.bendem_rows import to_plain
from pyro_boltzmann.experiments.drawn_proposal import drawn_proposal
from pyro_boltzmann.experiments.run_metrics import log_z_truth, stream_seed
from pyro_boltzmann.infer import smc

__all__ = ["LogZRuns", "ProposalPlan", "savings", "smc_from_flow", "smc_from_gaussian"]

TOLERANCES = (0.2, 0.05, 0.02)
"""Errors of log Z that are asked for; the last is that of the certified value of LJ-13."""


@dataclass(frozen=True)
class ProposalPlan:
    """The runs that are compared.

    :ivar particles: of tempering from a Gaussian; each number is a row.
    :ivar scale: standard deviation of that Gaussian.
    :ivar repeats: runs of each number.
    :ivar drawn: particles of each run from the flow; as many runs as there are draws for.
    """

    particles: tuple[int, ...] = (500, 2000)
    scale: float = 1.0
    repeats: int = 10
    drawn: int = 100


@dataclass(frozen=True)
class LogZRuns:
    """Estimates of log Z of independent runs, and evaluations of the energy with its gradient that one run took."""

    log_z: list[float]
    evaluations: float

    def rms(self, truth: float) -> float:
        """Root mean square error, bias included."""
        return math.sqrt(sum((value - truth) ** 2 for value in self.log_z) / len(self.log_z))

    def constant(self, truth: float) -> float:
        """Mean square error times evaluations: what an error of one would take if errors fell as the square root."""
        return self.rms(truth) ** 2 * self.evaluations

    def rows(self, target: Target) -> dict[str, Any]:
        """``log_z`` with the error of its mean, ``log_z_rms``, ``evaluations`` of a run and ``constant``, in JSON."""
        values = torch.tensor(self.log_z, dtype=torch.float64)
        number = len(values)
        assert target.log_z is not None
        rms, constant = self.rms(target.log_z), self.constant(target.log_z)
        # For normal errors the mean square of n has the relative variance 2 / n.
        found = {
            "log_z": Metric(
                float(values.mean()),
                float(values.std()) / math.sqrt(number) if number > 1 else None,
                truth=log_z_truth(target),
            ),
            "log_z_rms": Metric(rms, rms / math.sqrt(2 * number)),
            "runs": Metric(float(number)),
            "evaluations": Metric(self.evaluations),
            "constant": Metric(constant, constant * math.sqrt(2.0 / number)),
        }
        return {name: to_plain(row) for name, row in found.items()}


def smc_from_gaussian(target: Target, plan: ProposalPlan, particles: int, seed: int) -> LogZRuns:
    """Tempering from a Gaussian, with the settings of the catalogue's comparison but for the particles."""

    def one(index: int) -> WeightedSamples:
        return smc(
            target,
            num_samples=particles,
            proposal=plan.scale,
            seed=stream_seed(seed + index, "smc"),
            progress=False,
        )

    return _runs(one, plan.repeats)


def smc_from_flow(target: Target, plan: ProposalPlan, x: Tensor, log_q: Tensor, seed: int) -> LogZRuns:
    """One step from a flow's draws to the target, in runs of ``plan.drawn`` draws that share none.

    :param x: independent draws ``(n, dim)`` and their log-densities ``(n,)``.
    """
    size = min(plan.drawn, len(x) // 2)
    pieces = list(zip(x.split(size), log_q.split(size), strict=True))[: len(x) // size]

    def one(index: int) -> WeightedSamples:
        return smc(
            target,
            num_samples=size,
            proposal=drawn_proposal(*pieces[index]),
            conditional_ess=1e-9,
            seed=stream_seed(seed + index, "smc from the flow"),
            progress=False,
        )

    return _runs(one, len(pieces))


def _runs(one: Callable[[int], WeightedSamples], number: int) -> LogZRuns:
    runs = [one(index) for index in range(number)]
    spent = sum(float(run.evaluations["sample"]["gradients"]) for run in runs)
    return LogZRuns([run.log_normalizer for run in runs], spent / number)


def savings(gaussian: LogZRuns, flow: LogZRuns, truth: float, training: dict[str, float]) -> dict[str, dict[str, Any]]:
    """How many evaluations either proposal takes for an error of log Z, by tolerance and by what is counted.

    :param gaussian: of the number of particles whose constant is least.
    :param training: evaluations spent before the first draw, by what they were spent on; each line adds the next.
    """
    found = {}
    for tolerance in TOLERANCES:
        without = gaussian.constant(truth) / tolerance**2
        spent = 0.0
        for name, more in {"training excluded": 0.0, **training}.items():
            spent += more
            with_flow = flow.constant(truth) / tolerance**2 + spent
            rows = {"from_gaussian": without, "from_flow": with_flow, "saving": without / with_flow}
            found[f"error {tolerance}, {name}"] = {key: to_plain(Metric(value)) for key, value in rows.items()}
    return found
