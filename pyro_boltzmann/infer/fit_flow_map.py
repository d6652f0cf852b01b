"""Train a flow map on ends of trajectories: true epochs, early stopping on rows held back, exact resume."""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional
from tqdm.auto import tqdm

from pyro_boltzmann.exceptions import CheckpointError, ShapeError, SolverError
from pyro_boltzmann.infer.checkpoint import load_checkpoint, pack_optimizer, save_checkpoint, unpack_optimizer
from pyro_boltzmann.infer.interrupt import deferred_interrupt
from pyro_boltzmann.infer.randomness import generator_states, restore_generators, seeded
from pyro_boltzmann.sde.flow_map import FlowMap
from pyro_boltzmann.sde.flow_map_base import Transitions

__all__ = ["FlowMapFit", "fit_flow_map", "flow_map_loss"]

_WARM_UP = 50
_LEAST_RATE = 0.003
_CHUNK = 8192
_MOST_SKIPPED = 20


@dataclass
class FlowMapFit:
    """What the training of a flow map did.

    :ivar history: lists of equal length: ``step``, ``loss`` (mean over the updates since the last row),
        ``validation``, ``seconds``.
    :ivar steps: updates made.
    :ivar best_step: the update whose parameters were kept.
    :ivar validation: loss of the rows held back at that update.
    :ivar seconds: wall time, summed over resumed runs; ``cpu_seconds`` likewise.
    :ivar stopped: why: ``"steps"``, ``"patience"`` or ``"time"``.
    :ivar skipped: updates left out because a loss or a gradient was not finite.
    """

    history: dict[str, list[float]] = field(default_factory=dict)
    steps: int = 0
    best_step: int = 0
    validation: float = math.inf
    seconds: float = 0.0
    cpu_seconds: float = 0.0
    stopped: str = "steps"
    skipped: int = 0


class _Rows(NamedTuple):
    """Transitions that are checked, with their deterministic paths."""

    x0: Tensor
    time: Tensor
    state: Tensor
    exited: Tensor
    params: Tensor | None
    path: Tensor

    def take(self, rows: Tensor | slice) -> _Rows:
        return _Rows(*[None if column is None else column[rows] for column in self])  # type: ignore[arg-type]


def flow_map_loss(
    flow_map: FlowMap,
    x0: Tensor,
    time: Tensor,
    state: Tensor,
    exited: Tensor,
    params: Tensor | None = None,
    path: Tensor | None = None,
) -> Tensor:
    r"""The negative log-likelihood of each transition, ``(n)``:

    .. math:: -\log P(\text{exit} \mid x_0, t, c) \ \text{ or } \
              -\log P(\text{stay} \mid x_0, t, c) - \log p_t(y \mid x_0, c) .

    States on clamped ends are spread beyond them at random (:meth:`Walls.dequantise`), so for those this is the
    estimate of a bound.

    :param x0: ``(n, d)``.
    :param time: ``(n)``.
    :param state: ``(n, d)``.
    :param exited: ``(n)``.
    :param params: ``(n, param_dim)``.
    :param path: what :meth:`FlowMap.path` gives, if it is known.
    """
    start = flow_map.unchecked_start(x0, time, params, path)
    if flow_map.exit is None:
        inside, stays = state, None
    else:
        logits = flow_map.logits(start)
        stays = functional.logsigmoid(-logits)
        # Any state of the domain in place of those that do not count, so that no gradient is NaN.
        inside = torch.where(exited.unsqueeze(-1), x0, state)
    if flow_map.walls.has_atoms:
        inside = flow_map.walls.dequantise(inside, start.scale)
    log_prob = flow_map.density(inside, start, dequantised=flow_map.walls.has_atoms)
    if stays is None:
        return -log_prob
    return -torch.where(exited, functional.logsigmoid(logits), stays + log_prob)


def fit_flow_map(
    flow_map: FlowMap,
    data: Transitions,
    *,
    num_steps: int = 2000,
    batch_size: int = 1024,
    learning_rate: float = 3e-3,
    weight_decay: float = 1e-4,
    validation: float = 0.1,
    max_validation: int = 20_000,
    validate_every: int = 100,
    patience: int | None = None,
    clip_norm: float | None = 5.0,
    max_seconds: float | None = None,
    checkpoint: str | Path | None = None,
    checkpoint_every: float = 30.0,
    resume: bool = True,
    seed: int = 0,
    progress: bool = True,
) -> FlowMapFit:
    r"""Fit a :class:`~pyro_boltzmann.sde.FlowMap` by maximum likelihood (:func:`flow_map_loss`).

    A share of the rows is held back. The others first give the map its constants (:meth:`FlowMap.standardise`: scales,
    the linear path by least squares, the training domain) and are then shown in epochs, in a new order each, every row
    once. In the end the map has the parameters with the lowest loss of the rows held back, unless that is better than
    the least-squares fit alone by less than two standard errors of their difference: then the law is Gaussian as far as
    these data can tell, and the fit alone is kept. Adam with decoupled weight decay and a cosine schedule after a short
    warm-up. An interrupted run continues from its checkpoint and ends, on the CPU, with the same parameters as an
    unbroken one.

    :param flow_map: changed in place.
    :param data: initial states, times, states, exits and parameters, such as
        :func:`~pyro_boltzmann.sde.draw_transitions` gives.
    :param num_steps: updates.
    :param batch_size: rows of an update.
    :param learning_rate: its largest value.
    :param weight_decay: of all matrices but those of the linear path.
    :param validation: share of the rows to hold back, of which at most ``max_validation`` are used.
    :param validate_every: updates between looks at them.
    :param patience: stop after so many looks without a new best one; ``None`` for never.
    :param clip_norm: clip the norm of the gradient; ``None`` for no clipping.
    :param max_seconds: stop after this much wall time, resumed runs counted in.
    :param checkpoint: file to keep the run in. If it exists and ``resume`` is set, the run continues from it.
    :param checkpoint_every: seconds between checkpoints.
    :param seed: of the rows held back, the order of rows and dropout; global generators stay as they were.
    :param progress: whether to show a bar.
    :raises ShapeError: if the data do not fit the map.
    :raises ValueError: if settings are out of range, or data are not finite.
    :raises SolverError: if the loss is not finite time after time.
    :raises CheckpointError: if the checkpoint is of another run.

    >>> from types import SimpleNamespace
    >>> x0 = torch.randn(500, 1)
    >>> data = SimpleNamespace(x0=x0, time=1.0, state=x0 + torch.randn(500, 1), exited=None, params=None)
    >>> result = fit_flow_map(FlowMap(1, time=1.0), data, num_steps=5, progress=False)
    >>> result.steps, result.stopped
    (5, 'steps')
    """
    _check_settings(num_steps, batch_size, validation, validate_every, patience)
    rows = _checked(flow_map, data)
    order = torch.randperm(len(rows.x0), generator=Generator().manual_seed(seed))
    held = min(max(1, round(validation * len(order))), max_validation)
    kept, shown = rows.take(order[:held]), rows.take(order[max(held, round(validation * len(order))) :])
    settings = {
        "num_steps": num_steps,
        "batch_size": batch_size,
        "learning_rate": learning_rate,
        "weight_decay": weight_decay,
        "validation": held,
        "validate_every": validate_every,
        "clip_norm": clip_norm,
        "seed": seed,
        "data": _fingerprint(rows),
    }
    with seeded(seed):
        flow_map.standardise(shown)
        flow_map.domain.observe(rows.x0, rows.time, rows.params)
        run = _Run(flow_map, shown, kept, settings)
        file = None if checkpoint is None else Path(checkpoint)
        if file is not None and resume and file.exists():
            run.restore(*load_checkpoint(file), file)
        run.train(patience, math.inf if max_seconds is None else max_seconds, file, checkpoint_every, progress)
    return run.result


class _Run:
    def __init__(self, flow_map: FlowMap, shown: _Rows, kept: _Rows, settings: dict[str, Any]) -> None:
        self.flow_map, self.shown, self.kept, self.settings = flow_map, shown, kept, settings
        linear = set(flow_map.linear.parameters())
        decayed = [p for p in flow_map.parameters() if p.dim() > 1 and p not in linear]
        others = [p for p in flow_map.parameters() if p.dim() <= 1 or p in linear]
        groups = [
            {"params": decayed, "weight_decay": settings["weight_decay"]},
            {"params": others, "weight_decay": 0.0},
        ]
        self.optimizer = torch.optim.AdamW(groups, lr=settings["learning_rate"])
        self.result = FlowMapFit()
        self.first = self.best = _copy(flow_map)
        self.first_losses = self.best_losses = self.scores()
        self.epoch_losses: list[float] = []
        self.random = generator_states()  # after the last whole update

    def train(
        self, patience: int | None, max_seconds: float, file: Path | None, save_every: float, progress: bool
    ) -> None:
        result, total, every = self.result, self.settings["num_steps"], self.settings["validate_every"]
        wall, cpu = time.perf_counter() - result.seconds, time.process_time() - result.cpu_seconds
        if not result.history:
            self.look(math.nan)
        self.flow_map.train()
        self.save(file)
        saved_at = time.perf_counter()
        result.stopped = "steps"
        with tqdm(total=total, initial=result.steps, disable=not progress, desc="flow map") as bar:
            try:
                for rows in self.batches():
                    if result.steps >= total:
                        break
                    if result.seconds >= max_seconds:
                        result.stopped = "time"
                        break
                    with deferred_interrupt():
                        self.update(rows)
                        result.seconds, result.cpu_seconds = time.perf_counter() - wall, time.process_time() - cpu
                        if result.steps % every == 0 or result.steps == total:
                            self.look(sum(self.epoch_losses) / max(1, len(self.epoch_losses)))
                            self.epoch_losses.clear()
                            bar.set_postfix(validation=f"{result.history['validation'][-1]:.4f}", refresh=False)
                    bar.update()
                    if patience is not None and result.steps - result.best_step >= patience * every:
                        result.stopped = "patience"
                        break
                    if file is not None and time.perf_counter() - saved_at > save_every:
                        self.save(file)
                        saved_at = time.perf_counter()
            finally:
                self.flow_map.eval()
                self.optimizer.zero_grad(set_to_none=True)
                self.save(file)
        if result.stopped == "time" or result.history["step"][-1] != result.steps:
            self.look(math.nan)
        self.choose()
        self.flow_map.eval()

    def batches(self) -> Iterator[Tensor]:
        """Every row once an epoch; the order follows from the seed and the number of the epoch."""
        n, size = len(self.shown.x0), self.settings["batch_size"]
        per_epoch = math.ceil(n / size)
        while True:
            epoch, first = divmod(self.result.steps, per_epoch)
            order = torch.randperm(n, generator=Generator().manual_seed(self.settings["seed"] * 1_000_003 + epoch + 1))
            for number in range(first, per_epoch):
                yield order[number * size : (number + 1) * size]

    def update(self, rows: Tensor) -> None:
        result = self.result
        for group in self.optimizer.param_groups:
            group["lr"] = self.settings["learning_rate"] * _schedule(result.steps, self.settings["num_steps"])
        loss = flow_map_loss(self.flow_map, *self.shown.take(rows)).mean()
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        limit = self.settings["clip_norm"] if self.settings["clip_norm"] is not None else math.inf
        norm = nn.utils.clip_grad_norm_(self.flow_map.parameters(), limit)
        value = float(loss.detach())
        if math.isfinite(value) and math.isfinite(float(norm)):
            self.optimizer.step()
            self.epoch_losses.append(value)
        else:
            result.skipped += 1
            if result.skipped > _MOST_SKIPPED + result.steps // 10:
                raise SolverError(
                    f"the loss was not finite in {result.skipped} of {result.steps + 1} updates; lower learning_rate, "
                    "or check the data for states on or beyond an absorbing end"
                )
        result.steps += 1
        self.random = generator_states()

    @torch.no_grad()
    def scores(self) -> Tensor:
        """The loss of each row held back."""
        flow_map = self.flow_map
        was_training = flow_map.training
        flow_map.eval()
        parts = [self.kept.take(slice(low, low + _CHUNK)) for low in range(0, len(self.kept.x0), _CHUNK)]
        with seeded(self.settings["seed"]):  # the same noise beyond clamped ends each time
            losses = torch.cat([flow_map_loss(flow_map, *part).double() for part in parts])
        flow_map.train(was_training)
        return losses

    def look(self, loss: float) -> None:
        """Score the rows held back, and keep the parameters if there were none as good."""
        result, losses = self.result, self.scores()
        score = float(losses.mean())
        row = {"step": float(result.steps), "loss": loss, "validation": score, "seconds": result.seconds}
        for name, value in row.items():
            result.history.setdefault(name, []).append(value)
        if score < result.validation:
            result.validation, result.best_step = score, result.steps
            self.best, self.best_losses = _copy(self.flow_map), losses

    def choose(self) -> None:
        """Give the map the best parameters, or the first ones if those are as good as data can tell."""
        gain = self.first_losses - self.best_losses
        error = float(gain.std()) / math.sqrt(len(gain)) if len(gain) > 1 else 0.0
        if self.result.best_step and float(gain.mean()) < 2.0 * error:
            self.best, self.result.best_step = self.first, 0
            self.result.validation = float(self.first_losses.mean())
        self.flow_map.load_state_dict(self.best)

    def save(self, file: Path | None) -> None:
        if file is None:
            return
        packed, described = pack_optimizer(self.optimizer)
        tensors = {f"map.{name}": value for name, value in self.flow_map.state_dict().items()}
        tensors |= {f"best.{name}": value for name, value in self.best.items()}
        tensors |= {f"first.{name}": value for name, value in self.first.items()}
        tensors |= {"first_losses": self.first_losses, "best_losses": self.best_losses}
        tensors |= {f"random.{name}": value for name, value in self.random.items()} | packed
        result = {name: value for name, value in vars(self.result).items() if name != "stopped"}
        metadata = {"settings": self.settings, "optimizer": described, "result": result, "losses": self.epoch_losses}
        with deferred_interrupt():
            save_checkpoint(file, tensors, metadata)

    def restore(self, tensors: dict[str, Tensor], metadata: dict[str, Any], file: Path) -> None:
        saved = metadata.get("settings", {})
        differing = [name for name, value in self.settings.items() if name != "num_steps" and saved.get(name) != value]
        if differing:
            raise CheckpointError(
                f"{file} is the checkpoint of another run, which differs in {', '.join(differing)}; name another file, "
                "or pass resume=False to start anew and overwrite it"
            )
        try:
            self.flow_map.load_state_dict(_with_prefix(tensors, "map."))
            self.best, self.best_losses = _with_prefix(tensors, "best."), tensors["best_losses"]
            self.first, self.first_losses = _with_prefix(tensors, "first."), tensors["first_losses"]
            unpack_optimizer(self.optimizer, tensors, metadata["optimizer"])
            self.random = _with_prefix(tensors, "random.")
            restore_generators(self.random)
            self.result = FlowMapFit(**metadata["result"])
            self.epoch_losses = list(metadata["losses"])
        except (KeyError, TypeError, RuntimeError) as error:
            raise CheckpointError(
                f"{file} does not fit this flow map ({error}); name another file, or pass resume=False to overwrite it"
            ) from error


def _schedule(step: int, total: int) -> float:
    """A warm-up, then half a cosine down to a small share."""
    falling = _LEAST_RATE + (1.0 - _LEAST_RATE) * 0.5 * (1.0 + math.cos(math.pi * min(1.0, step / total)))
    return min(1.0, (step + 1) / _WARM_UP) * falling


def _checked(flow_map: FlowMap, data: Transitions) -> _Rows:
    x0, t, params = flow_map.arguments(data.x0, data.time, data.params)
    flow_map.check_state(data.state)
    if x0.dim() != 2 or data.state.shape != x0.shape or len(x0) < 4:
        raise ShapeError(
            f"expected at least 4 transitions with x0 and state of shape (n, {flow_map.event_dim}), got "
            f"{tuple(x0.shape)} and {tuple(data.state.shape)}"
        )
    exited = torch.zeros(len(x0), dtype=torch.bool, device=x0.device) if data.exited is None else data.exited
    if flow_map.exit is None and bool(exited.any()):
        raise ValueError(
            "some trajectories exited, but the map has no absorbing boundary; pass boundaries=[Absorbing(...)]"
        )
    for name, tensor in (("x0", x0), ("time", t), ("state", data.state[~exited]), ("params", params)):
        if tensor is not None and not bool(tensor.isfinite().all()):
            raise ValueError(f"{name} of the data must be finite, got {int((~tensor.isfinite()).sum())} other numbers")
    outside = ~(flow_map.walls.contains(data.state) | exited)
    if bool(outside.any()):
        raise ValueError(
            f"{int(outside.sum())} states of the data lie outside the boundaries {flow_map.walls.boundaries}; give the "
            "map those of the simulation"
        )
    t = t.expand(len(x0))
    with torch.no_grad():
        paths = [
            flow_map.path(x0[i : i + _CHUNK], t[i : i + _CHUNK], None if params is None else params[i : i + _CHUNK])
            for i in range(0, len(x0), _CHUNK)
        ]
    return _Rows(x0, t, data.state, exited, params, torch.cat(paths))


def _check_settings(
    num_steps: int, batch_size: int, validation: float, validate_every: int, patience: int | None
) -> None:
    if min(num_steps, batch_size, validate_every, 1 if patience is None else patience) < 1:
        raise ValueError(
            "num_steps, batch_size, validate_every and patience must be positive, got "
            f"{num_steps}, {batch_size}, {validate_every} and {patience}"
        )
    if not 0.0 < validation < 1.0:
        raise ValueError(f"validation is the share of rows to hold back, between 0 and 1, got {validation}")


def _fingerprint(rows: _Rows) -> str:
    digest = hashlib.sha256()
    for column in rows:
        if column is not None:
            digest.update(column.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def _copy(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in module.state_dict().items()}


def _with_prefix(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
