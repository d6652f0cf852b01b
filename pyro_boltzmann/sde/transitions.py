"""Drawing training data for flow maps: simulated in blocks, resumed after an interruption."""

from __future__ import annotations

import time as clock
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

from pyro_boltzmann.exceptions import CheckpointError, ShapeError
from pyro_boltzmann.sde.equation import SDE
from pyro_boltzmann.sde.simulation import simulate
from pyro_boltzmann.sde.transition_data import TransitionData, read_transitions, write_transitions

__all__ = ["draw_transitions"]


@torch.no_grad()
def draw_transitions(
    sde: SDE,
    initial: Any,
    time: float | tuple[float, float],
    num_pairs: int,
    *,
    step_size: float,
    params: Any = None,
    scheme: str = "euler",
    seed: int = 0,
    block_size: int = 16384,
    checkpoint: str | Path | None = None,
    save_seconds: float = 30.0,
    progress: bool = False,
) -> TransitionData:
    r"""Draw initial states, follow each for a time, and keep both ends.

    Blocks of trajectories have random numbers of their own, which follow from ``seed`` and the number of the block. So
    an interrupted run that is started again gives the same data as one that was not, and whole blocks are the
    same in a longer run, which continues from the checkpoint of a shorter one. Torch's global generators stay as they
    were.

    :param initial: a distribution with event shape ``(d,)``.
    :param time: one time for all, or the ends of an interval in which times are uniform.
    :param num_pairs: how many.
    :param step_size: the longest step, as in :func:`simulate`.
    :param params: a distribution with event shape ``(param_dim,)``, or one value ``(param_dim,)`` for all.
    :param scheme: as in :func:`simulate`.
    :param seed: of everything drawn.
    :param block_size: trajectories of a block.
    :param checkpoint: a file that keeps what is done, and at the end all of it (:meth:`TransitionData.load`).
    :param save_seconds: the time between two writings of the checkpoint.
    :param progress: whether to show a bar.
    :raises CheckpointError: if the checkpoint holds other data; the message names what differs.
    :raises ShapeError: if an initial law or parameters have the wrong event shape.
    :raises ValueError: if a number is not usable; see also :func:`simulate`.
    :raises SolverError: if states become inf or NaN; what was done before is in the checkpoint.

    >>> import pyro.distributions as dist
    >>> decay = SDE(lambda x: -x, 0.1, event_dim=2)
    >>> start = dist.Normal(0.0, 1.0).expand([2]).to_event(1)
    >>> data = draw_transitions(decay, start, (0.1, 1.0), 100, step_size=0.05)
    >>> data.x0.shape, data.time.shape, data.state.shape
    (torch.Size([100, 2]), torch.Size([100]), torch.Size([100, 2]))
    """
    if num_pairs < 1 or block_size < 1:
        raise ValueError(f"expected num_pairs >= 1 and block_size >= 1, got {num_pairs} and {block_size}")
    source = _Source(sde, initial, _time_interval(time), params, seed)
    settings = {
        "seed": seed,
        "time": list(source.interval),
        "step_size": step_size,
        "scheme": scheme,
        "block_size": block_size,
        "equation": repr(sde),
    }
    keeper = _Keeper(checkpoint, settings, source, save_seconds)
    keeper.resume(num_pairs, block_size)
    with tqdm(total=num_pairs, initial=keeper.count, disable=not progress, unit="pair") as bar:
        try:
            while keeper.count < num_pairs:
                number = min(block_size, num_pairs - keeper.count)
                part = source.follow(keeper.count // block_size, block_size, number, step_size, scheme)
                keeper.add(part)
                bar.update(number)
        finally:
            # Also on Ctrl-C and errors.
            keeper.save()
    return TransitionData.cat(keeper.parts)[:num_pairs]


class _Source:
    """Initial states, times and parameters of a block."""

    def __init__(self, sde: SDE, initial: Any, interval: tuple[float, float], params: Any, seed: int) -> None:
        if tuple(initial.event_shape) != (sde.event_dim,) or tuple(initial.batch_shape) != ():
            raise ShapeError(
                f"the initial law must have event shape ({sde.event_dim},) and no batch shape, got "
                f"{tuple(initial.event_shape)} and {tuple(initial.batch_shape)}; call .to_event(1) on independent ones"
            )
        if (sde.param_dim > 0) != (params is not None):
            raise ShapeError(f"the equation has param_dim={sde.param_dim}, got params={params}")
        if params is not None:
            shape = params.shape if isinstance(params, Tensor) else params.event_shape
            if tuple(shape) != (sde.param_dim,):
                raise ShapeError(f"params must have shape ({sde.param_dim},) for one draw, got {tuple(shape)}")
        self.sde, self.initial, self.interval, self.params, self.seed = sde, initial, interval, params, seed

    def draw(self, block: int, number: int) -> tuple[Tensor, Tensor, Tensor | None]:
        with _seeded(_block_seed(self.seed, block, "start")):
            x0 = self.initial.sample((number,))
            low, high = self.interval
            times = low + (high - low) * torch.rand(number, dtype=x0.dtype, device=x0.device)
            values = None
            if isinstance(self.params, Tensor):
                values = self.params.to(x0).expand(number, -1)
            elif self.params is not None:
                values = self.params.sample((number,)).to(x0)
        return x0, times.clamp(low, high), values

    def follow(self, block: int, size: int, number: int, step_size: float, scheme: str) -> TransitionData:
        """The first ``number`` transitions of a block."""
        x0, times, values = self.draw(block, size)
        x0, times, values = x0[:number], times[:number], None if values is None else values[:number]
        low, high = self.interval
        result = simulate(
            self.sde,
            x0,
            low if low == high else times,
            step_size=step_size,
            params=values,
            scheme=scheme,
            seed=_block_seed(self.seed, block, "noise"),
        )
        return TransitionData(x0, times, result.state, result.exited, values)

    def probe(self) -> Tensor:
        """Numbers that are others for other laws and coefficients: those of the first eight trajectories."""
        x0, times, values = self.draw(0, 8)
        drift, diffusion = self.sde.coefficients(x0, values)
        parts = [x0, times, drift, torch.as_tensor(diffusion).to(x0)] + ([] if values is None else [values])
        return torch.cat([part.detach().cpu().double().flatten() for part in parts])


class _Keeper:
    """What is done, and its checkpoint."""

    def __init__(self, path: str | Path | None, settings: dict[str, Any], source: _Source, save_seconds: float) -> None:
        self.path = None if path is None else Path(path)
        self.settings, self.save_seconds = settings, save_seconds
        self.probe = torch.empty(0) if path is None else source.probe()
        self.parts: list[TransitionData] = []
        self.count = self.saved = 0
        self.saved_at = clock.monotonic()

    def add(self, part: TransitionData) -> None:
        self.parts.append(part)
        self.count += len(part)
        if clock.monotonic() - self.saved_at > self.save_seconds:
            self.save()

    def save(self) -> None:
        if self.path is not None and self.count > self.saved:
            self.parts = [TransitionData.cat(self.parts)]
            write_transitions(self.path, {**self.parts[0].tensors(), "probe": self.probe}, self.settings)
            self.saved, self.saved_at = self.count, clock.monotonic()

    def resume(self, num_pairs: int, block_size: int) -> None:
        """Take up what the checkpoint has: all that is asked for, or its whole blocks."""
        if self.path is None or not self.path.exists():
            return
        tensors, stored = read_transitions(self.path)
        pairs = [(name, stored.get(name), now) for name, now in self.settings.items()]
        differing = [f"{name} was {was}, is {now}" for name, was, now in pairs if was != now]
        if not differing and not _is_same(tensors["probe"], self.probe):
            differing = ["the initial law, the parameters or the values of drift and diffusion are others"]
        if differing:
            raise CheckpointError(
                f"{self.path} holds other transitions: {'; '.join(differing)}; name another file, or delete this one"
            )
        found = TransitionData.load(self.path)
        self.count = self.saved = num_pairs if len(found) >= num_pairs else len(found) // block_size * block_size
        if self.count:
            self.parts = [found[: self.count]]


def _is_same(was: Tensor, now: Tensor) -> bool:
    return was.shape == now.shape and torch.allclose(was, now, rtol=1e-5, atol=1e-7, equal_nan=True)


def _time_interval(time: float | tuple[float, float]) -> tuple[float, float]:
    low, high = time if isinstance(time, tuple) else (time, time)
    if not 0.0 <= low <= high < float("inf") or high == 0.0:
        raise ValueError(f"time must be a positive number or (low, high) with 0 <= low <= high, got {time}")
    return float(low), float(high)


def _block_seed(seed: int, block: int, purpose: str) -> int:
    words = np.random.SeedSequence([seed, block, *purpose.encode()]).generate_state(2, np.uint32)
    return int(words[0]) << 31 | int(words[1]) >> 1


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        yield
