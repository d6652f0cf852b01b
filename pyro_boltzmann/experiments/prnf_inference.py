"""Inference through a flow map, against the same inference through the simulator and the exact posterior."""

from __future__ import annotations

import time as clock
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from pyro.infer import MCMC, NUTS
from pyro.infer.autoguide.initialization import init_to_median
from pyro.ops.stats import effective_sample_size
from torch import Tensor
from tqdm.auto import tqdm

from pyro_boltzmann.diagnostics import weight_metrics
from pyro_boltzmann.experiments.bendem_rows import to_plain
from pyro_boltzmann.experiments.eight_schools import autoregressive
from pyro_boltzmann.experiments.finished_parts import FinishedParts
from pyro_boltzmann.experiments.inference_problems import PROBLEMS, SourceProblem
from pyro_boltzmann.experiments.prnf_inference_page import write_inference_results
from pyro_boltzmann.experiments.run_metrics import stream_seed
from pyro_boltzmann.experiments.threads import one_thread
from pyro_boltzmann.guides import AutoStochasticFlow
from pyro_boltzmann.infer import fit, fit_flow_map, importance_sample, load_checkpoint, save_checkpoint
from pyro_boltzmann.infer.randomness import seeded
from pyro_boltzmann.sde import FlowMap, OutsideDomainWarning, TransitionData, draw_transitions
from pyro_boltzmann.transforms import ElementwiseAffine

__all__ = ["run"]

FULL_MINUTES = 20.0
PAIRS, UPDATES = 200_000, 800
GUIDE_STEPS, GUIDE_SAMPLES, PARTICLES = 1500, 10_000, 64
LENGTHS = (PAIRS, UPDATES, GUIDE_STEPS, PARTICLES)
SETTINGS = {name: problem.settings for name, problem in PROBLEMS.items()}
"""What finished parts rest on."""
MOST_AUTOREGRESSIVE = 100
"""Latents up to which layers are autoregressive; beyond, as in the ABC flow's simulation, they are independent."""

Program = Callable[[Tensor], None]


def run(
    *, seed: int, out: Path, minutes: float | None = None, num_samples: int | None = None, progress: bool = True
) -> dict[str, Any]:
    """Train the maps, infer by NUTS and by a flow guide through each program, and write table and report into ``out``.

    Whatever is finished is kept.

    :param minutes: shorten everything in proportion.
    :param num_samples: weighted draws of each guide.
    """
    share = min(1.0, (minutes or FULL_MINUTES) / FULL_MINUTES)
    count = num_samples or max(400, round(GUIDE_SAMPLES * share))
    out.mkdir(parents=True, exist_ok=True)
    parts = FinishedParts(
        out / "parts.json",
        {"seed": seed, "share": share, "num_samples": count, "lengths": LENGTHS, "problems": SETTINGS},
    )
    with one_thread():
        jobs: dict[str, Callable[[], dict[str, Any]]] = {}
        for name, problem in PROBLEMS.items():
            work = _Work(name, problem, seed, share, count, out, parts)
            jobs[f"{name}: map"] = work.train_map
            for way in ("map", "simulator"):
                jobs[f"{name}: {way}, NUTS"] = partial(work.by_nuts, way)
                jobs[f"{name}: {way}, guide"] = partial(work.by_guide, way)
        for name, job in tqdm(jobs.items(), disable=not progress):
            parts.get(name, job)
    return write_inference_results(dict(parts.parts), seed=seed, share=share, num_samples=count, out=out)


class _Work:
    """One problem by all ways."""

    def __init__(
        self, name: str, problem: SourceProblem, seed: int, share: float, count: int, out: Path, parts: FinishedParts
    ) -> None:
        self.name, self.problem, self.seed, self.share, self.count = name, problem, seed, share, count
        self.file = out / f"map-{name}.safetensors"
        self.parts = parts
        self.observed = problem.observations(stream_seed(seed, f"{name} observed"))

    def part(self, number: int, least: int) -> int:
        return max(least, round(self.share * number))

    def flow_map(self) -> FlowMap:
        """Untrained; what lies outside its training data is counted in the results."""
        problem = self.problem
        periods = None if problem.period is None else [problem.period] * problem.dim
        with seeded(stream_seed(self.seed, f"{self.name} weights")):
            return FlowMap.for_sde(
                problem.system.sde,
                problem.system.time,
                periods=periods,
                width=64,
                coupling_width=48,
                drift_steps=8 if problem.period else 2,
                outside="warn",
            )

    def train_map(self) -> dict[str, Any]:
        """Simulate pairs, fit, keep."""
        begin, system = clock.process_time(), self.problem.system
        flow_map = self.flow_map()
        seed = stream_seed(self.seed, f"{self.name} pairs")
        pairs = self.part(PAIRS, 4000)
        if system.transition is None:
            data = draw_transitions(system.sde, system.initial, system.time, pairs, step_size=0.01, seed=seed)
        else:
            with seeded(seed):
                x0 = system.initial.sample((pairs,))
                state = system.transition.sample(x0, system.time)
            data = TransitionData(x0, torch.full((pairs,), system.time), state, torch.zeros(pairs, dtype=torch.bool))
        result = fit_flow_map(flow_map, data, num_steps=self.part(UPDATES, 20), seed=0, progress=False)
        save_checkpoint(self.file, flow_map.state_dict(), {})
        return {"cpu_seconds": clock.process_time() - begin, "nll": result.validation, "pairs": pairs}

    def program(self, way: str) -> Program:
        if way == "simulator":
            return self.problem.through_simulator()
        flow_map = self.flow_map()
        flow_map.load_state_dict(load_checkpoint(self.file)[0])
        flow_map.eval().requires_grad_(False)
        return self.problem.through_map(flow_map)

    def by_nuts(self, way: str) -> dict[str, Any]:
        """Pyro's NUTS."""
        begin, (draws, warmup) = clock.process_time(), self.problem.chain
        depth = 6 if self.share > 0.1 else 3
        kernel = NUTS(self.program(way), max_tree_depth=depth, init_strategy=init_to_median(num_samples=50))
        with warnings.catch_warnings(), seeded(stream_seed(self.seed, f"{self.name} {way} NUTS")):
            warnings.simplefilter("ignore", OutsideDomainWarning)
            mcmc = MCMC(kernel, self.part(draws, 8), warmup_steps=self.part(warmup, 8), disable_progbar=True)
            mcmc.run(self.observed)
        draws = mcmc.get_samples()
        values = torch.cat([draws["source"], draws["width"].unsqueeze(-1)], -1).double()
        seconds = clock.process_time() - begin
        ess = effective_sample_size(values.unsqueeze(0)).nan_to_num(1.0).clamp(1.0, len(values))
        return {
            **self.deviations(values.mean(0), values.std(0), values.std(0) / ess.sqrt()),
            "cpu_seconds": seconds,
            "ess_per_second": float(ess.min()) / seconds,
            "outside": self.share_outside(draws, way),
        }

    def by_guide(self, way: str) -> dict[str, Any]:
        """Layers as an :class:`AutoStochasticFlow`, trained by the ELBO, its draws reweighted."""
        begin = clock.process_time()
        program = self.program(way)
        guide = AutoStochasticFlow(program, _layers)
        seed = stream_seed(self.seed, f"{self.name} {way} guide")
        exact = self.problem.exact(self.observed)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", OutsideDomainWarning)
            fit(
                program,
                guide,
                self.observed,
                num_steps=self.part(GUIDE_STEPS, 20),
                num_particles=PARTICLES,
                learning_rate=3e-3,
                schedule="cosine",
                seed=seed,
                progress=False,
            )
            draws = importance_sample(program, guide, self.observed, num_samples=self.count, seed=seed)
        seconds = clock.process_time() - begin
        values = torch.cat(
            [draws.samples["source"].reshape(-1, self.problem.dim), draws.samples["width"].reshape(-1, 1)], -1
        )
        values = values.double()
        weight = draws.log_weights.double().softmax(0).unsqueeze(-1)
        mean = (weight * values).sum(0)
        sd = (weight * (values - mean).square()).sum(0).sqrt()
        error = (weight.square() * (values - mean).square()).sum(0).sqrt()
        rows = weight_metrics(draws, log_z=None if exact is None else exact.log_z)
        return {
            **self.deviations(mean, sd, error),
            "cpu_seconds": seconds,
            "ess_per_second": draws.ess * draws.num_samples / seconds,
            "outside": self.share_outside(draws.samples, way),
            "rows": {name: to_plain(row) for name, row in rows.items() if name in ("log_z", "elbo", "ess", "khat")},
        }

    def deviations(self, mean: Tensor, sd: Tensor, error: Tensor) -> dict[str, Any]:
        """What was found, and how far it is from the exact posterior where that is known."""
        found: dict[str, Any] = {"mean": mean.tolist(), "sd": sd.tolist(), "error": error.tolist()}
        exact = self.problem.exact(self.observed)
        if exact is not None:
            found["exact_mean"], found["exact_sd"] = exact.mean.tolist(), exact.sd.tolist()
        return found

    def share_outside(self, draws: dict[str, Tensor], way: str) -> float | None:
        """Share of initial states beyond the map's training data."""
        if way == "simulator":
            return None
        flow_map = self.flow_map()
        flow_map.load_state_dict(load_checkpoint(self.file)[0])
        return float(flow_map.is_outside(draws["x0"].float(), self.problem.system.time).double().mean())


def _layers(energy: Any, dim: int) -> list[Any]:
    return autoregressive(dim, max(48, dim)) if dim <= MOST_AUTOREGRESSIVE else [ElementwiseAffine(dim)]
