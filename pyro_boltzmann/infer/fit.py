"""Train a guide: schedules of objectives, budgets, progress, checkpoints, exact resume."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from pyro.infer.elbo import ELBO
from torch import Tensor, nn
from tqdm.auto import tqdm

from pyro_boltzmann.diagnostics.weighted_samples import WeightedSamples
from pyro_boltzmann.energies.model_energy import ModelEnergy
from pyro_boltzmann.exceptions import CheckpointError, OutputError
from pyro_boltzmann.guides import AutoStochasticFlow
from pyro_boltzmann.infer.checkpoint import load_checkpoint, save_checkpoint
from pyro_boltzmann.infer.interrupt import deferred_interrupt
from pyro_boltzmann.infer.objectives import ForwardKL, PathObjective, named_objective
from pyro_boltzmann.infer.phase import Phase, plan_phases
from pyro_boltzmann.infer.preparation import prepare_guide
from pyro_boltzmann.infer.randomness import kept_generators, seeded
from pyro_boltzmann.infer.recipe import Recipe
from pyro_boltzmann.infer.result import FitResult
from pyro_boltzmann.infer.run import TrainingRun
from pyro_boltzmann.stochastic.metropolis import MetropolisAdjusted

__all__ = ["FitResult", "Phase", "fit"]


def fit(
    model: Callable[..., Any],
    guide: nn.Module,
    *args: Any,
    objective: str | Sequence[Phase] | ELBO = "reverse_kl",
    num_steps: int | None = None,
    num_particles: int = 256,
    data: Tensor | WeightedSamples | Mapping[str, Tensor] | None = None,
    weight_power: float = 1.0,
    augment: Callable[[Tensor], Tensor] | None = None,
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

    Ctrl-C lets the update in progress finish, writes the checkpoint and raises ``KeyboardInterrupt``; a second Ctrl-C
    raises at once. Whatever ends a run early, the checkpoint holds the state after a completed update, and the same
    call continues from it: on the CPU the final parameters are those of an unbroken run, bit for bit (data, model and
    number of threads being the same). Raising ``num_steps`` continues a finished run; with the cosine schedule the
    learning rate then follows the schedule of the new length from there on, so the result is not that of a run of this
    length from the start.

    :param model: a Pyro program; its own parameters are not trained (use Pyro's ``SVI`` for that).
    :param guide: an :class:`~pyro_boltzmann.AutoStochasticFlow`, or any module guide for ``"reverse_kl"``.
    :param args: the model's arguments, like ``kwargs``.
    :param objective: ``"reverse_kl"`` (Pyro's ``Trace_ELBO``), ``"forward_kl"`` (maximum likelihood on ``data`` through
        the inverse path), ``"log_variance"`` or ``"trajectory_balance"`` (equal weights on the guide's own paths, or
        half of them on backward paths from ``data``), ``"alpha_2"`` (the divergence that covers modes, on annealed
        draws of a replay buffer), ``"target_score"``, ``"idem"``, ``"endem"`` or ``"bendem"`` (for an
        :class:`~pyro_boltzmann.AutoDiffusion`: scores from draws of SMC, or scores and energies by denoising energy
        matching), ``"flow_matching"`` (for a continuous flow: its velocities on ``data``, without a solver), a list of
        :class:`Phase`, or any Pyro ELBO, among them :class:`LogVariance`, :class:`TrajectoryBalance`, :class:`Alpha2`
        and :class:`FlowMatching` with settings of their own (an ELBO object brings its own number of particles).
    :param num_steps: updates; 1000 unless given by phases.
    :param num_particles: paths (and data) per update.
    :param data: unconstrained latents ``(n, latent_dim)``, weighted draws, or a dictionary of the model's sites.
    :param weight_power: raise the weights of weighted draws to this power: 1/2 shows small modes more often than the
        target does.
    :param augment: random symmetries of the target, applied to each minibatch of ``data`` by maximum likelihood: see
        :class:`ForwardKL`.
    :param learning_rate: of Adam, unless ``optimizer`` builds another optimiser from the parameters.
    :param schedule: ``"constant"`` or ``"cosine"`` (decay to 1 % over the steps asked for).
    :param clip_norm: clip the norm of the gradient; ``None`` for no clipping.
    :param adapt_rate: rate of the acceptance-rate adaptation of blocks that ask for it; 0 for none. Where the
        objective runs no such paths (those for an :class:`~pyro_boltzmann.AutoDiffusion`), 20 batches of
        ``num_particles`` paths adapt them when the training is over; their evaluations are counted.
    :param max_seconds: stop after this much wall time, resumed runs counted in; what an objective does before its first
        update too.
    :param max_evaluations: stop after this many energy evaluations, values plus gradients, resumed runs counted in.
    :param checkpoint: file to keep the run in. If it exists and ``resume`` is set, the run continues from it.
    :param checkpoint_every: seconds between checkpoints; one is also written at the start, at the end and on
        interruption.
    :param seed: seed the run and leave the global generator as it was; otherwise the global generator is used.
    :param progress: show ELBO, ESS and evaluations on a progress bar.
    :param log_every: updates between rows of the history.
    :param callback: called with the result so far after each row; the random numbers it draws do not affect the run.
    :raises CheckpointError: if the checkpoint is truncated, foreign, or of another run.
    :raises OutputError: before the first update, if the checkpoint cannot be written.
    :raises EnergyError: if the energy looks unbounded below, is NaN at all draws, or gradients are not finite time
        after time.
    :raises ValueError: for settings that contradict each other, or a guide with nothing to train.

    >>> import pyro_boltzmann as pb, pyro.distributions.transforms as T
    >>> model = pb.BoltzmannModel(lambda x: 0.5 * (x - 1).square().sum(-1), 2)
    >>> guide = pb.AutoStochasticFlow(model, lambda energy, dim: [T.affine_autoregressive(dim)])
    >>> result = pb.fit(model, guide, num_steps=20, seed=0, progress=False)
    >>> result.steps, result.evaluations
    (20, EvaluationCount(values=5120, gradients=5120))
    """
    phases, elbo = plan_phases(objective, num_steps)
    if not isinstance(guide, nn.Module):
        raise TypeError(
            f"fit trains guides that are modules, got {type(guide).__name__}; use Pyro's SVI for other guides"
        )
    if log_every < 1:
        raise ValueError(f"log_every must be positive, got {log_every}")
    for name, limit in (("max_seconds", max_seconds), ("max_evaluations", max_evaluations)):
        if limit is not None and not limit >= 0:
            raise ValueError(f"{name} must not be negative, got {limit}; leave it out to train without that limit")
    if data is None and any(phase.forward_kl for phase in phases):
        raise ValueError(
            "forward KL needs data: pass data= with unconstrained latents (n, latent_dim) or weighted draws"
        )
    if weight_power != 1 and not isinstance(data, WeightedSamples):
        raise ValueError(f"weight_power={weight_power} needs weighted draws: pass data= as WeightedSamples")
    if augment is not None and not any(phase.forward_kl for phase in phases):
        raise ValueError(
            "augment moves the data of maximum likelihood, which this objective has none of; leave it out, or move the "
            "data beforehand, such as data=augment(data.repeat(50, 1)) for flow matching"
        )
    recipe = Recipe(phases, elbo, num_particles, schedule, clip_norm, adapt_rate, seed, weight_power)
    prepare_guide(guide, args, kwargs, seed)
    with seeded(seed):
        z, log_weights = (None, None) if data is None else _latents(data, model, args, kwargs)
        if isinstance(objective, str):
            recipe = replace(recipe, elbo=named_objective(objective, num_particles, z, log_weights, weight_power))
        built = _build_optimizer(guide, recipe.elbo, optimizer, learning_rate)
        forward = None
        if z is not None:
            forward = ForwardKL(z, log_weights, num_particles, weight_power=weight_power, augment=augment)
        run = TrainingRun(model, guide, args, kwargs, recipe, built, forward)
        file = None if checkpoint is None else Path(checkpoint)
        if file is not None and resume and file.exists():
            _resume(run, file)
        limits = _Limits(max_seconds, max_evaluations)
        _train(run, limits, file, checkpoint_every, progress, log_every, callback)
    if run.result.nonfinite:
        warnings.warn(
            f"the energy was NaN or -inf at {run.result.nonfinite} end states, which were left out of the training; "
            "importance_sample will refuse such draws. An energy must be finite or +inf",
            UserWarning,
            stacklevel=2,
        )
    return run.result


class _Limits:
    """Budgets that end a run before its last step."""

    def __init__(self, max_seconds: float | None, max_evaluations: int | None) -> None:
        self.max_seconds = math.inf if max_seconds is None else max_seconds
        self.max_evaluations = math.inf if max_evaluations is None else max_evaluations

    def reached(self, result: FitResult) -> str | None:
        if result.seconds >= self.max_seconds:
            return "time"
        return "evaluations" if result.spent >= self.max_evaluations else None


def _train(
    run: TrainingRun,
    limits: _Limits,
    file: Path | None,
    save_every: float,
    progress: bool,
    log_every: int,
    callback: Callable[[FitResult], None] | None,
) -> None:
    result, total = run.result, run.recipe.num_steps
    if run.own is not None:
        left = limits.max_seconds - result.seconds
        run.own.deadline = None if math.isinf(left) else time.perf_counter() + left
    # Also before the first update: a place that cannot be written must be known before time is spent.
    _save(run, file)
    saved_at = time.perf_counter()
    with tqdm(total=total, initial=result.steps, disable=not progress, desc="fit") as bar:
        try:
            while result.steps < total:
                stop = limits.reached(result)
                if stop is not None:
                    result.stopped = stop
                    break
                with deferred_interrupt():
                    row = run.update()
                    run.tick()
                    is_logged = result.steps % log_every == 0 or result.steps == total
                    if is_logged:
                        run.record(row)
                    if file is not None:
                        run.mark()
                if is_logged:
                    _show(bar, result)
                bar.update()
                if is_logged and callback is not None:
                    with kept_generators():
                        callback(result)
                if file is not None and time.perf_counter() - saved_at > save_every:
                    _save(run, file)
                    saved_at = time.perf_counter()
        except BaseException as error:
            _save_after(error, run, file)
            raise
        finally:
            _forget_graphs(run)
            if run.own is not None:
                run.own.deadline = None
    run.tick()
    _save(run, file)
    # After the last checkpoint, so that a run that is continued goes on as an unbroken one.
    run.adapt_moves(lambda: limits.reached(result) is not None)


def _show(bar: tqdm[Any], result: FitResult) -> None:
    elbo, ess = result.history["elbo"][-1], result.history["ess"][-1]
    # The bar draws itself when it is due; a refresh at each row would cost more than many an update.
    state = {"elbo": f"{elbo:.3f}", "ess": f"{ess:.2f}"}
    if math.isnan(elbo):  # the objective draws no paths
        state = {"loss": f"{result.history['loss'][-1]:.4f}"}
    bar.set_postfix({**state, "evals": f"{result.spent:.1e}"}, refresh=False)


def _save(run: TrainingRun, file: Path | None) -> None:
    if file is not None:
        with deferred_interrupt():
            save_checkpoint(file, *run.state())


def _save_after(error: BaseException, run: TrainingRun, file: Path | None) -> None:
    """Save the last completed update; a problem with that must not hide why the run ended."""
    if file is None or isinstance(error, OutputError):
        return
    if not run.is_whole:
        error.add_note(f"stopped inside an update; {file} holds the run as it was when last saved")
        return
    try:
        _save(run, file)
    except OutputError as problem:
        error.add_note(f"the run could not be saved: {problem}")
    else:
        error.add_note(f"{file} holds the run after update {run.result.steps}; the same call continues it")


def _resume(run: TrainingRun, file: Path) -> None:
    try:
        run.restore(*load_checkpoint(file), file)
    except (KeyError, IndexError, TypeError, AttributeError) as error:
        raise CheckpointError(
            f"{file} is not a complete checkpoint of a training run ({type(error).__name__}: {error}); name another, "
            "or pass resume=False to start anew and overwrite it"
        ) from error


def _build_optimizer(
    guide: nn.Module,
    elbo: ELBO | None,
    optimizer: Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer] | None,
    learning_rate: float,
) -> torch.optim.Optimizer:
    trained = _trainable(guide)
    extra = elbo.parameters() if isinstance(elbo, PathObjective) else []
    if optimizer is not None:
        return optimizer([*trained, *extra])
    if not extra:
        return torch.optim.Adam(trained, lr=learning_rate)
    groups: list[dict[str, Any]] = [{"params": trained}, {"params": extra, "lr": 10 * learning_rate}]
    return torch.optim.Adam(groups, lr=learning_rate)


def _trainable(guide: nn.Module) -> list[nn.Parameter]:
    trained = [p for p in guide.parameters() if p.requires_grad]
    if trained:
        return trained
    path = guide.path if isinstance(guide, AutoStochasticFlow) else None
    if path is None or not any(
        isinstance(block, MetropolisAdjusted) and block.adapt for block in path.stochastic_blocks
    ):
        raise ValueError(
            "the guide has no parameter to train: give it flow layers or blocks with learnable=True or adapt=True, or "
            "draw from it as it is with importance_sample"
        )
    return [nn.Parameter(torch.zeros(0))]  # scales that adapt need no optimiser, but optimisers need a parameter


def _latents(
    data: Tensor | WeightedSamples | Mapping[str, Tensor],
    model: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> tuple[Tensor, Tensor | None]:
    if isinstance(data, Mapping):
        return ModelEnergy(model, *args, **kwargs).unconstrain(data), None
    if not isinstance(data, WeightedSamples):
        return data, None
    z = data.info.get("z")
    # Draws that were read from a file know only their sites.
    z = z if isinstance(z, Tensor) else ModelEnergy(model, *args, **kwargs).unconstrain(data.samples)
    return z, data.log_weights


def _forget_graphs(run: TrainingRun) -> None:
    run.optimizer.zero_grad(set_to_none=True)
    run.guide.zero_grad(set_to_none=True)
    if isinstance(run.guide, AutoStochasticFlow):
        run.guide.get_transform().clear_cache()
