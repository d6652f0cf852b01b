"""The image experiment of the stochastic-normalizing-flow paper: a picture as a density, KL by depth and by cost."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from pyro_boltzmann.diagnostics import build_report, write_report
from pyro_boltzmann.diagnostics.plots import save_figure
from pyro_boltzmann.energies import EvaluationCount
from pyro_boltzmann.energies.catalogue import catalogue
from pyro_boltzmann.energies.catalogue.image import ImageDensity
from pyro_boltzmann.experiments.adaptation import total_seconds
from pyro_boltzmann.experiments.image_chains import Curve, chain_curve, flow_curve
from pyro_boltzmann.experiments.image_figures import gallery, plot_kl_against_evaluations, plot_kl_against_layers
from pyro_boltzmann.experiments.image_models import (
    FAMILIES,
    OURS_STEPS,
    ImageModel,
    followed_by_steps,
    ours,
    published,
    with_steps,
)
from pyro_boltzmann.experiments.image_page import CAPTIONS, COLUMNS, equal_cost, introduction
from pyro_boltzmann.experiments.image_scores import SHADES, Cells, Scored, score, shade
from pyro_boltzmann.experiments.results_page import write_results_page
from pyro_boltzmann.experiments.run_folder import claim
from pyro_boltzmann.experiments.threads import one_thread
from pyro_boltzmann.guides import AutoStochasticFlow
from pyro_boltzmann.infer import FitResult, Phase, fit, importance_sample, smc

__all__ = ["HEADLINE", "run"]

HEADLINE = "ours"
"""The model whose figures the report puts first: fixed here, before any run."""
FULL_MINUTES = 30.0
"""Budget at which the experiment runs as stated; less shortens training and N, and leaves out depths."""
DEPTHS = (2, 4, 6, 8, 12, 16)
NUM_SAMPLES, DATA, MUCH_DATA = 500_000, 50_000, 2_000_000
BATCH, LEARNING_RATE = 500, 3e-3
OURS_BATCH, OURS_RATE, OURS_UPDATES = 1000, 5e-3, 900
LONGER = 1.1
"""Training of our flow alone, which makes up for the Metropolis steps it does without."""
TEACHER_DRAWS, SELF_DRAWS = 50_000, 1_000_000
STOPS = (10, 25, 50, 100, 250, 500, 1000)
FLOW_STOPS = (1, 2, 5, 10, 25, 50, 100)
CURVE_DEPTH = 4
PUBLISHED_SCALE, TUNED_SCALE = 0.1, 0.5


class _Run:
    """Everything that the models of one run share."""

    def __init__(self, seed: int, out: Path, share: float, count: int, progress: bool) -> None:
        self.seed, self.out, self.share, self.count, self.progress = seed, out, share, count, progress
        self.target = cast(ImageDensity, catalogue["image"])
        self.program = self.target.model()
        self.cells = Cells(self.target)
        self.floor = self.cells.floor(count)
        self.data = self.draws(DATA, 1)
        self.much_data = self.draws(max(DATA, round(MUCH_DATA * share)), 2)
        self.scored: dict[str, Scored] = {}

    def draws(self, count: int, stream: int) -> Tensor:
        """Exact draws of the picture."""
        generator = torch.Generator().manual_seed(self.seed * 100_003 + stream)
        return self.target.sample(count, generator=generator).to(torch.get_default_dtype())

    def updates(self, number: int) -> int:
        return max(5, round(number * self.share))

    def checkpoint(self, name: str) -> Path:
        return self.out / f"checkpoint-{name}.safetensors"

    def learn(self, model: ImageModel, index: int, num_steps: int = 0) -> None:
        """Train a model on exact draws (or continue, or find it trained), and score it with Metropolis steps behind."""
        torch.manual_seed(self.seed * 1000 + index)
        guide = AutoStochasticFlow(self.program, model.blocks)
        is_ours = model.name.startswith("ours")
        result = fit(
            self.program,
            guide,
            objective=[Phase(self.updates(model.num_updates), reverse_kl=0.0, forward_kl=1.0)],
            data=self.much_data if is_ours else self.data,
            num_particles=OURS_BATCH if is_ours else BATCH,
            learning_rate=OURS_RATE if is_ours else LEARNING_RATE,
            schedule="cosine",
            seed=self.seed * 1000 + index,
            checkpoint=self.checkpoint(model.name),
            progress=self.progress,
        )
        self._score(model, guide, result, index, num_steps)

    def learn_from_energy(self, model: ImageModel, index: int, num_steps: int) -> None:
        """Train on draws of SMC, then on the flow's own reweighted draws."""
        torch.manual_seed(self.seed * 1000 + index)
        guide = AutoStochasticFlow(self.program, model.blocks)
        seed = self.seed * 1000 + index
        data = smc(
            self.program,
            num_samples=max(2000, round(TEACHER_DRAWS * self.share)),
            kernel="rwm",
            num_moves=5,
            seed=seed,
            progress=self.progress,
        )
        results, lessons = [], [data]
        for stage, updates in enumerate((model.num_updates // 3, model.num_updates - model.num_updates // 3)):
            if stage:
                lessons.append(
                    importance_sample(
                        self.program, guide, num_samples=max(5000, round(SELF_DRAWS * self.share)), seed=seed + 500
                    )
                )
            with one_thread():
                results.append(
                    fit(
                        self.program,
                        guide,
                        objective=[Phase(self.updates(updates), reverse_kl=0.0, forward_kl=1.0)],
                        data=lessons[-1],
                        num_particles=OURS_BATCH,
                        learning_rate=OURS_RATE,
                        schedule="cosine",
                        seed=seed + stage,
                        checkpoint=self.checkpoint(f"{model.name}-stage{stage + 1}"),
                        progress=self.progress,
                    )
                )
        self._score(model, guide, _together(results, lessons), index, num_steps)

    def _score(
        self, model: ImageModel, guide: AutoStochasticFlow, result: FitResult, index: int, num_steps: int
    ) -> None:
        if num_steps:
            guide = followed_by_steps(self.program, guide, num_steps)
        one = score(
            self.program,
            model,
            guide,
            result,
            self.target,
            self.cells,
            self.much_data,
            floor=self.floor[0],
            num_samples=self.count,
            seed=self.seed * 1000 + index + 100,
            keep=model.name == HEADLINE,
        )
        self.scored[model.name] = one
        if self.progress:
            row = one.metrics
            print(
                f"{model.name:>12}: KL {row['image_kl_raw'].value:.4f} raw, {row['image_kl'].value:.4f} reweighted, "
                f"ESS {row['ess'].value:.3f}, {one.cost:.0f} CPU s",
                flush=True,
            )


def run(
    *, seed: int, out: Path, minutes: float | None = None, num_samples: int | None = None, progress: bool = True
) -> dict[str, Any]:
    """Train and score all models; write report, page, pictures and the headline's draws into ``out``.

    A model once trained is kept in ``out`` and not trained again by the same command.

    :param minutes: shorten the run in proportion where this is below :data:`FULL_MINUTES`; short runs leave out depths.
    :param num_samples: draws of each model, 500,000 unless given.
    :return: the report.
    """
    out = Path(out)
    share = min(1.0, (minutes or FULL_MINUTES) / FULL_MINUTES)
    depths = _depths(share)
    count = num_samples or max(20_000, int(NUM_SAMPLES * min(1.0, 4 * share)))
    target = catalogue["image"]
    claim(out, {"experiment": "snf-images", "target_hash": target.target_hash, "seed": seed, "share": share})
    with one_thread():
        shared = _Run(seed, out, share, count, progress)
        longer = round(LONGER * OURS_UPDATES)
        shared.learn(ours(HEADLINE, OURS_UPDATES), 0, OURS_STEPS)
        shared.learn(ours("ours_flow", longer), 1)
        shared.learn_from_energy(ours("ours_energy", OURS_UPDATES), 2, OURS_STEPS)
        for index, family in enumerate(FAMILIES):
            for depth in depths:
                shared.learn(published(family, depth), 10 * (index + 1) + DEPTHS.index(depth))
        curves = _curves(shared)
        return _report(shared, curves, depths)


def _depths(share: float) -> tuple[int, ...]:
    """Few depths in little time."""
    if share >= 0.5:
        return DEPTHS
    return (2, 4, 8) if share >= 0.1 else (2, 4)


def _together(results: Sequence[FitResult], lessons: Sequence[Any]) -> FitResult:
    """All stages as one run, with the drawing of their lessons."""
    drawing = [EvaluationCount(**one.evaluations["sample"]) for one in lessons]
    return FitResult(
        history=results[-1].history,
        steps=sum(one.steps for one in results),
        evaluations=sum((one.evaluations for one in results), sum(drawing, EvaluationCount())),
        seconds=sum(one.seconds for one in results) + sum(total_seconds(one) for one in lessons),
        # On one thread, drawing keeps the processor busy.
        cpu_seconds=sum(one.cpu_seconds for one in results)
        + sum(one.info.get("cpu_seconds", total_seconds(one)) for one in lessons),
    )


def _curves(shared: _Run) -> dict[str, tuple[str, Curve]]:
    """KL against evaluations, of chains and of flows with other numbers of steps."""
    kl, seed, count = shared.cells.kl, shared.seed * 1000 + 900, shared.count
    stops = [stop for stop in STOPS if stop <= 1000 * shared.share] or [STOPS[0]]
    curves = {
        f"Metropolis, scale {scale}": (
            style,
            chain_curve(shared.target, kl, some, scale=scale, num_samples=count, seed=seed),
        )
        for style, scale, some in (
            ("chains", PUBLISHED_SCALE, stops),
            ("tuned chains", TUNED_SCALE, [stop for stop in stops if stop <= 250]),
        )
    }
    steps = [stop for stop in FLOW_STOPS if stop <= 100 * shared.share] or [FLOW_STOPS[0]]
    for label, name, style, change in (
        (f"NSF-SNF, {CURVE_DEPTH} layers", f"nsf_snf_{CURVE_DEPTH}", "nsf_snf", with_steps),
        ("ours", "ours", "ours", followed_by_steps),
        ("ours_energy", "ours_energy", "ours_energy", followed_by_steps),
    ):
        guides = (change(shared.program, shared.scored[name].guide, stop) for stop in steps)
        curves[label] = (style, flow_curve(shared.program, guides, kl, num_samples=count, seed=seed))
    return curves


def _report(shared: _Run, curves: dict[str, tuple[str, Curve]], depths: Sequence[int]) -> dict[str, Any]:
    scored, target, out, count = shared.scored, shared.target, shared.out, shared.count
    head = scored[HEADLINE]
    assert head.draws is not None
    skipped = [depth for depth in DEPTHS if depth not in depths]
    notes = [] if shared.share >= 1 else [f"a shortened run: {shared.share:.0%} of the stated training"]
    if skipped:
        notes.append(f"depths left out for want of time: {', '.join(map(str, skipped))} layers")
    report = build_report(
        experiment="snf-images",
        target=target.name,
        sampler=HEADLINE,
        seed=shared.seed,
        num_samples=count,
        metrics=head.metrics,
        models={name: one.metrics for name, one in scored.items()},
        energy_evaluations={
            "train": head.result.evaluations.to_dict(),
            "sample": dict(head.draws.evaluations["sample"]),
        },
        wall_seconds={"train": head.result.seconds, "sample": total_seconds(head.draws)},
        cpu_seconds={"train": head.result.cpu_seconds, "sample": head.draws.info["cpu_seconds"]},
        threads=1,
        target_hash=target.target_hash,
        notes=notes,
    )
    report["curves"] = {label: [list(point) for point in curve] for label, (_, curve) in curves.items()}
    head.draws.save(out / "samples.nc")
    _save_figures(shared, curves, depths)
    write_report(report, out / "report.json")
    comparison = equal_cost(
        scored,
        {
            **{
                f"{kind}_snf_{depth}": [f"{kind}_{other}" for other in depths]
                for kind in ("rnvp", "nsf")
                for depth in depths
            },
            HEADLINE: ["ours_flow"],
        },
    )
    write_results_page(
        out / "snf-images.md",
        report,
        title="Image density: stochastic normalizing flows",
        introduction=introduction(
            scored,
            HEADLINE,
            comparison,
            curves,
            floor=shared.floor,
            count=count,
            data=(len(shared.data), len(shared.much_data)),
            outside=float(shared.cells.masses[-1, 0]),
            skipped=skipped,
        ),
        columns=COLUMNS,
        tables={
            "Ours": [name for name in scored if name.startswith("ours")],
            **{f"`{family}` by number of layers": [f"{family}_{depth}" for depth in depths] for family in FAMILIES},
        },
        pictures=CAPTIONS,
    )
    return report


def _save_figures(shared: _Run, curves: dict[str, tuple[str, Curve]], depths: Sequence[int]) -> None:
    scored, target = shared.scored, shared.target
    exact = target.heights.numpy().reshape(SHADES, -1, SHADES, 7).mean((1, 3))
    exact = exact / exact.sum() * (SHADES / 7.0) ** 2
    top = float(exact.max())
    first = [
        ("exact density", exact),
        (f"{shared.count:,} exact draws", shade(shared.draws(shared.count, 3), target)),
        ("ours_flow", scored["ours_flow"].shades[0]),
        ("ours", scored[HEADLINE].shades[0]),
    ]
    second = [
        ("ours_energy", scored["ours_energy"].shades[0]),
        ("ours_flow, reweighted", scored["ours_flow"].shades[1]),
        ("ours, reweighted", scored[HEADLINE].shades[1]),
        ("ours_energy, reweighted", scored["ours_energy"].shades[1]),
    ]
    panels = [[(f"{family}, {n}", scored[f"{family}_{n}"].shades[0]) for n in depths] for family in FAMILIES]
    both = ("image_kl_raw", "image_kl")

    def values(name: str) -> tuple[float, float]:
        return scored[name].value(both[0]), scored[name].value(both[1])

    layers = plot_kl_against_layers(
        {family: {n: values(f"{family}_{n}") for n in depths} for family in FAMILIES},
        {name: (scored[name].model.num_layers, *values(name)) for name in scored if name.startswith("ours")},
        shared.floor[0],
    )
    for name, figure in {
        "density": gallery([first, second], top),
        "samples": gallery(panels, top),
        "kl_layers": layers,
        "kl_evaluations": plot_kl_against_evaluations(curves, shared.floor[0]),
    }.items():
        save_figure(figure, shared.out / f"{name}.png", dpi=110)
