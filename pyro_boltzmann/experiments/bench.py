"""``make bench``: what stochastic steps cost, beside the energies and random numbers they cannot do without; and what
fields of particles and updates of a pseudo-reversible flow cost, beside the published formulas.

Prints CPU seconds on one thread, side by side in one run: the minimum and the median over repeats, and their ratios.
Run it on an idle machine.
"""

from __future__ import annotations

import argparse
import importlib.util
import math
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Categorical, Independent, MixtureSameFamily, Normal

from pyro_boltzmann.diagnostics.atomic import write_atomically
from pyro_boltzmann.diffusion import noised_score
from pyro_boltzmann.energies import energy_and_gradient
from pyro_boltzmann.energies.catalogue import ParticleTarget, catalogue
from pyro_boltzmann.energies.catalogue.gmm40 import STD
from pyro_boltzmann.experiments.bench_fields import field_costs
from pyro_boltzmann.experiments.bench_flow_maps import flow_map_costs
from pyro_boltzmann.experiments.bench_timing import REPEATS, measure, ratio
from pyro_boltzmann.guides import AutoStochasticFlow
from pyro_boltzmann.infer import importance_sample, smc
from pyro_boltzmann.stochastic import LangevinTransform, MetropolisAdjusted, RandomWalkTransform
from pyro_boltzmann.stochastic.noise import log_uniform

__all__ = ["main"]

NUM_SAMPLES = 100_000
NUM_STEPS = 80
SCALE, STEP_SIZE = 0.25, 0.01
ANNEALED, ANNEALED_DIM = 1000, 10
DENOISING_REPEATS = 7
TARGET = catalogue["double_well"]

Energy = Callable[[Tensor], Tensor]


def main() -> None:
    """Print the table; with ``--page FILE`` also write it as a page of the documentation."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--page", type=Path, help="a Markdown file to write the table to")
    page: Path | None = parser.parse_args().page
    torch.set_num_threads(1)
    lines = [
        f"double well, N = {NUM_SAMPLES:,}, {NUM_STEPS} steps, one thread, float32, no gradients of parameters",
        f"CPU seconds and their ratios, minimum (median) of {REPEATS} interleaved repeats; torch {torch.__version__}",
        "",
    ]
    lines += _table("Metropolis random walk", _metropolis, _bare_values, _noise_metropolis, _published_metropolis, 0.6)
    lines += _table("overdamped Langevin", _langevin, _bare_forces, _noise_langevin, _published_langevin, 0.5)
    lines += _annealing_overhead()
    lines += _denoising_scores()
    lines += field_costs()
    lines += flow_map_costs()
    text = "\n".join(lines)
    print(text)
    if page is not None:
        content = f"# Cost of stochastic steps\n\n{_EXPLANATION}\n\n```text\n{text}\n```\n"
        write_atomically(page, lambda temporary: _write(temporary, content))


_EXPLANATION = """\
Written by `python -m pyro_boltzmann.experiments.bench --page FILE` (`make bench` prints it). bgflow is on no package
index; where it is not installed, the published loop repeats the operations of its blocks step by step: on an energy
written as there, which is what the targets are about, and on our energy, to tell the step from the energy. A ratio
counts as met if both its minimum and its median are. The published field is its formula as its code evaluates it: 50
kernels and their derivatives for each ordered pair."""


def _write(path: Path, content: str) -> None:
    path.write_text(content, encoding="utf-8")


def _table(
    title: str,
    ours: Callable[[], object],
    bare: Callable[[], object],
    noise: Callable[[], object],
    published: Callable[[Energy], object],
    limit: float,
) -> list[str]:
    theirs = "bgflow" if importlib.util.find_spec("bgflow") else "published loop"
    rows = {
        "ours, with weights": ours,
        "bare energy or force calls": bare,
        "random numbers": noise,
        f"{theirs}, same energy": lambda: published(TARGET.energy),
        f"{theirs}, its own energy": lambda: published(_published_double_well),
    }
    times = measure(rows)
    mine, values, numbers, *others = times.values()
    needed = [a + b for a, b in zip(values, numbers, strict=True)]
    lines = [title]
    lines += [f"  {name:<42} {min(row):7.3f}  ({statistics.median(row):.3f})" for name, row in times.items()]
    lines.append(f"  {'ratio to energy + random numbers':<42} {ratio(mine, needed, 2.0)}")
    for name, other, asked in zip(list(rows)[3:], others, (None, limit), strict=True):
        lines.append(f"  {'ratio to ' + name:<42} {ratio(mine, other, asked)}")
    return [*lines, ""]


def _annealing_overhead() -> list[str]:
    """Sequential Monte Carlo beside the bare calls of an energy that costs a millisecond a batch."""
    energy = _millisecond_energy()
    calls = 0

    def counted(x: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        return energy(x)

    settings: dict[str, Any] = {"dim": ANNEALED_DIM, "num_samples": ANNEALED, "seed": 0, "progress": False}
    with torch.no_grad():
        smc(counted, **settings)
    number = calls - 1  # one probes the shape
    x = torch.randn(ANNEALED, ANNEALED_DIM)

    def bare() -> None:
        for _ in range(number):
            energy_and_gradient(energy, x)

    times = measure({"ours": lambda: smc(energy, **settings), "bare": bare})
    per_call = min(times["bare"]) / number
    extra = [1e6 * (a - b) / number for a, b in zip(times["ours"], times["bare"], strict=True)]
    least = 1e6 * (min(times["ours"]) - min(times["bare"])) / number
    return [
        f"sequential Monte Carlo, {ANNEALED:,} particles in {ANNEALED_DIM} dimensions, {number} gradients of "
        f"{1e3 * per_call:.2f} ms a batch",
        *(f"  {name:<42} {min(row):7.3f}  ({statistics.median(row):.3f})" for name, row in times.items()),
        f"  {'microseconds a gradient beside the energy':<42} {least:7.0f}  ({statistics.median(extra):.0f})",
        f"  {'ratio to bare calls':<42} {ratio(times['ours'], times['bare'], 1.1)}",
        "",
    ]


def _millisecond_energy() -> Energy:
    """A Gaussian and a small network, as deep as it takes to cost a millisecond with its gradient."""
    weights = torch.randn(ANNEALED_DIM, 32, generator=torch.Generator().manual_seed(0)) / ANNEALED_DIM**0.5
    inner = torch.randn(32, 32, generator=torch.Generator().manual_seed(1)) / 32**0.5

    def make(depth: int) -> Energy:
        def energy(x: Tensor) -> Tensor:
            hidden = torch.tanh(x @ weights)
            for _ in range(depth):
                hidden = torch.tanh(hidden @ inner)
            return 2.0 * (x - 1.0).square().sum(-1) + hidden.mean(-1)

        return energy

    x = torch.randn(ANNEALED, ANNEALED_DIM)
    shallow, deep = 4, 24
    # Minima over a second, taken in turns: load can only add to them.
    times: dict[int, list[float]] = {shallow: [], deep: []}
    for _ in range(400):
        for depth, taken in times.items():
            start = time.process_time()
            energy_and_gradient(make(depth), x)
            taken.append(time.process_time() - start)
    first, last = min(times[shallow]), min(times[deep])
    return make(max(1, round(shallow + (1e-3 - first) * (deep - shallow) / (last - first))))


def _denoising_scores() -> list[str]:
    """Scores a second of the target-score form, beside a loop that differentiates all points at once."""
    lines = ["noised scores a second, target-score form, batch 512"]
    cases = (("gmm40", 500, 2000, _published_mixture), ("dw4", 1000, 3500, _published_pairs))
    for name, num_noise, asked, published in cases:
        target = catalogue[name]
        x = 2.0 * torch.randn(512, target.dim) if name == "dw4" else target.sample(512)
        inputs = target.to_particles(x).flatten(1) if isinstance(target, ParticleTarget) else x
        times = measure(
            {
                "ours": partial(noised_score, target, x, 1.0, num_noise, form="target"),
                "published loop": partial(_published_scores, published, inputs, num_noise),
            },
            repeats=DENOISING_REPEATS,
        )
        rates = {key: (512 / min(row), 512 / statistics.median(row)) for key, row in times.items()}
        for key, (best, middle) in rates.items():
            lines.append(f"  {f'{name}, K = {num_noise}, {key}':<42} {best:7.0f}  ({middle:.0f})")
        met = "met" if min(rates["ours"]) >= asked else "short"
        lines[-2] += f"  asked: at least {asked:,}, {met}"
        lines.append(f"  {'ratio of times':<42} {ratio(times['ours'], times['published loop'], None)}")
    return [*lines, ""]


# Ours ------------------------------------------------------------------------------------------------------------


def _sample(guide: AutoStochasticFlow, model: Callable[..., object]) -> None:
    importance_sample(model, guide, num_samples=NUM_SAMPLES)


def _metropolis() -> None:
    model = TARGET.model()
    walk = RandomWalkTransform(2, SCALE, num_steps=NUM_STEPS)
    _sample(AutoStochasticFlow(model, lambda energy, dim: [MetropolisAdjusted(walk, energy)]), model)


def _langevin() -> None:
    model = TARGET.model()
    _sample(
        AutoStochasticFlow(model, lambda e, dim: [LangevinTransform(e, dim, STEP_SIZE, num_steps=NUM_STEPS)]), model
    )


# What no implementation can do without ----------------------------------------------------------------------------


def _bare_values() -> None:
    x = torch.randn(NUM_SAMPLES, 2)
    for _ in range(NUM_STEPS + 1):
        TARGET.energy(x)


def _bare_forces() -> None:
    x = torch.randn(NUM_SAMPLES, 2)
    for _ in range(NUM_STEPS + 1):
        energy_and_gradient(TARGET.energy, x)


def _noise_metropolis() -> None:
    like = torch.empty(NUM_SAMPLES)
    for _ in range(NUM_STEPS):
        torch.randn(NUM_SAMPLES, 2)
        log_uniform(like.shape, like)  # the quickest way to a threshold that we know


def _noise_langevin() -> None:
    for _ in range(NUM_STEPS):
        torch.randn(NUM_SAMPLES, 2)


# The published loops ----------------------------------------------------------------------------------------------
# bgflow is on no package index. Where it is not installed, these loops repeat, step by step, the operations of its two
# blocks as read in its repository: one energy a Metropolis step with an arithmetic accept, two forces a Langevin step
# with a graph for second derivatives. With bgflow installed its own blocks are timed instead.


def _published_scores(energy: Energy, x: Tensor, num_noise: int) -> Tensor:
    """The gradient of the logarithm of the mean, through all points at once."""
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        points = x.unsqueeze(1).repeat(1, num_noise, 1)
        log_weights = -energy((points + torch.randn_like(points)).flatten(0, 1)).view(len(x), num_noise)
        estimate = log_weights.logsumexp(1) - math.log(num_noise)
        (score,) = torch.autograd.grad(estimate.sum(), x)
    return score


def _published_mixture(x: Tensor) -> Tensor:
    means = torch.as_tensor(catalogue["gmm40"].constants["means"]).to(x)
    components = Independent(Normal(means, STD), 1)
    mixture = MixtureSameFamily(Categorical(torch.ones(len(means))), components, validate_args=False)
    energy: Tensor = -mixture.log_prob(x)
    return energy


def _published_pairs(x: Tensor) -> Tensor:
    particles = x.view(-1, 4, 2)
    first, second = torch.triu_indices(4, 4, offset=1)
    t = (particles[:, first] - particles[:, second]).square().sum(-1).sqrt() - 4.0
    return (0.9 * t**4 - 4.0 * t**2).sum(-1)


def _published_double_well(x: Tensor) -> Tensor:
    first, rest = x[..., [0]], x[..., 1:]
    well = -0.5 * first + -6.0 * first.pow(2) + 1.0 * first.pow(4)
    return (well + 0.5 * rest.pow(2).sum(dim=-1, keepdim=True))[..., 0]


def _installed(name: str, energy: Energy) -> Callable[[Tensor], object] | None:
    if importlib.util.find_spec("bgflow") is None:
        return None
    bgflow = __import__("bgflow")
    stochastic = __import__("bgflow.nn.flow.stochastic", fromlist=[name])

    class _Wrapped(bgflow.Energy):  # type: ignore[name-defined, misc]
        def _energy(self, x: Tensor) -> Tensor:
            return energy(x).unsqueeze(-1)

    size = SCALE if name == "MetropolisMCFlow" else STEP_SIZE
    block: Callable[[Tensor], object] = getattr(stochastic, name)(_Wrapped(2), nsteps=NUM_STEPS, stepsize=size)
    return block


def _published_metropolis(energy: Energy) -> None:
    x = torch.randn(NUM_SAMPLES, 2)
    block = _installed("MetropolisMCFlow", energy)
    if block is not None:
        block(x)
        return
    current = start = energy(x).unsqueeze(-1)
    for _ in range(NUM_STEPS):
        proposal = x + SCALE * torch.zeros_like(x).normal_()
        proposed = energy(proposal).unsqueeze(-1)
        accept = (torch.rand(len(x), 1) < torch.exp(current - proposed)).float()
        x = (1 - accept) * x + accept * proposal
        current = (1 - accept) * current + accept * proposed
    _ = current - start


def _published_langevin(energy: Energy) -> None:
    x = torch.randn(NUM_SAMPLES, 2)
    block = _installed("BrownianFlow", energy)
    if block is not None:
        block(x)
        return

    def force(at: Tensor) -> Tensor:
        with torch.enable_grad():
            at = at.requires_grad_(True)
            (gradient,) = torch.autograd.grad(energy(at).unsqueeze(-1).sum(), at, create_graph=True)
            at.requires_grad_(False)
        return -gradient

    work = torch.zeros(len(x), 1)
    root = (2 * STEP_SIZE) ** 0.5
    for _ in range(NUM_STEPS):
        noise = torch.empty(x.shape).normal_()
        y = (x + STEP_SIZE * force(x) + root * noise).detach()
        back = (x - y - STEP_SIZE * force(y)) / root
        work += 0.5 * (noise**2 - back.detach() ** 2).sum(dim=1, keepdim=True)
        x = y


if __name__ == "__main__":
    main()
