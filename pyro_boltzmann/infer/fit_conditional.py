"""Train a conditional model on pairs: true epochs, held-out rows, exact resume."""

from __future__ import annotations

import math
import time as clock
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from pyro_boltzmann.exceptions import CheckpointError, PyroBoltzmannError, ShapeError
from pyro_boltzmann.infer.checkpoint import load_checkpoint, pack_optimizer, save_checkpoint, unpack_optimizer
from pyro_boltzmann.infer.interrupt import deferred_interrupt
from pyro_boltzmann.infer.randomness import cuda_devices, generator_states, restore_generators, seeded

__all__ = ["ConditionalFit", "fit_conditional"]

MOST_SKIPPED = 50
"""Updates in a row without a finite gradient, after which a run gives up."""


@dataclass
class ConditionalFit:
    """What a training run on pairs did.

    :ivar history: a row an epoch: ``epoch``, ``loss`` (the mean over all training rows, as they were met), ``held_out``
        (over all held-out rows; NaN without), ``learning_rate``, ``seconds``.
    :ivar epochs: epochs made; each met every training row exactly once.
    :ivar best_epoch: the one whose parameters were kept.
    :ivar stopped: why: ``"epochs"``, ``"patience"`` or ``"time"``.
    :ivar skipped: updates skipped because the loss or its gradient was not finite.
    :ivar seconds: wall time, resumed runs counted in.
    :ivar held_out: indices of the held-out rows.
    """

    history: dict[str, list[float]] = field(default_factory=dict)
    epochs: int = 0
    best_epoch: int = 0
    stopped: str = "epochs"
    skipped: int = 0
    seconds: float = 0.0
    held_out: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.long))


def fit_conditional(
    model: nn.Module,
    x0: Tensor,
    y: Tensor,
    time: Tensor | None = None,
    *,
    num_epochs: int = 100,
    batch_size: int = 512,
    held_out: float = 0.1,
    patience: int | None = None,
    learning_rate: float = 1e-3,
    schedule: str = "cosine",
    weight_decay: float = 0.0,
    clip_norm: float | None = 10.0,
    max_seconds: float | None = None,
    checkpoint: str | Path | None = None,
    checkpoint_every: float = 30.0,
    resume: bool = True,
    seed: int | None = None,
    progress: bool = True,
) -> ConditionalFit:
    r"""Minimise the mean of ``model.loss(x0, y)`` over pairs.

    An epoch is one pass: a random permutation of the training rows, cut into minibatches, so that every row adds to the
    gradient exactly once. The loss of the held-out rows, all of them, decides which epoch's parameters the model ends
    with. Ctrl-C lets the update in progress finish; the checkpoint holds the state after the last epoch, and the same
    call continues from it, on the CPU with the parameters of an unbroken run, bit for bit.

    :param model: a module with ``loss(x0, y)``, or ``loss(x0, y, time)`` where times are given. Where it has a method
        ``standardise`` of the same arguments, that is called first, with the training rows.
    :param x0: ``(n, context_dim)``.
    :param y: ``(n, dim)``.
    :param time: ``(n,)``.
    :param num_epochs: passes over the training rows.
    :param batch_size: rows an update; the last minibatch of an epoch has what is left.
    :param held_out: fraction of the rows that is not trained on; 0 for none, and the last epoch's parameters.
    :param patience: stop after this many epochs without a better held-out loss.
    :param learning_rate: of AdamW at first.
    :param schedule: ``"constant"``, or ``"cosine"`` (decay to 1 % over the epochs asked for).
    :param weight_decay: of AdamW, for matrices; biases and scales do not decay.
    :param clip_norm: clip the norm of the gradient; ``None`` for no clipping.
    :param max_seconds: stop after the epoch in which this much wall time is over.
    :param checkpoint: file to keep the run in. If it exists and ``resume`` is set, the run continues from it.
    :param checkpoint_every: seconds between checkpoints; one is also written at the start, at the end and on
        interruption.
    :param seed: seed the run and leave the global generator as it was; otherwise the global generator is used.
    :param progress: show losses on a progress bar.
    :raises ShapeError: if the rows do not match.
    :raises ValueError: for settings that cannot be used.
    :raises CheckpointError: if the checkpoint is truncated, foreign, or of another run.
    :raises PyroBoltzmannError: if 50 updates in a row have no finite gradient.

    >>> from pyro_boltzmann.transforms import PseudoReversibleFlow
    >>> x0 = torch.randn(300, 1)
    >>> flow = PseudoReversibleFlow(1, hidden_dims=[16])
    >>> result = fit_conditional(flow, x0, x0 + torch.randn(300, 1), num_epochs=3, seed=0, progress=False)
    >>> result.epochs, len(result.held_out)
    (3, 30)
    """
    rows = [x0, y] if time is None else [x0, y, time]
    if any(len(column) != len(x0) for column in rows) or len(x0) < 2:
        raise ShapeError(
            f"pairs need equally many rows, at least two; got {', '.join(str(tuple(r.shape)) for r in rows)}"
        )
    if not 0.0 <= held_out < 1.0 or num_epochs < 0 or batch_size < 1 or schedule not in ("constant", "cosine"):
        raise ValueError(
            "expected 0 <= held_out < 1, num_epochs >= 0, batch_size >= 1 and a schedule 'constant' or 'cosine'; got "
            f"held_out={held_out}, num_epochs={num_epochs}, batch_size={batch_size}, schedule={schedule!r}"
        )
    if patience is not None and (held_out == 0.0 or patience < 1):
        raise ValueError(f"patience={patience} needs to be positive, and held-out rows; got held_out={held_out}")
    with seeded(seed):
        run = _Run(model, rows, batch_size, held_out, learning_rate, weight_decay, clip_norm)
        file = None if checkpoint is None else Path(checkpoint)
        if file is not None and resume and file.exists():
            run.restore(*load_checkpoint(file), file)
        elif callable(standardise := getattr(model, "standardise", None)):
            standardise(*(column[run.train] for column in rows))
        limit = math.inf if max_seconds is None else max_seconds
        _train(run, num_epochs, schedule, patience, limit, file, checkpoint_every, progress)
    return run.result


def _train(
    run: _Run,
    num_epochs: int,
    schedule: str,
    patience: int | None,
    limit: float,
    file: Path | None,
    save_every: float,
    progress: bool,
) -> None:
    result = run.result
    result.stopped = "epochs"
    last = run.state()
    saved_at = -math.inf
    with tqdm(total=num_epochs, initial=result.epochs, disable=not progress, desc="fit") as bar:
        try:
            while True:
                if file is not None and clock.perf_counter() - saved_at > save_every:
                    _save(file, last)
                    saved_at = clock.perf_counter()
                if result.epochs >= num_epochs:
                    break
                if patience is not None and result.epochs - result.best_epoch >= patience:
                    result.stopped = "patience"
                    break
                if result.seconds >= limit:
                    result.stopped = "time"
                    break
                rate = run.learning_rate
                if schedule == "cosine":
                    rate *= 0.01 + 0.99 * 0.5 * (1.0 + math.cos(math.pi * result.epochs / num_epochs))
                run.epoch(rate)
                if file is not None:
                    last = run.state()
                history = result.history
                bar.set_postfix(
                    {"loss": f"{history['loss'][-1]:.4f}", "held": f"{history['held_out'][-1]:.4f}"}, refresh=False
                )
                bar.update()
        finally:
            if file is not None:
                _save(file, last)
    run.keep_best()


def _save(file: Path, state: tuple[Mapping[str, Tensor], Mapping[str, Any]]) -> None:
    with deferred_interrupt():
        save_checkpoint(file, *state)


class _Run:
    """A model, its rows, and where its training stands."""

    def __init__(
        self,
        model: nn.Module,
        rows: list[Tensor],
        batch_size: int,
        held_out: float,
        learning_rate: float,
        weight_decay: float,
        clip_norm: float | None,
    ) -> None:
        self.model, self.rows, self.batch_size = model, rows, batch_size
        self.learning_rate, self.clip_norm = learning_rate, clip_norm
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        if not self.parameters:
            raise ValueError("the model has no parameter to train")
        matrices = [p for p in self.parameters if p.dim() > 1]
        others = [p for p in self.parameters if p.dim() <= 1]
        groups = [{"params": matrices, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW([group for group in groups if group["params"]], lr=learning_rate)
        self.devices = cuda_devices(model)
        order = torch.randperm(len(rows[0]))
        number = min(round(held_out * len(order)), len(order) - 1)
        self.held, self.train = order[:number], order[number:]
        self.result = ConditionalFit(held_out=self.held)
        self.best, self.best_loss, self.bad_in_a_row = self._parameters(), math.inf, 0

    def epoch(self, rate: float) -> None:
        """One pass over the training rows, and the loss of the held-out ones."""
        start = clock.perf_counter()
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.model.train()
        total = 0.0
        for batch in self.train[torch.randperm(len(self.train))].split(self.batch_size):
            with deferred_interrupt():
                total += len(batch) * self._update(batch)
        held = self._held_out_loss()
        result = self.result
        result.epochs += 1
        if held < self.best_loss or not len(self.held):
            self.best, self.best_loss, result.best_epoch = self._parameters(), held, result.epochs
        result.seconds += clock.perf_counter() - start
        row = {"loss": total / len(self.train), "held_out": held, "learning_rate": rate, "seconds": result.seconds}
        for name, value in {"epoch": float(result.epochs), **row}.items():
            result.history.setdefault(name, []).append(value)

    def _update(self, batch: Tensor) -> float:
        self.optimizer.zero_grad()
        loss = self._loss(batch)
        loss.backward()
        norm = nn.utils.clip_grad_norm_(self.parameters, math.inf if self.clip_norm is None else self.clip_norm)
        value = float(loss.detach())
        if not (math.isfinite(value) and math.isfinite(float(norm))):
            self.result.skipped += 1
            self.bad_in_a_row += 1
            if self.bad_in_a_row >= MOST_SKIPPED:
                raise PyroBoltzmannError(
                    f"{MOST_SKIPPED} updates in a row had no finite loss and gradient; look for rows that are not "
                    "finite, or lower the learning rate"
                )
            return value
        self.bad_in_a_row = 0
        self.optimizer.step()
        return value

    def _loss(self, batch: Tensor) -> Tensor:
        loss: Tensor = self.model.loss(*(column[batch] for column in self.rows))  # type: ignore[operator]
        return loss

    def _held_out_loss(self) -> float:
        if not len(self.held):
            return math.nan
        self.model.eval()
        with torch.no_grad():
            parts = [len(batch) * float(self._loss(batch)) for batch in self.held.split(self.batch_size)]
        self.model.train()
        return sum(parts) / len(self.held)

    def _parameters(self) -> dict[str, Tensor]:
        return {name: tensor.detach().clone() for name, tensor in self.model.state_dict().items()}

    def keep_best(self) -> None:
        """Give the model the parameters of its best epoch."""
        if self.result.epochs:
            self.model.load_state_dict(self.best)
        self.model.eval()

    def description(self) -> dict[str, Any]:
        shapes = {name: list(tensor.shape) for name, tensor in self.model.state_dict().items()}
        sums = [float(column.double().sum()) for column in self.rows]
        settings = {"batch_size": self.batch_size, "num_held_out": len(self.held), "clip_norm": self.clip_norm}
        return {"model": shapes, "rows": len(self.rows[0]), "sums": sums, **settings}

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """All that the next epoch depends on, copied."""
        optimizer_tensors, optimizer = pack_optimizer(self.optimizer)
        result = self.result
        tensors = {f"model.{name}": tensor for name, tensor in self._parameters().items()}
        tensors |= {f"best.{name}": tensor for name, tensor in self.best.items()}
        tensors |= {f"rng.{name}": tensor for name, tensor in generator_states(self.devices).items()}
        tensors |= {name: tensor.clone() for name, tensor in optimizer_tensors.items()}
        tensors |= {
            f"history.{name}": torch.tensor(column, dtype=torch.float64) for name, column in result.history.items()
        }
        tensors |= {"held": self.held, "train": self.train}
        counts = {name: getattr(result, name) for name in ("epochs", "best_epoch", "skipped", "seconds")}
        best = None if math.isinf(self.best_loss) or math.isnan(self.best_loss) else self.best_loss
        metadata = {"description": self.description(), "optimizer": optimizer, "counts": counts, "best_loss": best}
        return tensors, metadata | {"bad_in_a_row": self.bad_in_a_row}

    def restore(self, tensors: Mapping[str, Tensor], metadata: Mapping[str, Any], where: object) -> None:
        """Continue from what :meth:`state` returned."""
        stored, asked = metadata.get("description"), self.description()
        if not isinstance(stored, dict):
            raise CheckpointError(f"{where} is a checkpoint, but not of a training run; name another one")
        others = [name for name in asked if stored.get(name) != asked[name]]
        if others:
            raise CheckpointError(
                f"{where} belongs to another run ({', '.join(others)} differ); name another checkpoint, or pass "
                "resume=False to start anew and overwrite it"
            )
        try:
            self.model.load_state_dict(_named(tensors, "model."))
            self.best = _named(tensors, "best.")
            unpack_optimizer(self.optimizer, tensors, metadata["optimizer"])
            self.held, self.train = tensors["held"], tensors["train"]
            history = {name: column.tolist() for name, column in _named(tensors, "history.").items()}
            self.result = ConditionalFit(history=history, held_out=self.held, **metadata["counts"])
            best = metadata["best_loss"]
            self.best_loss = math.inf if best is None else best
            self.bad_in_a_row = metadata["bad_in_a_row"]
            restore_generators(_named(tensors, "rng."), self.devices)
        except (KeyError, TypeError, RuntimeError) as error:
            raise CheckpointError(
                f"{where} is not a complete checkpoint of a training run on pairs ({type(error).__name__}: {error}); "
                "name another, or pass resume=False to start anew and overwrite it"
            ) from error


def _named(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
