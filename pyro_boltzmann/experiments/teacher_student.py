"""Teacher and student: sequential Monte Carlo teaches a flow, the flow teaches itself, and annealing corrects it."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import pyro.distributions.transforms as T
import torch
from pyro.nn import DenseNN
from torch import Tensor, nn
from tqdm.auto import tqdm

from pyro_boltzmann.diagnostics import Metric, build_report, modes_found, write_report
from pyro_boltzmann.diagnostics import weights as weight_statistics
from pyro_boltzmann.diagnostics.plots import save_figure
from pyro_boltzmann.diagnostics.plots.style import EXACT, RAW, WEIGHTED, new_figure, tidy
from pyro_boltzmann.energies import AnnealedEnergy, Energy, NormalEnergy, count_evaluations
from pyro_boltzmann.energies.catalogue import Target, catalogue
from pyro_boltzmann.experiments.adaptation import adapt_scales
from pyro_boltzmann.experiments.architectures import even_knots
from pyro_boltzmann.experiments.finished_parts import FinishedParts
from pyro_boltzmann.experiments.results_page import write_results_page
from pyro_boltzmann.experiments.run_metrics import log_z_truth, stream_seed
from pyro_boltzmann.experiments.threads import one_thread
from pyro_boltzmann.guides import AutoStochasticFlow
from pyro_boltzmann.infer import Phase, fit, importance_sample, smc
from pyro_boltzmann.infer.randomness import seeded
from pyro_boltzmann.stochastic import LeapfrogTransform, MetropolisAdjusted, RandomWalkTransform
from pyro_boltzmann.transforms import ElementwiseAffine, InverseTransform, PushforwardEnergy

__all__ = ["LESSONS", "Lesson", "run"]

SEEDS = 5
FULL_MINUTES = 25.0
SCORED = 20_000
"""Draws behind each figure, forward and backward."""


@dataclass(frozen=True)
class Lesson:
    """How a target is learned.

    :ivar layers: builds the flow.
    :ivar teacher: settings of sequential Monte Carlo.
    :ivar steps: updates by maximum likelihood on the teacher's draws.
    :ivar rounds: how often the flow is then trained on its own reweighted draws.
    :ivar round_steps: updates of each such round.
    :ivar own_draws: of each such round.
    :ivar reverse_share: weight of reverse KL beside maximum likelihood in these rounds.
    :ivar reverse_steps: updates of reverse KL in between, where the teacher's draws do not cover the tails.
    :ivar num_rungs: Metropolis rungs from the flow's density to the target.
    :ivar proposal: of these rungs: ``"hmc"`` or ``"rwm"``.
    """

    layers: Callable[[], list[Any]]
    teacher: dict[str, Any]
    steps: int
    rounds: int
    round_steps: int
    own_draws: int
    reverse_share: float = 0.0
    reverse_steps: int = 0
    num_rungs: int = 8
    proposal: str = "rwm"
    learning_rate: float = 1e-2
    num_particles: int = 512


def _plane() -> list[Any]:
    """Autoregressive splines of the plane, which density evaluation runs through in one pass."""
    layers: list[Any] = []
    for _ in range(4):
        layers += [InverseTransform(T.spline_autoregressive(2, [64, 64], count_bins=16, bound=3.0))]
        layers += [T.Permute(torch.tensor([1, 0]))]
    return [*layers, T.AffineTransform(0.0, 16.0)]


def _marginals() -> list[Any]:
    """A spline for each coordinate; whether the coordinates are independent is for the weights to tell."""
    return [even_knots(T.Spline(32, count_bins=32, bound=4.0))]


def _scales() -> list[Any]:
    """One affine coupling whose scales follow the first coordinate, and a scale and shift for each."""
    network = _Skip(1, [32, 32], 9)
    return [
        ElementwiseAffine(10),
        T.AffineCoupling(1, network, log_scale_min_clip=-12.0, log_scale_max_clip=12.0),
    ]


class _Skip(nn.Module):
    """A network with a linear path beside it, so that it does not level off where there are no data."""

    def __init__(self, size: int, hidden: list[int], outputs: int) -> None:
        super().__init__()
        self.network = DenseNN(size, hidden, param_dims=[outputs, outputs], nonlinearity=nn.Tanh())
        self.linear = nn.Linear(size, 2 * outputs)
        with torch.no_grad():
            self.linear.weight.zero_()
            self.linear.bias.zero_()

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        loc, log_scale = self.network(x)
        straight, slope = self.linear(x).chunk(2, -1)
        return loc + straight, log_scale + slope


LESSONS: dict[str, Lesson] = {
    "gmm40": Lesson(_plane, {"num_samples": 2500}, 500, 3, 350, 60_000, num_rungs=24),
    "many_well32": Lesson(
        _marginals,
        {"num_samples": 4000, "max_moves": 4},
        600,
        4,
        400,
        60_000,
        reverse_share=0.5,
        num_rungs=16,
        proposal="hmc",
    ),
    "funnel10": Lesson(
        _scales, {"num_samples": 4000}, 500, 2, 300, 60_000, reverse_steps=800, num_rungs=4, learning_rate=5e-3
    ),
}
"""Settled on seed 100 and later; reported on others."""


def run(
    *, seed: int, out: Path, minutes: float | None = None, num_samples: int | None = None, progress: bool = True
) -> dict[str, Any]:
    """Teach, train and correct a flow on each target, and write table, picture and report into ``out``.

    :param minutes: shorten all training in proportion (one seed then).
    :param num_samples: draws behind each figure.
    """
    share = min(1.0, (minutes or FULL_MINUTES) / FULL_MINUTES)
    count = num_samples or max(2000, round(SCORED * share))
    out.mkdir(parents=True, exist_ok=True)
    parts = FinishedParts(out / "parts.json", {"seed": seed, "share": share, "num_samples": count})
    results: dict[str, list[dict[str, float]]] = {}
    with one_thread(), tqdm(LESSONS.items(), disable=not progress) as bar:
        for name, lesson in bar:
            results[name] = []
            for index in range(SEEDS if share == 1.0 else 1):
                bar.set_description(f"{name}, seed {seed + index}")
                make = partial(_learn, name, lesson, stream_seed(seed + index, name), share, count, out)
                results[name].append(parts.get(f"{name} {index}", make))
    return _report(results, seed, share, count, out)


def _learn(name: str, lesson: Lesson, seed: int, share: float, count: int, out: Path) -> dict[str, float]:
    target = catalogue[name]
    model = target.model()
    start, cpu_start = time.perf_counter(), time.process_time()
    with count_evaluations() as spent:
        particles = max(200, round(lesson.teacher["num_samples"] * share))
        source: dict[str, Any] = {} if len(target.bounds) == target.dim else {"dim": target.dim}
        settings = {**lesson.teacher, **source, "num_samples": particles, "seed": seed, "progress": False}
        draws = smc(target if not source else target.energy, **settings)
        with seeded(seed):
            layers = lesson.layers()
        flow = AutoStochasticFlow(model, lambda energy, dim: layers, latent_dim=target.dim)
        common: dict[str, Any] = {
            "num_particles": lesson.num_particles,
            "learning_rate": lesson.learning_rate,
            "schedule": "cosine",
            "progress": False,
        }
        fit(model, flow, data=draws, objective="forward_kl", num_steps=_few(lesson.steps, share), seed=seed, **common)
        if lesson.reverse_steps:
            fit(model, flow, num_steps=_few(lesson.reverse_steps, share), seed=seed + 1, **common)
        for index in range(lesson.rounds):
            own = importance_sample(model, flow, num_samples=_few(lesson.own_draws, share), seed=seed + 10 + index)
            fit(
                model,
                flow,
                data=own,
                objective=[Phase(_few(lesson.round_steps, share), lesson.reverse_share, 1.0 - lesson.reverse_share)],
                seed=seed + 20 + index,
                **{**common, "learning_rate": lesson.learning_rate / 2},
            )
        for layer in layers:
            if isinstance(layer, nn.Module):
                layer.requires_grad_(False)
        path = AutoStochasticFlow(model, partial(_corrected, layers, lesson), latent_dim=target.dim)
        adapt_scales(path, seed + 30, rounds=15, num_particles=1000)
    seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - cpu_start
    exact = target.sample(count, generator=torch.Generator().manual_seed(stream_seed(seed, "exact")))
    scored: dict[str, float] = {}
    for kind, guide in (("flow", flow), ("path", path)):
        scored |= {f"{kind}_{key}": value for key, value in _score(model, target, guide, exact, count, seed).items()}
    return {
        **scored,
        "teacher_log_z": draws.log_normalizer,
        "teacher_error": draws.log_normalizer_error,
        "evaluations": float(spent.gradients + spent.values),
        "gradients": float(spent.gradients),
        "seconds": seconds,
        "cpu_seconds": cpu_seconds,
    }


def _corrected(layers: list[Any], lesson: Lesson, energy: Energy, dim: int) -> list[Any]:
    reference = PushforwardEnergy(NormalEnergy(), layers)
    rungs = []
    for rung in range(1, lesson.num_rungs + 1):
        between = AnnealedEnergy(reference, energy, rung / lesson.num_rungs)
        proposal: Any = RandomWalkTransform(dim, 2.0 / dim**0.5)
        if lesson.proposal == "hmc":
            proposal = LeapfrogTransform(between, dim, 0.3, num_steps=3)
        rungs.append(MetropolisAdjusted(proposal, between, adapt=True))
    return [*layers, *rungs]


def _few(number: int, share: float) -> int:
    return max(20, round(number * share))


@torch.no_grad()
def _score(
    model: Any, target: Target, guide: AutoStochasticFlow, exact: Tensor, count: int, seed: int
) -> dict[str, float]:
    draws = importance_sample(model, guide, num_samples=count, seed=stream_seed(seed, "draws"))
    with seeded(stream_seed(seed, "backwards")):
        back = torch.cat([guide.reverse_paths(part).log_weight for part in exact.split(4096)])
    upper, upper_error = weight_statistics.eubo(back)
    modes = np.nan
    if target.mode_probabilities is not None:
        assignment = target.mode_assignment(draws.samples["x"]).numpy()
        modes = modes_found(assignment, len(target.mode_probabilities), draws.log_weights)
    return {
        "log_z": draws.log_normalizer,
        "std_error": draws.log_normalizer_error,
        "ess": draws.ess,
        "forward_ess": weight_statistics.forward_ess(back, target.log_z),
        "elbo": draws.elbo,
        "elbo_error": draws.elbo_error,
        "eubo": upper,
        "eubo_error": upper_error,
        "khat": draws.khat,
        "modes": float(modes),
        "sample_evaluations": float(draws.evaluations["sample"]["values"]),
    }


def _metrics(name: str, runs: list[dict[str, float]], kind: str) -> dict[str, Metric]:
    target = catalogue[name]
    first = {key.removeprefix(f"{kind}_"): value for key, value in runs[0].items()}
    middle = {key: median([one[key] for one in runs]) for key in runs[0]}
    off = [abs(one[f"{kind}_log_z"] - (target.log_z or 0.0)) for one in runs]
    gaps = [one[f"{kind}_eubo"] - one[f"{kind}_elbo"] for one in runs]
    rows = {
        "log_z": Metric(first["log_z"], first["std_error"], truth=log_z_truth(target)),
        "log_z_off": Metric(median(off)),
        "log_z_worst": Metric(max(off)),
        "ess": Metric(middle[f"{kind}_ess"]),
        "ess_worst": Metric(min(one[f"{kind}_ess"] for one in runs)),
        "forward_ess": Metric(middle[f"{kind}_forward_ess"]),
        "elbo": Metric(first["elbo"], first["elbo_error"], truth=target.log_z),
        "eubo": Metric(first["eubo"], first["eubo_error"], truth=target.log_z),
        "gap": Metric(median(gaps)),
        "khat": Metric(max(one[f"{kind}_khat"] for one in runs)),
        "evaluations": Metric(middle["evaluations"]),
        "train_seconds": Metric(middle["seconds"]),
        "cpu_seconds": Metric(middle["cpu_seconds"]),
    }
    if target.mode_probabilities is not None:
        found = min(one[f"{kind}_modes"] for one in runs)
        rows["modes_found"] = Metric(found, truth=float(len(target.mode_probabilities)))
    return rows


def _report(
    results: dict[str, list[dict[str, float]]], seed: int, share: float, count: int, out: Path
) -> dict[str, Any]:
    models = {
        f"{name}_{kind}": _metrics(name, runs, kind) for name, runs in results.items() for kind in ("flow", "path")
    }
    head = "gmm40_path"
    report = build_report(
        experiment="teacher-student",
        target=", ".join(results),
        sampler=head,
        seed=seed,
        num_samples=count,
        metrics=models[head],
        models=models,
        wall_seconds={"train": sum(one["seconds"] for runs in results.values() for one in runs)},
        cpu_seconds={"train": sum(one["cpu_seconds"] for runs in results.values() for one in runs)},
        threads=1,
        target_hash=catalogue["gmm40"].target_hash,
        notes=[] if share == 1.0 else [f"a shortened run: {share:.0%} of the stated training, one seed"],
    )
    write_report(report, out / "report.json")
    save_figure(_figure(results), out / "ess.png")
    columns = ["log_z", "log_z_off", "log_z_worst", "ess", "ess_worst", "forward_ess", "gap", "modes_found"]
    write_results_page(
        out / "teacher-student.md",
        report,
        title="Teacher and student",
        introduction=_INTRODUCTION.format(count=count, seeds=len(next(iter(results.values())))),
        columns=[*columns, "khat", "evaluations", "train_seconds"],
        pictures={"ess": "ESS as seen from the sampler and from the target, of the flow alone and with its correction"},
    )
    return report


def _figure(results: dict[str, list[dict[str, float]]]) -> Any:
    figure, (axes,) = new_figure(width=7.2, height=3.8)
    for place, (_, runs) in enumerate(results.items()):
        for shift, kind, colour in ((-0.15, "flow", RAW), (0.15, "path", WEIGHTED)):
            for one in runs:
                axes.plot(place + shift - 0.05, one[f"{kind}_ess"], "o", color=colour, markersize=6)
                axes.plot(place + shift + 0.05, one[f"{kind}_forward_ess"], "s", color=colour, markersize=5, alpha=0.6)
    axes.plot([], [], "o", color=RAW, label="flow")
    axes.plot([], [], "o", color=WEIGHTED, label="flow and annealing")
    axes.plot([], [], "s", color=EXACT, alpha=0.6, label="seen from the target")
    axes.set_xticks(range(len(results)), list(results))
    axes.set_ylim(0.0, 1.03)
    tidy(axes, title="Effective sample size", y="ESS / N")
    return figure


_INTRODUCTION = """\
Tempered sequential Monte Carlo draws from the target (teacher); a flow learns its draws by maximum likelihood and then
teaches itself on its own reweighted draws (`flow`); Metropolis rungs from the flow's own density to the target correct
it (`path`). On one thread, {seeds} seeds; figures from N = {count:,} draws and as many exact ones. `log_z` is of the
first seed, `log_z_off`, `ess`, `forward_ess` and `gap` (EUBO - ELBO) are medians, `log_z_worst`, `ess_worst`, `khat`
and `modes_found` the worst. `evaluations` (values and gradients) and `train_seconds` are of teacher, training and
adapting together. The flow of ManyWell-32 has one spline for each coordinate, that of the funnel one affine
coupling."""
