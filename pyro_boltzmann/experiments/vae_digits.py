"""A variational autoencoder with stochastic-flow guides, against Gaussian and flow guides at equal SVI time."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions.transforms as T
import torch
from matplotlib.figure import Figure
from pyro.infer import SVI, Trace_ELBO
from pyro.optim import ClippedAdam
from torch import Tensor

from pyro_boltzmann.diagnostics import Metric, build_report, khat_limit, psis, write_report
from pyro_boltzmann.diagnostics.plots import save_figure
from pyro_boltzmann.diagnostics.plots.style import RAW, WEIGHTED, new_figure, tidy
from pyro_boltzmann.energies import AnnealedEnergy, Energy, NormalEnergy, count_evaluations
from pyro_boltzmann.experiments.adaptation import adapt_scales
from pyro_boltzmann.experiments.digits import CONTEXT_DIM, LATENT_DIM, Digits, Encoder, Vae, digits
from pyro_boltzmann.experiments.results_page import write_results_page
from pyro_boltzmann.experiments.run_folder import claim
from pyro_boltzmann.experiments.threads import one_thread
from pyro_boltzmann.guides import AmortizedStochasticFlow
from pyro_boltzmann.infer.checkpoint import load_checkpoint, save_checkpoint
from pyro_boltzmann.stochastic import LeapfrogTransform, MetropolisAdjusted

__all__ = ["GUIDES", "HEADLINE", "run"]

HEADLINE = "frozen_hmc"
"""The model whose figures the report puts first: fixed here, before any run."""
FULL_MINUTES = 8.0
SVI_SECONDS = 48.0
NUM_PATHS, CHUNK = 500, 50
BATCH, LEARNING_RATE = 128, 5e-3
LEAPFROG_RUNGS, HMC_RUNGS = 8, 16
HEAD_SHARE = 0.75
"""Of the training of ``leapfrog``: the encoder without the steps."""
ADAPTING_SHARE, ADAPTING_IMAGES, ADAPTING_PATHS = 0.06, 100, 4
REFERENCE = "gaussian"
"""The model whose decoder the second comparison freezes."""


def _flow(energy: Energy, dim: int) -> list[Any]:
    """Two inverse autoregressive layers conditioned on the image."""
    layers = [T.conditional_affine_autoregressive(dim, CONTEXT_DIM, hidden_dims=[64]) for _ in range(2)]
    return [layers[0], T.Permute(torch.arange(dim - 1, -1, -1)), layers[1]]


def _rungs(energy: Energy, count: int) -> list[AnnealedEnergy]:
    return [AnnealedEnergy(NormalEnergy(), energy, rung / count) for rung in range(1, count + 1)]


def _leapfrog(energy: Energy, dim: int) -> list[Any]:
    """Unadjusted, so that pathwise gradients are exact; every step size is learned."""
    return [LeapfrogTransform(rung, dim, 0.5, num_steps=1, learnable=True) for rung in _rungs(energy, LEAPFROG_RUNGS)]


def _hmc(energy: Energy, dim: int) -> list[Any]:
    """Metropolis-adjusted; step sizes adapt to the acceptance rate."""
    return [
        MetropolisAdjusted(LeapfrogTransform(rung, dim, 0.8, num_steps=1), rung, adapt=True)
        for rung in _rungs(energy, HMC_RUNGS)
    ]


GUIDES: dict[str, Callable[[Energy, int], list[Any]]] = {
    "gaussian": lambda energy, dim: [],
    "flow": _flow,
    "leapfrog": _leapfrog,
    "hmc": _hmc,
}
"""The encoder's Gaussian alone, with a flow, and with the two stochastic flows."""


@dataclass
class _Trained:
    model: Vae
    guide: AmortizedStochasticFlow
    steps: int


@dataclass
class _Scored:
    """Log weights ``(num_paths, images)`` of the test images."""

    log_weights: Tensor
    seconds: float
    evaluations: dict[str, int]

    @property
    def elbo(self) -> Tensor:
        return self.log_weights.mean(0)

    @property
    def log_likelihood(self) -> Tensor:
        return _log_mean_exp(self.log_weights)


def run(
    *, seed: int, out: Path, minutes: float | None = None, num_samples: int | None = None, progress: bool = True
) -> dict[str, Any]:
    """Train every guide for the same time, with a decoder of its own and with one frozen decoder; score test images.

    A model once trained is kept in ``out`` and not trained again by the same command.

    :param minutes: shorten training in proportion where this is below :data:`FULL_MINUTES`.
    :param num_samples: paths for each test image, 500 unless given.
    :return: the report.
    """
    out = Path(out)
    share = min(1.0, (minutes or FULL_MINUTES) / FULL_MINUTES)
    seconds = SVI_SECONDS * share
    count = num_samples or max(50, int(NUM_PATHS * min(1.0, 4 * share)))
    data = digits()
    identity = {"experiment": "vae-digits", "target_hash": data.target_hash, "seed": seed, "train_seconds": seconds}
    claim(out, identity)
    trained: dict[str, _Trained] = {}
    scores: dict[str, _Scored] = {}
    with one_thread():
        for index, name in enumerate([*GUIDES, *(f"frozen_{kind}" for kind in GUIDES)]):
            pyro.clear_param_store()
            torch.manual_seed(seed * 1000 + index)
            frozen = trained[REFERENCE].model if name.startswith("frozen_") else None
            trained[name] = _restore_or_train(name, data.train, seconds, frozen, out, seed)
            scores[name] = _score(trained[name].guide, data.test, count, seed)
            if progress:
                one = scores[name]
                print(f"{name:>16}: ELBO {one.elbo.mean():.3f}, log p {one.log_likelihood.mean():.3f}", flush=True)
    return _report(trained, scores, data, seed=seed, out=out, count=count, seconds=seconds, share=share)


def _restore_or_train(name: str, images: Tensor, seconds: float, frozen: Vae | None, out: Path, seed: int) -> _Trained:
    """Train, or read what an earlier run trained."""
    model = Vae() if frozen is None else frozen
    encoder, kind = Encoder(), name.removeprefix("frozen_")
    head = AmortizedStochasticFlow(model, encoder, GUIDES["gaussian"], latent_dim=LATENT_DIM)
    guide = AmortizedStochasticFlow(model, encoder, GUIDES[kind], latent_dim=LATENT_DIM)
    parts = {"guide": guide} if frozen is not None else {"guide": guide, "model": model}
    checkpoint = out / f"checkpoint-{name}.safetensors"
    if checkpoint.is_file():
        tensors, metadata = load_checkpoint(checkpoint)
        for part, module in parts.items():
            prefix = f"{part}."
            module.load_state_dict({k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)})
        steps = int(metadata["steps"])
    else:
        steps = _train(kind, model, head, guide, images, seconds, seed)
        state = {f"{part}.{key}": value for part, module in parts.items() for key, value in module.state_dict().items()}
        save_checkpoint(checkpoint, state, {"steps": steps})
    model.requires_grad_(False).eval()
    return _Trained(model, guide, steps)


def _train(
    kind: str,
    model: Vae,
    head: AmortizedStochasticFlow,
    guide: AmortizedStochasticFlow,
    images: Tensor,
    seconds: float,
    seed: int,
) -> int:
    """``seconds`` of wall time in all. Both stochastic flows start from what their encoder learns by itself."""
    if kind in ("gaussian", "flow"):
        return _svi(model, guide, images, seconds)
    if kind == "leapfrog":
        steps = _svi(model, head, images, HEAD_SHARE * seconds)
        return steps + _svi(model, guide, images, (1 - HEAD_SHARE) * seconds, rate=LEARNING_RATE / 5)
    start = time.perf_counter()
    steps = _svi(model, head, images, (1 - ADAPTING_SHARE) * seconds)
    left = seconds - (time.perf_counter() - start)
    adapt_scales(guide, seed, images[:ADAPTING_IMAGES], num_particles=ADAPTING_PATHS, max_seconds=left)
    return steps


def _svi(
    model: Vae, guide: AmortizedStochasticFlow, images: Tensor, seconds: float, rate: float = LEARNING_RATE
) -> int:
    """Pyro's own loop for a given time; the learning rate falls to a fiftieth of itself on the way."""
    optimizer = ClippedAdam({"lr": rate, "clip_norm": 10.0})
    svi = SVI(model, guide, optimizer, Trace_ELBO(max_plate_nesting=1))
    svi.step(images[:BATCH])  # outside the clock: the first step of a process loads what the others find loaded
    start, steps = time.perf_counter(), 0
    while (spent := time.perf_counter() - start) < seconds:
        svi.step(images[torch.randint(len(images), (BATCH,))])
        steps += 1
        for one in optimizer.optim_objs.values():
            for group in one.param_groups:
                group["lr"] = rate * 0.02 ** (spent / seconds)
    return steps


@torch.no_grad()
def _score(guide: AmortizedStochasticFlow, images: Tensor, count: int, seed: int) -> _Scored:
    generator = torch.Generator().manual_seed(seed)
    start = time.perf_counter()
    with count_evaluations() as evaluations:
        chunks = [
            guide.sample_paths(min(CHUNK, count - done), images, generator=generator).log_weight
            for done in range(0, count, CHUNK)
        ]
    return _Scored(torch.cat(chunks), time.perf_counter() - start, evaluations.to_dict())


def _log_mean_exp(log_weights: Tensor) -> Tensor:
    return log_weights.logsumexp(0) - math.log(len(log_weights))


def _mean(values: Tensor) -> Metric:
    """Mean over images and its standard error."""
    return Metric(float(values.mean()), float(values.std()) / math.sqrt(len(values)))


def _metrics(one: _Scored, steps: int, reference: Tensor) -> dict[str, Metric]:
    lw = one.log_weights
    khats = [psis(column)[1] for column in lw.T]
    return {
        "elbo": _mean(one.elbo),
        "log_likelihood": _mean(one.log_likelihood),
        "gap": _mean(reference - one.elbo),
        "ess": _mean(1 / (lw.softmax(0).square().sum(0) * len(lw))),
        "khat_above": _mean(torch.tensor([float(not khat <= khat_limit(len(lw))) for khat in khats])),
        "svi_steps": Metric(float(steps)),
        "path_microseconds": Metric(1e6 * one.seconds / lw.numel()),
    }


def _report(
    trained: dict[str, _Trained],
    scores: dict[str, _Scored],
    data: Digits,
    *,
    seed: int,
    out: Path,
    count: int,
    seconds: float,
    share: float,
) -> dict[str, Any]:
    frozen = [name for name in scores if name.startswith("frozen_")]
    pooled = _log_mean_exp(torch.cat([scores[name].log_weights for name in frozen]))
    models = {
        name: _metrics(one, trained[name].steps, pooled if name in frozen else one.log_likelihood)
        for name, one in scores.items()
    }
    report = build_report(
        experiment="vae-digits",
        target="digits",
        sampler=HEADLINE,
        seed=seed,
        num_samples=count,
        metrics=models[HEADLINE],
        models=models,
        energy_evaluations={"sample": scores[HEADLINE].evaluations},
        wall_seconds={"train": seconds, "sample": scores[HEADLINE].seconds},
        threads=1,
        target_hash=data.target_hash,
        notes=[] if share >= 1 else [f"a shortened run: {share:.0%} of the stated training"],
    )
    save_figure(_figure(trained[HEADLINE], models, data.test, seed), out / "digits.png")
    write_report(report, out / "report.json")
    own = [name for name in models if name not in frozen]
    write_results_page(
        out / "vae-digits.md",
        report,
        title="Digits: guides of a variational autoencoder at equal SVI time",
        introduction=_INTRODUCTION.format(
            seconds=seconds, count=count, train=len(data.train), test=len(data.test), limit=khat_limit(count)
        ),
        columns=list(models[HEADLINE]),
        tables={"Each guide with a decoder of its own": own, "One frozen decoder": frozen},
        pictures={
            "digits": "Test images, their reconstructions by the headline guide and draws from the prior; the gap of "
            "each guide to the log-likelihood under the frozen decoder, with standard errors"
        },
    )
    return report


@torch.no_grad()
def _figure(headline: _Trained, models: dict[str, dict[str, Metric]], images: Tensor, seed: int) -> Figure:
    """Digits on the left, gaps on the right."""
    generator = torch.Generator().manual_seed(seed)
    shown = images[:10]
    paths = headline.guide.sample_paths(CHUNK, shown, generator=generator)
    weights = paths.log_weight.softmax(0).to(shown)
    decoded = (weights.unsqueeze(-1) * headline.model.image(paths.z)).sum(0)
    prior = headline.model.image(torch.randn(len(shown), LATENT_DIM, generator=generator).to(shown))
    rows = torch.stack([shown, decoded, prior]).reshape(3, len(shown), 8, 8)
    mosaic = torch.nn.functional.pad(rows, (1, 1, 1, 1), value=0.5).permute(0, 2, 1, 3).reshape(30, -1)
    figure, (left, right) = new_figure(10.0, 3.2, columns=2)
    left.imshow(mosaic.cpu().numpy(), cmap="gray_r", vmin=0, vmax=1)
    left.set_xticks([])
    left.set_yticks([5, 15, 25], ["data", "posterior", "prior"])
    tidy(left, title="Images")
    left.grid(False)
    names = [f"frozen_{kind}" for kind in GUIDES]
    gaps = [models[name]["gap"] for name in names]
    right.bar(
        list(GUIDES),
        [gap.value or 0.0 for gap in gaps],
        yerr=[gap.std_error or 0.0 for gap in gaps],
        color=[RAW, RAW, WEIGHTED, WEIGHTED],
        width=0.6,
    )
    tidy(right, title="Inference gap, frozen decoder", y="nats per image")
    return figure


_INTRODUCTION = """\
The 8 x 8 digits of scikit-learn, each pixel set where it is above half its range (one fixed binarisation), {train}
images to train on and {test} to test on; a decoder 8-64-64-64, latents $N(0, I)$. This is the autoencoder of Wu,
Koehler and Noe (arXiv 2002.06707) in small. Every model gets {seconds:.0f} s of Pyro's `SVI` with `Trace_ELBO`, batches
of 128 and one path an image. `gaussian` is the encoder's Gaussian; `flow` adds two inverse autoregressive layers
conditioned on the image; `leapfrog` adds 8 unadjusted leapfrog steps with learned sizes, annealed from the encoder's
Gaussian to the posterior (three quarters of the time train the encoder without them); `hmc` adds 16
Metropolis-adjusted ones, which take no part in the training and whose sizes are adapted in the last 6 % of the time.
In the second table the decoder is that of `gaussian`, fixed, and encoders are trained afresh: differences there are
differences of inference alone.

All figures are of the test images, with {count} paths each; +- is the standard error over images. `elbo` is the
variational bound in nats per image, `log_likelihood` the importance-weighted bound; `gap` is what the first is short of
the second (in the second table, of that of all guides' paths pooled, so that all are measured by one ruler; paired
differences have much smaller errors than the bounds). `ess` is the effective share of the paths of an image,
`khat_above` the share of images whose k-hat is above its limit ({limit:.2f}), `path_microseconds` the price of one
path."""
