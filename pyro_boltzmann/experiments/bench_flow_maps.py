"""What an update of a pseudo-reversible flow costs, beside the published loss and its own matrix products, and what a
draw of a flow map costs, beside simulation."""

from __future__ import annotations

import math
import os
import statistics
import time
from collections.abc import Callable, Mapping
from functools import partial

import torch
from torch import Tensor

from pyro_boltzmann.experiments.abc_speed import Scheme
from pyro_boltzmann.experiments.bench_timing import measure, ratio
from pyro_boltzmann.sde import FlowMap, TransitionData
from pyro_boltzmann.sde.systems import abc_flow
from pyro_boltzmann.transforms import PseudoReversibleFlow

__all__ = ["flow_map_costs", "published_loss"]

WIDTH = 512
UPDATE_ROWS, UPDATE_DIM, UPDATE_SECONDS = 5000, 3, 0.7
OVERHEAD_ROWS = 500
OVERHEADS = ((3, None, None), (10, 7.0, None), (30, 12.0, None), (30, 12.0, 4))
"""Dimension, the largest ratio asked for, and the probes of the gradient."""
FLOW_MAP_REPEATS = 7
DRAWS, DRAWS_REPEATS = 16_384, 3
DRAWS_A_SECOND, DRAWS_RATIO = 120_000, 10.0

Loss = Callable[[], Tensor]


def flow_map_costs() -> list[str]:
    """Rows: a whole update, the price of the determinant as the dimension grows, and draws of the ABC flow."""
    return [
        f"pseudo-reversible flow, two hidden layers of {WIDTH}, CPU seconds, {FLOW_MAP_REPEATS} repeats",
        *_update(),
        *_overheads(),
        "",
        f"ABC flow, {DRAWS:,} draws, draws a second of wall time, best of {DRAWS_REPEATS}",
        *_draws(),
        "",
    ]


def _update() -> list[str]:
    flow, x0, y = _flow(UPDATE_ROWS, UPDATE_DIM)
    optimizer = torch.optim.Adam(flow.parameters())
    flops = _flops(UPDATE_ROWS, UPDATE_DIM)
    times = measure(
        {
            "ours": partial(_step, flow, partial(flow.loss, x0, y), optimizer),
            "published loss": partial(_step, flow, partial(published_loss, flow, x0, y), optimizer),
            "its matrix products alone": partial(_products, flops, UPDATE_ROWS * UPDATE_DIM),
        },
        repeats=FLOW_MAP_REPEATS,
    )
    least, median = min(times["ours"]), statistics.median(times["ours"])
    met = "met" if max(least, median) <= UPDATE_SECONDS else "short"
    lines = [f" an update on {UPDATE_ROWS:,} rows in {UPDATE_DIM} dimensions, {flops / 1e9:.0f} GFLOP of products"]
    lines += _rows(times)
    lines[1] += f"  asked: at most {UPDATE_SECONDS}, {met}"
    lines.append(f"  {'ratio to the published loss':<42} {ratio(times['ours'], times['published loss'], None)}")
    lines.append(f"  {'ratio to products alone':<42} {ratio(times['ours'], times['its matrix products alone'], None)}")
    return lines


def _overheads() -> list[str]:
    lines = [f" loss and gradient on {OVERHEAD_ROWS} rows, with the determinant against without"]
    for dim, asked, probes in OVERHEADS:
        flow, x0, y = _flow(OVERHEAD_ROWS, dim, probes)
        calls: dict[str, Callable[[], object]] = {
            "with": partial(_step, flow, partial(flow.loss, x0, y)),
            "without": partial(_step, flow, partial(_without_determinant, flow, x0, y)),
        }
        if probes is None:
            calls["published"] = partial(_step, flow, partial(published_loss, flow, x0, y))
        times = measure(calls, repeats=FLOW_MAP_REPEATS)
        name = f"d = {dim}" if probes is None else f"d = {dim}, gradient from {probes} probes"
        lines.append(f"  {f'{name}, ours':<42} {ratio(times['with'], times['without'], asked)}")
        if probes is None:
            lines.append(f"  {f'{name}, published':<42} {ratio(times['published'], times['without'], None)}")
            floor = _flops(OVERHEAD_ROWS, dim) / _flops(OVERHEAD_ROWS, dim, determinant=False)
            lines.append(f"  {f'{name}, by matrix products':<42} {floor:7.2f}")
    return lines


def _draws() -> list[str]:
    """On one thread, and on all cores: an untrained flow map costs what a trained one does."""
    system = abc_flow()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        flow_map = FlowMap.for_sde(system.sde, system.time, periods=[2.0 * math.pi] * system.sde.event_dim).eval()
        x0 = system.initial.sample((DRAWS,))
        times = torch.full((DRAWS,), system.time)
        nobody = torch.zeros(DRAWS, dtype=torch.bool)
        flow_map.standardise(TransitionData(x0, times, x0 + torch.randn_like(x0), nobody))
        calls: dict[str, Callable[[], object]] = {"flow map": lambda: flow_map.sample(x0, system.time)}
        for scheme in (Scheme("euler", system.step_size), Scheme("euler", 0.05), Scheme("runge_kutta", 0.2)):
            calls[scheme.label] = partial(scheme.ends(system), x0)
        threads = torch.get_num_threads()
        lines = []
        try:
            for number in sorted({1, os.cpu_count() or 1}):
                torch.set_num_threads(number)
                lines += _speeds(f" {number} thread{'s' if number > 1 else ''}", calls)
        finally:
            torch.set_num_threads(threads)
    return lines


def _speeds(title: str, calls: Mapping[str, Callable[[], object]]) -> list[str]:
    speeds = dict.fromkeys(calls, 0.0)
    for _ in range(DRAWS_REPEATS):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            speeds[name] = max(speeds[name], DRAWS / (time.perf_counter() - start))
    ours = speeds["flow map"]
    met = "met" if ours >= DRAWS_A_SECOND else "short"
    lines = [title, f"  {'flow map':<42} {ours:9,.0f}  asked: at least {DRAWS_A_SECOND:,}, {met}"]
    for number, (name, speed) in enumerate(list(speeds.items())[1:]):
        line = f"  {name:<42} {speed:9,.0f}  the map is {ours / speed:.1f} times as fast"
        if number == 0:
            line += f"  asked: at least {DRAWS_RATIO:g}, {'met' if ours / speed >= DRAWS_RATIO else 'short'}"
        lines.append(line)
    return lines


def _rows(times: dict[str, list[float]]) -> list[str]:
    return [f"  {key:<42} {min(row):7.3f}  ({statistics.median(row):.3f})" for key, row in times.items()]


def _flow(rows: int, dim: int, probes: int | None = None) -> tuple[PseudoReversibleFlow, Tensor, Tensor]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        flow = PseudoReversibleFlow(dim, hidden_dims=(WIDTH, WIDTH), probes=probes)
        x0, y = torch.randn(rows, dim), torch.randn(rows, dim)
    return flow, x0, y


def _step(flow: PseudoReversibleFlow, loss: Loss, optimizer: torch.optim.Optimizer | None = None) -> None:
    flow.zero_grad()
    with torch.enable_grad():
        loss().backward()
    if optimizer is not None:
        optimizer.step()


def _without_determinant(flow: PseudoReversibleFlow, x0: Tensor, y: Tensor) -> Tensor:
    z = flow.h(x0, y)
    back = (flow.g(x0, z) - y).square().sum(-1)
    loss: Tensor = (0.5 * z.square().sum(-1) + flow.penalty * back).mean()
    return loss


def published_loss(flow: PseudoReversibleFlow, x0: Tensor, y: Tensor) -> Tensor:
    r"""The loss of Yang et al. (arXiv 2306.05580) as published: a reverse pass for each component of
    :math:`z = h(x_0, y)` with the graph kept, the determinant, then the logarithm of its absolute value.

    :param flow: its networks, in units of which y is already.
    """
    y = y.detach().requires_grad_()
    z = flow.h(x0, y)
    rows = [torch.autograd.grad(z[:, i].sum(), y, create_graph=True)[0] for i in range(flow.dim)]
    log_det = torch.stack(rows, 1).det().abs().log()
    negative = 0.5 * z.square().sum(-1) + 0.5 * flow.dim * math.log(2 * math.pi) - log_det
    loss: Tensor = (negative + flow.penalty * (flow.g(x0, z) - y).square().sum(-1)).mean()
    return loss


def _flops(rows: int, dim: int, *, determinant: bool = True) -> float:
    """Multiplications and additions of the matrix products of loss and gradient: each product of the forward pass has
    two in the backward pass, h's first but one, and the Jacobian repeats h's last two for ``dim`` rows a row."""
    outer = 2 * dim * WIDTH
    inner = 3 * (WIDTH * WIDTH + dim * WIDTH)
    return 2.0 * rows * (5 * outer + 2 * inner + (dim * inner if determinant else 0))


def _products(flops: float, rows: int) -> None:
    """As many operations in products of the size of the largest ones."""
    left, right = torch.ones(rows, WIDTH), torch.ones(WIDTH, WIDTH)
    out = torch.empty(rows, WIDTH)
    for _ in range(max(1, round(flops / (2.0 * rows * WIDTH * WIDTH)))):
        torch.mm(left, right, out=out)
