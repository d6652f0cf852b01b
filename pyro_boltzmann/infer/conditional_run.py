"""A run of updates on rows of pairs: true epochs, rows held back, exact resume."""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Generator, Tensor, nn
from tqdm.auto import tqdm

from pyro_boltzmann.exceptions import CheckpointError, SolverError
from pyro_boltzmann.infer.checkpoint import load_checkpoint, pack_optimizer, save_checkpoint, unpack_optimizer
from pyro_boltzmann.infer.conditional_fit import ConditionalFit
from pyro_boltzmann.infer.interrupt import deferred_interrupt
from pyro_boltzmann.infer.randomness import cuda_devices, generator_states, restore_generators, seeded

__all__ = ["Columns", "ConditionalRun"]

Columns = Sequence[Tensor | None]
"""Tensors with equally many rows, or ``None`` where a model has no such column."""
MOST_SKIPPED = 50
"""Updates in a row without a finite gradient, after which a run gives up."""


class ConditionalRun:
    """The state of a training: what :func:`fit_conditional` and :func:`fit_flow_map` continue, save and restore.

    :param model: changed in place.
    :param loss: of some rows, a mean ``()`` or one number for each ``(n,)``.
    :param rows: all of them.
    :param held: indices of those held back, and ``shown``, of the others.
    :param order_seed: of the order of rows.
    :param settings: what must agree for a checkpoint to continue this run, in JSON, ``batch_size`` among them.
    :param rate: the learning rate at an update, from the numbers of updates and of epochs made before.
    :param weight_decay: of matrices but those in ``undecayed``.
    :param has_baseline: whether the parameters at the start count as a fit, which training has to beat.
    """

    def __init__(
        self,
        model: nn.Module,
        loss: Callable[[Columns], Tensor],
        rows: Columns,
        held: Tensor,
        shown: Tensor,
        *,
        order_seed: int,
        settings: Mapping[str, Any],
        rate: Callable[[int, int], float],
        batch_size: int,
        look_size: int,
        weight_decay: float,
        clip_norm: float | None,
        undecayed: Collection[nn.Parameter] = (),
        has_baseline: bool = False,
    ) -> None:
        self.model, self.loss, self.rows = model, loss, rows
        self.held, self.shown, self.order_seed = held, shown, order_seed
        self.rate, self.batch_size, self.look_size = rate, batch_size, look_size
        self.clip_norm, self.has_baseline = clip_norm, has_baseline
        shapes = {name: list(tensor.shape) for name, tensor in model.state_dict().items()}
        decay = {"weight_decay": weight_decay, "clip_norm": clip_norm, "batch_size": batch_size}
        of_model = {"network": repr(model), "model": shapes}
        self.settings = {**settings, **decay, **of_model, "num_held_out": len(held), "data": _fingerprint(rows)}
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        if not self.parameters:
            raise ValueError("the model has no parameter to train")
        kept = {id(p) for p in undecayed}
        decayed = [p for p in self.parameters if p.dim() > 1 and id(p) not in kept]
        others = [p for p in self.parameters if p.dim() <= 1 or id(p) in kept]
        groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW([group for group in groups if group["params"]])
        self.devices = cuda_devices(model)
        self.result = ConditionalFit(held_out=held)
        self.first = self.best = _copy(model)
        self.first_losses = self.best_losses = self.scores() if has_baseline else torch.zeros(0, dtype=torch.float64)
        self.total, self.count, self.bad_in_a_row, self.looks_since_best = 0.0, 0, 0, 0
        self.random = generator_states(self.devices)  # after the last whole update

    @property
    def per_epoch(self) -> int:
        """Updates of an epoch."""
        return math.ceil(len(self.shown) / self.batch_size)

    def train(
        self,
        num_steps: int,
        look_every: int,
        *,
        patience: int | None,
        max_seconds: float | None,
        checkpoint: str | Path | None,
        checkpoint_every: float,
        resume: bool,
        progress: bool,
        name: str,
        finished: str = "steps",
    ) -> ConditionalFit:
        """Make updates until a limit is reached, and give the model its best parameters.

        :param num_steps: updates, those of a resumed run counted in.
        :param look_every: updates between two looks at the rows held back.
        :param patience: looks without a new best one, after which to stop.
        :param finished: what to call the end by ``num_steps``.
        """
        file = None if checkpoint is None else Path(checkpoint)
        if file is not None and resume and file.exists():
            self.restore(*load_checkpoint(file), file)
        result, limit = self.result, math.inf if max_seconds is None else max_seconds
        wall, cpu = time.perf_counter() - result.seconds, time.process_time() - result.cpu_seconds
        if self.has_baseline and not result.history:
            self.look(math.nan)
        self.model.train()
        result.stopped = finished
        saved_at = -math.inf
        with tqdm(total=num_steps, initial=result.steps, disable=not progress, desc=name) as bar:
            try:
                for batch in self.batches():
                    if file is not None and time.perf_counter() - saved_at > checkpoint_every:
                        self.save(file)
                        saved_at = time.perf_counter()
                    stopped = self._reason(num_steps, patience, limit)
                    if stopped is not None:
                        result.stopped = stopped or finished
                        break
                    with deferred_interrupt():
                        rate = self.update(batch)
                        result.seconds, result.cpu_seconds = time.perf_counter() - wall, time.process_time() - cpu
                        if result.steps % look_every == 0 or result.steps == num_steps:
                            self.look(rate)
                            bar.set_postfix(validation=f"{result.history['validation'][-1]:.4f}", refresh=False)
                    bar.update()
            finally:
                self.model.eval()
                self.optimizer.zero_grad(set_to_none=True)
                if file is not None:
                    self.save(file)
        if self.count:
            self.look(self.optimizer.param_groups[0]["lr"])
        self.choose()
        return result

    def _reason(self, num_steps: int, patience: int | None, limit: float) -> str | None:
        """Why to stop, empty for the end of the updates; ``None`` to go on."""
        if self.result.steps >= num_steps:
            return ""
        if patience is not None and self.looks_since_best >= patience:
            return "patience"
        return "time" if self.result.seconds >= limit else None

    def batches(self) -> Iterator[Tensor]:
        """Every row once an epoch; the order follows from the seed and the number of the epoch."""
        while True:
            epoch, first = divmod(self.result.steps, self.per_epoch)
            generator = Generator().manual_seed((self.order_seed * 1_000_003 + epoch + 1) % 2**63)
            order = self.shown[torch.randperm(len(self.shown), generator=generator)]
            yield from order.split(self.batch_size)[first:]

    def update(self, batch: Tensor) -> float:
        """One step of the optimiser, unless the loss or its gradient is not finite; returns the learning rate."""
        result = self.result
        rate = self.rate(result.steps, result.epochs)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.zero_grad(set_to_none=True)
        loss = self.loss(self._take(batch)).mean()
        loss.backward()
        norm = nn.utils.clip_grad_norm_(self.parameters, math.inf if self.clip_norm is None else self.clip_norm)
        value = float(loss.detach())
        if math.isfinite(value) and math.isfinite(float(norm)):
            self.optimizer.step()
            self.bad_in_a_row = 0
            self.total, self.count = self.total + len(batch) * value, self.count + len(batch)
        else:
            result.skipped += 1
            self.bad_in_a_row += 1
            if self.bad_in_a_row >= MOST_SKIPPED:
                raise SolverError(
                    f"{MOST_SKIPPED} updates in a row had no finite loss and gradient; look for rows that are not "
                    "finite, or lie on or beyond an absorbing end, or lower the learning rate"
                )
        result.steps += 1
        result.epochs = result.steps // self.per_epoch
        self.random = generator_states(self.devices)
        return rate

    @torch.no_grad()
    def scores(self) -> Tensor:
        """The loss of each row held back, or the mean of its part where there is no other; float64."""
        was_training = self.model.training
        self.model.eval()
        losses = []
        with seeded(self.order_seed):  # the same noise each time, where the loss needs some
            for part in self.held.split(self.look_size):
                losses.append(self.loss(self._take(part)).double().expand(len(part)))
        self.model.train(was_training)
        return torch.cat(losses) if losses else torch.zeros(0, dtype=torch.float64)

    def look(self, rate: float) -> None:
        """Score the rows held back, and keep the parameters if there were none as good."""
        result = self.result
        losses = self.scores()
        score = float(losses.mean()) if len(losses) else math.nan
        row = {
            "step": float(result.steps),
            "epoch": float(result.epochs),
            "loss": self.total / self.count if self.count else math.nan,
            "validation": score,
            "learning_rate": rate,
            "seconds": result.seconds,
        }
        for name, value in row.items():
            result.history.setdefault(name, []).append(value)
        self.total, self.count = 0.0, 0
        self.looks_since_best += 1
        if score < result.validation or not len(losses):
            result.validation, result.best_step = score, result.steps
            result.best_epoch = math.ceil(result.steps / self.per_epoch)
            self.best, self.best_losses, self.looks_since_best = _copy(self.model), losses, 0

    def choose(self) -> None:
        """Give the model the best parameters, or the first ones if those are as good as the rows can tell."""
        result = self.result
        if self.has_baseline and result.best_step:
            gain = self.first_losses - self.best_losses
            error = float(gain.std()) / math.sqrt(len(gain)) if len(gain) > 1 else 0.0
            if float(gain.mean()) < 2.0 * error:
                self.best, result.best_step, result.best_epoch = self.first, 0, 0
                result.validation = float(self.first_losses.mean())
        self.model.load_state_dict(self.best)
        self.model.eval()

    def save(self, file: Path) -> None:
        """Write all that the next update depends on."""
        packed, described = pack_optimizer(self.optimizer)
        tensors = {f"model.{name}": value for name, value in self.model.state_dict().items()}
        tensors |= {f"best.{name}": value for name, value in self.best.items()}
        if self.has_baseline:
            tensors |= {f"first.{name}": value for name, value in self.first.items()}
        tensors |= {"first_losses": self.first_losses, "best_losses": self.best_losses}
        tensors |= {f"random.{name}": value for name, value in self.random.items()} | packed
        tensors |= {"held": self.held, "shown": self.shown}
        counts = {name: value for name, value in vars(self.result).items() if name not in ("held_out", "stopped")}
        progress = {name: getattr(self, name) for name in _PROGRESS}
        metadata = {"settings": self.settings, "optimizer": described, "counts": counts, "progress": progress}
        with deferred_interrupt():
            save_checkpoint(file, tensors, metadata)

    def restore(self, tensors: Mapping[str, Tensor], metadata: Mapping[str, Any], file: Path) -> None:
        """Continue from what :meth:`save` wrote."""
        saved = metadata.get("settings")
        if not isinstance(saved, dict):
            raise CheckpointError(f"{file} is a checkpoint, but not of a training run on pairs; name another one")
        differing = [name for name, value in self.settings.items() if saved.get(name) != value]
        if differing:
            raise CheckpointError(
                f"{file} is the checkpoint of another run, which differs in {', '.join(differing)}; name another file, "
                "or pass resume=False to start anew and overwrite it"
            )
        try:
            self.model.load_state_dict(_named(tensors, "model."))
            self.best, self.best_losses = _named(tensors, "best."), tensors["best_losses"]
            if self.has_baseline:
                self.first, self.first_losses = _named(tensors, "first."), tensors["first_losses"]
            unpack_optimizer(self.optimizer, tensors, metadata["optimizer"])
            self.held, self.shown = tensors["held"], tensors["shown"]
            self.result = ConditionalFit(**metadata["counts"], held_out=self.held)
            for name in _PROGRESS:
                setattr(self, name, metadata["progress"][name])
            self.random = _named(tensors, "random.")
            restore_generators(self.random, self.devices)
        except (KeyError, TypeError, RuntimeError) as error:
            raise CheckpointError(
                f"{file} does not fit this model ({type(error).__name__}: {error}); name another file, or pass "
                "resume=False to start anew and overwrite it"
            ) from error

    def _take(self, index: Tensor) -> Columns:
        return [None if column is None else column[index] for column in self.rows]


_PROGRESS = ("order_seed", "total", "count", "bad_in_a_row", "looks_since_best")


def _fingerprint(rows: Columns) -> str:
    digest = hashlib.sha256()
    for column in rows:
        if column is not None:
            digest.update(column.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def _copy(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in module.state_dict().items()}


def _named(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
