"""A neural spline flow of normflows, trained by reverse KL and importance weighted."""

from __future__ import annotations

import torch
from torch import Tensor

from pyro_boltzmann.diagnostics.weights import effective_sample_size, log_normalizer
from pyro_boltzmann.energies.evaluation import count_evaluations, energy_value
from pyro_boltzmann.experiments.others.clock import CpuClock
from pyro_boltzmann.experiments.others.extra import need
from pyro_boltzmann.experiments.others.problem import BenchProblem
from pyro_boltzmann.experiments.others.record import Outcome
from pyro_boltzmann.infer.randomness import seeded

__all__ = ["run_normflows"]

NUM_LAYERS, NUM_PARTICLES, LEARNING_RATE = 4, 512, 2e-3


def run_normflows(problem: BenchProblem, size: int, seed: int) -> Outcome:
    """``size`` Adam updates on 512 draws each, then 100 weighted draws an update; layers as in normflows' own example.

    The flow lives in units of the common start: a normal base, and couplings of rational-quadratic
    splines on [-5, 5] with linear mixing between them.
    """
    with seeded(seed):
        return _run(problem, size)


def _run(problem: BenchProblem, size: int) -> Outcome:
    flows = need("normflows")
    loc, scale = (torch.tensor(v, dtype=torch.float32) for v in (problem.loc, problem.scale))
    dim, log_volume = problem.dim, float(scale.log().sum())

    class Scaled:
        def log_prob(self, y: Tensor) -> Tensor:
            return log_volume - energy_value(problem.energy, loc + scale * y)

    layers = []
    for _ in range(NUM_LAYERS):
        layers.append(flows.flows.CoupledRationalQuadraticSpline(dim, 2, 64, num_bins=12, tail_bound=5.0))
        layers.append(flows.flows.LULinearPermute(dim))
    flow = flows.NormalizingFlow(flows.distributions.DiagGaussian(dim, trainable=False), layers, Scaled())
    optimizer = torch.optim.Adam(flow.parameters(), lr=LEARNING_RATE)
    clock = CpuClock()
    with clock("run"), count_evaluations() as count:
        for _ in range(size):
            optimizer.zero_grad()
            loss = flow.reverse_kld(NUM_PARTICLES)
            if bool(loss.isfinite()):
                loss.backward()
                torch.nn.utils.clip_grad_norm_(flow.parameters(), 100.0)
                optimizer.step()
        with torch.no_grad():
            parts = [flow.sample(part) for part in _parts(100 * size)]
            y, log_q = (torch.cat(part) for part in zip(*parts, strict=True))
            log_weights = (Scaled().log_prob(y) - log_q).double()
    log_weights = log_weights.nan_to_num(nan=-torch.inf, posinf=-torch.inf)
    weights = log_weights.numpy()
    return Outcome(
        (loc + scale * y).numpy(),
        weights,
        effective_sample_size(weights),
        log_normalizer(weights),
        count.values,
        count.gradients,
        clock.seconds["run"],
    )


def _parts(number: int, most: int = 10_000) -> list[int]:
    return [min(most, number - start) for start in range(0, number, most)]
