"""The likelihood of transitions under a flow map, and a run of updates that raise it."""

from __future__ import annotations

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

from pyro_boltzmann.exceptions import CheckpointError, SolverError
from pyro_boltzmann.infer.checkpoint import pack_optimizer, save_checkpoint, unpack_optimizer
from pyro_boltzmann.infer.interrupt import deferred_interrupt
from pyro_boltzmann.infer.randomness import generator_states, restore_generators, seeded
from pyro_boltzmann.sde.flow_map import FlowMap

__all__ = ["FlowMapFit", "FlowMapRun", "TransitionRows", "flow_map_loss"]

CHUNK = 8192
"""Rows that are scored at a time."""
_WARM_UP = 50
_LEAST_RATE = 0.003
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


class TransitionRows(NamedTuple):
    """Transitions that are checked, with their deterministic paths."""

    x0: Tensor
    time: Tensor
    state: Tensor
    exited: Tensor
    params: Tensor | None
    path: Tensor

    def take(self, rows: Tensor | slice) -> TransitionRows:
        return TransitionRows(*[None if column is None else column[rows] for column in self])  # type: ignore[arg-type]


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


class FlowMapRun:
    """The state of a training: what :func:`fit_flow_map` continues, saves and restores."""

    def __init__(
        self, flow_map: FlowMap, shown: TransitionRows, kept: TransitionRows, settings: dict[str, Any]
    ) -> None:
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
        parts = [self.kept.take(slice(low, low + CHUNK)) for low in range(0, len(self.kept.x0), CHUNK)]
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


def _copy(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in module.state_dict().items()}


def _with_prefix(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
