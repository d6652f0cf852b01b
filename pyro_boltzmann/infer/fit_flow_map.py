"""Train a flow map on ends of trajectories by maximum likelihood."""

from __future__ import annotations

import math
from pathlib import Path

import torch
from torch import Generator, Tensor

from pyro_boltzmann.exceptions import ShapeError
from pyro_boltzmann.infer.conditional_fit import ConditionalFit
from pyro_boltzmann.infer.conditional_run import Columns, ConditionalRun
from pyro_boltzmann.infer.flow_map_loss import TransitionRows, flow_map_loss
from pyro_boltzmann.infer.randomness import seeded
from pyro_boltzmann.sde.flow_map import FlowMap
from pyro_boltzmann.sde.flow_map_base import Transitions

__all__ = ["fit_flow_map"]

CHUNK = 8192
"""Rows that are scored at a time."""
_WARM_UP = 50
_LEAST_RATE = 0.003


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
) -> ConditionalFit:
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
    :param num_steps: updates. A resumed run may be given more of them; its learning rate then follows the new schedule.
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
    :raises SolverError: if 50 updates in a row have no finite loss and gradient.
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
    kept, shown = order[:held], order[max(held, round(validation * len(order))) :]

    def rate(step: int, epoch: int) -> float:
        """A warm-up, then half a cosine down to a small share."""
        falling = _LEAST_RATE + (1.0 - _LEAST_RATE) * 0.5 * (1.0 + math.cos(math.pi * min(1.0, step / num_steps)))
        return learning_rate * min(1.0, (step + 1) / _WARM_UP) * falling

    def loss(columns: Columns) -> Tensor:
        return flow_map_loss(flow_map, *columns)  # type: ignore[arg-type]

    with seeded(seed):
        flow_map.standardise(TransitionRows(*(None if column is None else column[shown] for column in rows)))  # type: ignore[arg-type]
        flow_map.domain.observe(rows.x0, rows.time, rows.params)
        run = ConditionalRun(
            flow_map,
            loss,
            rows,
            kept,
            shown,
            order_seed=seed,
            settings={
                "learning_rate": learning_rate,
                "validate_every": validate_every,
                "seed": seed,
                "boundaries": repr(flow_map.walls.boundaries),
            },
            rate=rate,
            batch_size=batch_size,
            look_size=CHUNK,
            weight_decay=weight_decay,
            clip_norm=clip_norm,
            undecayed=list(flow_map.linear.parameters()),
            has_baseline=True,
        )
        return run.train(
            num_steps,
            validate_every,
            patience=patience,
            max_seconds=max_seconds,
            checkpoint=checkpoint,
            checkpoint_every=checkpoint_every,
            resume=resume,
            progress=progress,
            name="flow map",
        )


def _checked(flow_map: FlowMap, data: Transitions) -> TransitionRows:
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
    for index in range(flow_map.event_dim):
        low, high = flow_map.walls.domain(index)
        beyond = (x0[:, index] < low) | (x0[:, index] > high)
        if flow_map.periods[index] is None and bool(beyond.any()):
            raise ValueError(
                f"{int(beyond.sum())} initial states of the data lie outside the boundaries of coordinate {index}, "
                f"[{low:.6g}, {high:.6g}]; start trajectories inside, or give the map the boundaries of the simulation"
            )
    t = t.expand(len(x0))
    with torch.no_grad():
        paths = [
            flow_map.path(x0[i : i + CHUNK], t[i : i + CHUNK], None if params is None else params[i : i + CHUNK])
            for i in range(0, len(x0), CHUNK)
        ]
    return TransitionRows(x0, t, data.state, exited, params, torch.cat(paths))


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
