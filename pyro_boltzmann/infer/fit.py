"""Train a guide: schedules of objectives, budgets, progress, checkpoints, exact resume."""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from pyro.infer.elbo import ELBO
from torch import Tensor, nn
from tqdm.auto import tqdm

from pyro_boltzmann.diagnostics.weighted_samples import WeightedSamples
from pyro_boltzmann.diagnostics.weights import kish_ess
from pyro_boltzmann.energies.evaluation import EvaluationCount, count_evaluations
from pyro_boltzmann.exceptions import CheckpointError, EnergyError
from pyro_boltzmann.guides import AutoStochasticFlow
from pyro_boltzmann.infer.checkpoint import load_checkpoint, pack_optimizer, save_checkpoint, unpack_optimizer
from pyro_boltzmann.infer.objectives import ForwardKL, ReverseKL
from pyro_boltzmann.stochastic.metropolis import MetropolisAdjusted

__all__ = ["FitResult", "Phase", "fit"]

UNBOUNDED = 1e12
"""An ELBO above this is taken for an energy without a lower bound."""
PATIENCE = 100
"""Updates in a row that may be skipped for a non-finite gradient before training gives up."""


@dataclass(frozen=True)
class Phase:
    r"""A stretch of training with a fixed mixture of objectives,

    .. math:: \mathcal L = \frac{w_{ML} J_{ML} + w_{KL} J_{KL}}{w_{ML} + w_{KL}} .

    :param num_steps: updates.
    :param reverse_kl: weight of the energy-based objective.
    :param forward_kl: weight of maximum likelihood on ``data``.

    The published recipe is ``[Phase(300, reverse_kl=0, forward_kl=1), Phase(300, reverse_kl=0.5, forward_kl=0.5)]``.
    """

    num_steps: int
    reverse_kl: float = 1.0
    forward_kl: float = 0.0

    def __post_init__(self) -> None:
        if self.num_steps < 1 or min(self.reverse_kl, self.forward_kl) < 0 or self.reverse_kl + self.forward_kl <= 0:
            raise ValueError(f"a phase needs num_steps >= 1 and non-negative weights that are not both zero, got {self}")


@dataclass
class FitResult:
    """What a training run did.

    :ivar history: lists of equal length: ``step``, ``loss``, ``elbo``, ``ess`` (of the batch, a fraction), ``grad_norm``,
        ``evaluations`` (values + gradients so far), ``seconds``. NaN where a step has no such number.
    :ivar steps: updates made.
    :ivar evaluations: energy evaluations spent, all of them.
    :ivar seconds: wall time, summed over resumed runs; ``cpu_seconds`` likewise.
    :ivar stopped: why: ``"steps"``, ``"time"`` or ``"evaluations"``.
    :ivar skipped: updates skipped because a gradient was not finite.
    """

    history: dict[str, list[float]] = field(default_factory=dict)
    steps: int = 0
    evaluations: EvaluationCount = field(default_factory=EvaluationCount)
    seconds: float = 0.0
    cpu_seconds: float = 0.0
    stopped: str = "steps"
    skipped: int = 0

    def record(self, **row: float) -> None:
        for name, value in row.items():
            self.history.setdefault(name, []).append(float(value))


def fit(
    model: Callable[..., Any],
    guide: nn.Module,
    *args: Any,
    objective: str | Sequence[Phase] | ELBO = "reverse_kl",
    num_steps: int | None = None,
    num_particles: int = 256,
    data: Tensor | WeightedSamples | None = None,
    learning_rate: float = 1e-3,
    optimizer: Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer] | None = None,
    schedule: str = "constant",
    clip_norm: float | None = 10.0,
    adapt_rate: float = 0.05,
    max_seconds: float | None = None,
    max_evaluations: int | None = None,
    checkpoint: str | Path | None = None,
    checkpoint_every: float = 30.0,
    resume: bool = True,
    seed: int | None = None,
    progress: bool = True,
    log_every: int = 10,
    callback: Callable[[FitResult], None] | None = None,
    **kwargs: Any,
) -> FitResult:
    r"""Train the parameters of a guide.

    :param model: a Pyro program; its own parameters are not trained (use Pyro's ``SVI`` for that).
    :param guide: an :class:`~pyro_boltzmann.AutoStochasticFlow`, or any module guide for ``"reverse_kl"``.
    :param args: the model's arguments, like ``kwargs``.
    :param objective: ``"reverse_kl"`` (Pyro's ``Trace_ELBO``), ``"forward_kl"`` (maximum likelihood on ``data`` through the
        inverse path), a list of :class:`Phase`, or any Pyro ELBO.
    :param num_steps: updates; 1000 unless given by phases.
    :param num_particles: paths (and data) per update.
    :param data: unconstrained latents ``(n, latent_dim)``, or weighted draws with ``info["z"]``.
    :param learning_rate: of Adam, unless ``optimizer`` builds another optimiser from the parameters.
    :param schedule: ``"constant"`` or ``"cosine"`` (decay to 1 % over the steps asked for).
    :param clip_norm: clip the norm of the gradient; ``None`` for no clipping.
    :param adapt_rate: rate of the acceptance-rate adaptation of blocks that ask for it.
    :param max_seconds: stop after this much wall time, resumed runs counted in.
    :param max_evaluations: stop after this many energy evaluations, values plus gradients.
    :param checkpoint: file to keep the run in. If it exists and ``resume`` is set, the run continues from it: on the CPU the
        final parameters are those of an unbroken run, bit for bit.
    :param checkpoint_every: seconds between checkpoints; one is also written at the end and on interruption.
    :param seed: seed the run and leave the global generator as it was; otherwise the global generator is used.
    :param progress: show ELBO, ESS and evaluations on a progress bar.
    :param log_every: updates between rows of the history.
    :param callback: called with the result so far after each row.
    :raises CheckpointError: if the checkpoint is truncated, foreign, or of another run.
    :raises EnergyError: if the energy looks unbounded below, or gradients are not finite time after time.

    >>> import pyro_boltzmann as pb, pyro.distributions.transforms as T
    >>> model = pb.BoltzmannModel(lambda x: 0.5 * (x - 1).square().sum(-1), 2)
    >>> guide = pb.AutoStochasticFlow(model, lambda energy, dim: [T.affine_autoregressive(dim)])
    >>> result = pb.fit(model, guide, num_steps=20, seed=0, progress=False)
    >>> result.steps, result.evaluations
    (20, EvaluationCount(values=5120, gradients=5120))
    """
    phases, elbo = _plan(objective, num_steps)
    if schedule not in ("constant", "cosine"):
        raise ValueError(f'schedule must be "constant" or "cosine", got {schedule!r}')
    if isinstance(guide, AutoStochasticFlow):
        guide.initialize(*args, **kwargs)
    elif not list(guide.parameters()):
        guide(*args, **kwargs)  # Pyro's guides create their parameters on their first call
    run = _Run(model, guide, args, kwargs, phases, elbo, num_particles, _latents(data))
    make = optimizer or (lambda parameters: torch.optim.Adam(parameters, lr=learning_rate))
    run.optimizer = make([p for p in guide.parameters() if p.requires_grad])
    run.base_rates = [group["lr"] for group in run.optimizer.param_groups]
    run.cosine, run.clip_norm, run.adapt_rate = schedule == "cosine", clip_norm, adapt_rate
    devices = sorted({p.device.index or 0 for p in guide.parameters() if p.is_cuda})
    with torch.random.fork_rng(devices=devices, enabled=seed is not None):
        if seed is not None:
            torch.manual_seed(seed)
        if checkpoint is not None and resume and Path(checkpoint).exists():
            run.restore(Path(checkpoint))
        return _train(
            run, max_seconds, max_evaluations, None if checkpoint is None else Path(checkpoint), checkpoint_every,
            progress, log_every, callback,
        )  # fmt: skip


def _train(
    run: _Run,
    max_seconds: float | None,
    max_evaluations: int | None,
    checkpoint: Path | None,
    checkpoint_every: float,
    progress: bool,
    log_every: int,
    callback: Callable[[FitResult], None] | None,
) -> FitResult:
    result = run.result
    total = sum(phase.num_steps for phase in run.phases)
    saved_at = time.perf_counter()
    with tqdm(total=total, initial=result.steps, disable=not progress, desc="fit") as bar:
        try:
            while result.steps < total:
                if max_seconds is not None and result.seconds >= max_seconds:
                    result.stopped = "time"
                    break
                if max_evaluations is not None and _spent(result) >= max_evaluations:
                    result.stopped = "evaluations"
                    break
                row = run.update()
                bar.update()
                if result.steps % log_every == 0 or result.steps == total:
                    result.record(step=result.steps, evaluations=_spent(result), seconds=result.seconds, **row)
                    bar.set_postfix(elbo=f"{row['elbo']:.3f}", ess=f"{row['ess']:.2f}", evals=f"{_spent(result):.1e}")
                    if callback is not None:
                        callback(result)
                if checkpoint is not None and time.perf_counter() - saved_at > checkpoint_every:
                    run.save(checkpoint)
                    saved_at = time.perf_counter()
        finally:
            # Also on KeyboardInterrupt or an error between two updates: nothing that was learned is lost.
            if checkpoint is not None:
                run.save(checkpoint)
    run.guide.zero_grad(set_to_none=True)
    if isinstance(run.guide, AutoStochasticFlow):
        run.guide.get_transform().clear_cache()
    return result


class _Run:
    """The state of a training run, and its one update."""

    optimizer: torch.optim.Optimizer
    base_rates: list[float]
    cosine: bool
    clip_norm: float | None
    adapt_rate: float

    def __init__(
        self,
        model: Callable[..., Any],
        guide: nn.Module,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        phases: Sequence[Phase],
        elbo: ELBO | None,
        num_particles: int,
        data: tuple[Tensor, Tensor | None] | None,
    ) -> None:
        self.model, self.guide, self.args, self.kwargs = model, guide, args, kwargs
        self.phases, self.elbo, self.num_particles = phases, elbo, num_particles
        self.reverse = ReverseKL(num_particles)
        if any(phase.forward_kl for phase in phases) and data is None:
            raise ValueError("forward KL needs data: pass data= with unconstrained latents (n, latent_dim) or weighted draws")
        self.forward = None if data is None else ForwardKL(data[0], data[1], num_particles)
        self.result = FitResult()
        self.bad_in_a_row = 0

    def update(self) -> dict[str, float]:
        """One step of the optimiser; returns the row for the history."""
        start, cpu_start = time.perf_counter(), time.process_time()
        result = self.result
        phase = self._phase()
        if self.cosine:
            total = sum(p.num_steps for p in self.phases)
            factor = 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * result.steps / total))
            for group, rate in zip(self.optimizer.param_groups, self.base_rates, strict=True):
                group["lr"] = rate * factor
        self.optimizer.zero_grad(set_to_none=True)
        with count_evaluations() as count:
            loss = self._loss(phase)
            if loss.requires_grad:
                loss.backward()
        result.evaluations = result.evaluations + count
        elbo, ess = self._batch_statistics(phase, float(loss.detach()))
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        norm = nn.utils.clip_grad_norm_(parameters, math.inf if self.clip_norm is None else self.clip_norm)
        self._step(bool(norm.isfinite()) and bool(loss.detach().isfinite()), elbo)
        result.steps += 1
        result.seconds += time.perf_counter() - start
        result.cpu_seconds += time.process_time() - cpu_start
        return {"loss": float(loss.detach()), "elbo": elbo, "ess": ess, "grad_norm": float(norm)}

    def _loss(self, phase: Phase) -> Tensor:
        if self.elbo is not None:
            loss: Tensor = self.elbo.differentiable_loss(self.model, self.guide, *self.args, **self.kwargs)
            return loss
        weighted = []
        for weight, objective in ((phase.reverse_kl, self.reverse), (phase.forward_kl, self.forward)):
            if weight and objective is not None:
                weighted.append(weight * objective.differentiable_loss(self.model, self.guide, *self.args, **self.kwargs))
        return torch.stack([w.double() for w in weighted]).sum() / (phase.reverse_kl + phase.forward_kl)

    def _step(self, finite: bool, elbo: float) -> None:
        if elbo > UNBOUNDED:
            raise EnergyError(
                f"the ELBO reached {elbo:.3g}: the energy looks unbounded below, so exp(-energy) has no normaliser. Check "
                "the sign of the energy and that it grows at infinity"
            )
        if finite:
            self.bad_in_a_row = 0
            self.optimizer.step()
            for block in self._adaptive_blocks():
                block[0].adapt_scale(block[1], self.adapt_rate)
            return
        self.result.skipped += 1
        self.bad_in_a_row += 1
        if self.bad_in_a_row >= PATIENCE:
            raise EnergyError(
                f"{PATIENCE} updates in a row had a loss or gradient that is not finite: the energy is NaN, -inf or +inf "
                "where the guide samples, or its gradient is. Check it at draws of the guide; lower the learning rate"
            )

    def _adaptive_blocks(self) -> list[tuple[MetropolisAdjusted, Any]]:
        if not isinstance(self.guide, AutoStochasticFlow) or self.reverse.last_paths is None:
            return []
        blocks = [block for block, _ in self.guide.get_transform()._directed()]
        pairs = zip(blocks, self.reverse.last_paths.infos, strict=True)
        return [(b, i) for b, i in pairs if isinstance(b, MetropolisAdjusted) and b.adapt and i is not None]

    def _batch_statistics(self, phase: Phase, loss: float) -> tuple[float, float]:
        paths = self.reverse.last_paths if self.elbo is None and phase.reverse_kl else None
        if paths is None:
            return (-loss if self.elbo is not None or not phase.forward_kl else math.nan), math.nan
        finite = paths.log_weight.isfinite()
        if not bool(finite.any()):
            return math.nan, math.nan
        return float(paths.log_weight[finite].mean()), kish_ess(paths.log_weight.nan_to_num(nan=-math.inf))

    def _phase(self) -> Phase:
        step = self.result.steps
        for phase in self.phases:
            if step < phase.num_steps:
                return phase
            step -= phase.num_steps
        return self.phases[-1]

    # Checkpoints -------------------------------------------------------------------------------------------------

    def fingerprint(self) -> str:
        """What must agree for a checkpoint to continue this run (not the number of steps, which may be raised)."""
        described = {
            "state": {name: [list(t.shape), str(t.dtype)] for name, t in self.guide.state_dict().items()},
            "objective": [[p.reverse_kl, p.forward_kl] for p in self.phases],
            "elbo": type(self.elbo).__name__,
            "optimizer": type(self.optimizer).__name__,
            "rates": self.base_rates,
            "num_particles": self.num_particles,
        }
        return hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()[:16]

    def save(self, path: Path) -> None:
        tensors = {f"guide.{name}": tensor for name, tensor in self.guide.state_dict().items()}
        optimizer_tensors, described = pack_optimizer(self.optimizer)
        tensors |= optimizer_tensors
        tensors["rng.cpu"] = torch.get_rng_state()
        if torch.cuda.is_available() and torch.cuda.is_initialized():
            tensors["rng.cuda"] = torch.cuda.get_rng_state()
        result = {**asdict(self.result), "evaluations": self.result.evaluations.to_dict()}
        save_checkpoint(
            path,
            tensors,
            {"fingerprint": self.fingerprint(), "optimizer": described, "result": result, "bad": self.bad_in_a_row},
        )

    def restore(self, path: Path) -> None:
        tensors, metadata = load_checkpoint(path)
        if metadata.get("fingerprint") != self.fingerprint():
            raise CheckpointError(
                f"{path} belongs to another run (other guide, objective, optimiser or number of particles); "
                "name another checkpoint, or pass resume=False to overwrite it"
            )
        guide_state = {name.removeprefix("guide."): t for name, t in tensors.items() if name.startswith("guide.")}
        self.guide.load_state_dict(guide_state)
        unpack_optimizer(self.optimizer, tensors, metadata["optimizer"])
        torch.set_rng_state(tensors["rng.cpu"])
        if "rng.cuda" in tensors and torch.cuda.is_available():
            torch.cuda.set_rng_state(tensors["rng.cuda"])
        stored = dict(metadata["result"])
        stored["evaluations"] = EvaluationCount(**stored["evaluations"])
        self.result = FitResult(**stored)
        self.result.stopped = "steps"
        self.bad_in_a_row = metadata["bad"]


def _plan(objective: str | Sequence[Phase] | ELBO, num_steps: int | None) -> tuple[list[Phase], ELBO | None]:
    steps = 1000 if num_steps is None else num_steps
    if steps < 1:
        raise ValueError(f"num_steps must be positive, got {num_steps}")
    if isinstance(objective, ELBO):
        return [Phase(steps)], objective
    if isinstance(objective, str):
        weights = {"reverse_kl": (1.0, 0.0), "forward_kl": (0.0, 1.0)}.get(objective)
        if weights is None:
            raise ValueError(f'objective must be "reverse_kl", "forward_kl", phases or a Pyro ELBO, got {objective!r}')
        return [Phase(steps, *weights)], None
    phases = list(objective)
    if not phases or not all(isinstance(phase, Phase) for phase in phases):
        raise ValueError(f"a schedule must be a non-empty list of Phase, got {objective!r}")
    if num_steps is not None and num_steps != sum(phase.num_steps for phase in phases):
        raise ValueError("give the number of steps in the phases, not in num_steps as well")
    return phases, None


def _latents(data: Tensor | WeightedSamples | None) -> tuple[Tensor, Tensor | None] | None:
    if data is None:
        return None
    if isinstance(data, WeightedSamples):
        if "z" not in data.info:
            raise ValueError("weighted draws to train on need their unconstrained latents in info['z']")
        return data.info["z"], data.log_weights
    return data, None


def _spent(result: FitResult) -> int:
    return result.evaluations.values + result.evaluations.gradients
