"""Train a conditional model on pairs."""

from __future__ import annotations

import math
from pathlib import Path

import torch
from torch import Generator, Tensor, nn

from pyro_boltzmann.exceptions import ShapeError
from pyro_boltzmann.infer.conditional_fit import ConditionalFit
from pyro_boltzmann.infer.conditional_run import Columns, ConditionalRun
from pyro_boltzmann.infer.randomness import seeded

__all__ = ["fit_conditional"]


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
    with. Ctrl-C lets the update in progress finish; the checkpoint holds the state after the last update, and the same
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
    :param max_seconds: stop after this much wall time, resumed runs counted in; the rest of that epoch is left out.
    :param checkpoint: file to keep the run in. If it exists and ``resume`` is set, the run continues from it.
    :param checkpoint_every: seconds between checkpoints; one is also written at the start, at the end and on
        interruption.
    :param seed: seed the run and leave the global generator as it was; otherwise the global generator is used.
    :param progress: show losses on a progress bar.
    :raises ShapeError: if the rows do not match.
    :raises ValueError: for settings that cannot be used.
    :raises CheckpointError: if the checkpoint is truncated, foreign, or of another run.
    :raises SolverError: if 50 updates in a row have no finite loss and gradient.

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
    num_held = min(round(held_out * len(x0)), len(x0) - 1)

    def rate(step: int, epoch: int) -> float:
        if schedule == "constant":
            return learning_rate
        return learning_rate * (0.01 + 0.99 * 0.5 * (1.0 + math.cos(math.pi * min(1.0, epoch / num_epochs))))

    def loss(columns: Columns) -> Tensor:
        value: Tensor = model.loss(*columns)  # type: ignore[operator]
        return value

    with seeded(seed):
        order_seed = int(torch.randint(2**40, ())) if seed is None else seed
        order = torch.randperm(len(x0), generator=Generator().manual_seed(order_seed))
        held, shown = order.split([num_held, len(x0) - num_held])
        if callable(standardise := getattr(model, "standardise", None)):
            standardise(*(column[shown] for column in rows))
        run = ConditionalRun(
            model,
            loss,
            rows,
            held,
            shown,
            order_seed=order_seed,
            settings={"learning_rate": learning_rate, "schedule": schedule, "seed": seed},
            rate=rate,
            batch_size=batch_size,
            look_size=batch_size,
            weight_decay=weight_decay,
            clip_norm=clip_norm,
        )
        return run.train(
            num_epochs * run.per_epoch,
            run.per_epoch,
            patience=patience,
            max_seconds=max_seconds,
            checkpoint=checkpoint,
            checkpoint_every=checkpoint_every,
            resume=resume,
            progress=progress,
            name="fit",
            finished="epochs",
        )
