"""Importance sampling with any guide: weighted draws and nothing else kept."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from pyro import poutine
from pyro.infer.importance import vectorized_importance_weights
from torch import Tensor
from tqdm.auto import tqdm

from pyro_boltzmann.diagnostics.weighted_samples import WeightedSamples
from pyro_boltzmann.diagnostics.weights import kish_ess
from pyro_boltzmann.energies.evaluation import count_evaluations
from pyro_boltzmann.energies.memo import EnergyMemo
from pyro_boltzmann.exceptions import NonFiniteEnergyError
from pyro_boltzmann.guides import AutoStochasticFlow, WeightedPath
from pyro_boltzmann.stochastic.block import StochasticBlock
from pyro_boltzmann.stochastic.info import BlockInfo

__all__ = ["importance_sample"]


@torch.no_grad()
def importance_sample(
    model: Callable[..., Any],
    guide: Callable[..., Any],
    *args: Any,
    num_samples: int = 10_000,
    batch_size: int | None = None,
    seed: int | None = None,
    progress: bool = False,
    save_to: str | Path | None = None,
    **kwargs: Any,
) -> WeightedSamples:
    r"""Draw from a guide and weight by the model, :math:`\log w_i = \log p(x_i) - \log q(x_i)`, batched, without a graph.

    For an :class:`~pyro_boltzmann.AutoStochasticFlow` paths are streamed and the weights are exact path weights; any other
    Pyro guide goes through Pyro's vectorised importance weights.

    :param model: a Pyro program.
    :param guide: a guide for it.
    :param args: the model's arguments.
    :param num_samples: N >= 1.
    :param batch_size: draws at a time; the default suits the device's cache.
    :param seed: draw from a generator of its own, leaving the global one alone.
    :param progress: show a progress bar.
    :param save_to: netCDF file to save the draws to, also when they turn out to be unusable.
    :return: weighted draws of the model's sites; ``info["path_ess"]`` holds the ESS after each block that has an energy,
        ``info["blocks"]`` their acceptance and divergences.
    :raises ValueError: for ``num_samples < 1``.
    :raises NonFiniteEnergyError: if the energy is NaN or -inf at an end state. The draws are saved first, if ``save_to``
        was given, and are on the error in any case.

    >>> import pyro_boltzmann as pb, pyro.distributions.transforms as T
    >>> model = pb.BoltzmannModel(lambda x: 0.5 * x.square().sum(-1), 2)
    >>> guide = pb.AutoStochasticFlow(model, lambda energy, dim: [])
    >>> draws = pb.importance_sample(model, guide, num_samples=1000, seed=0)
    >>> round(draws.log_normalizer, 4), draws.ess  # log 2 pi, and an exact guide
    (1.8379, 1.0)
    """
    if isinstance(num_samples, bool) or not isinstance(num_samples, int) or num_samples < 1:
        raise ValueError(f"num_samples must be a positive integer, got {num_samples!r}")
    if batch_size is not None and batch_size < 1:
        raise ValueError(f"batch_size must be positive, got {batch_size}")
    draw = _PathDrawer(guide) if isinstance(guide, AutoStochasticFlow) else _TraceDrawer(model, guide)
    start, cpu_start = time.perf_counter(), time.process_time()
    with count_evaluations() as count, _seeded(seed, guide), tqdm(total=num_samples, disable=not progress) as bar:
        done = 0
        while done < num_samples:
            size = min(batch_size or draw.default_batch, num_samples - done)
            draw(size, args, kwargs)
            done += size
            bar.update(size)
        samples, log_weights, log_q, energy, info = draw.collect(args, kwargs)
    info["cpu_seconds"] = time.process_time() - cpu_start
    draws = WeightedSamples(
        samples,
        log_weights,
        log_q=log_q,
        energy=energy,
        evaluations={"sample": count.to_dict()},
        seconds=time.perf_counter() - start,
        info=info,
    )
    if save_to is not None:
        draws.save(save_to)
    _refuse_nonfinite(draws, guide, save_to)
    return draws


class _PathDrawer:
    """Streams the paths of a stochastic flow, batch by batch."""

    def __init__(self, guide: AutoStochasticFlow) -> None:
        self.guide = guide
        self.batches: list[WeightedPath] = []
        self.trails: list[dict[int, Tensor]] = []
        on_cuda = any(p.is_cuda for p in guide.parameters())
        self.default_batch = 2**20 if on_cuda else 2**14

    def __call__(self, size: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        trail: dict[int, Tensor] = {}
        ends: list[Tensor] = []

        def observe(position: int, block: Any, x: Tensor, log_ratio: Tensor, memo: EnergyMemo) -> None:
            ends[:] = [log_ratio]
            if isinstance(block, StochasticBlock) and hasattr(block, "energy"):
                value = memo.known_value(block.energy)
                if value is not None:
                    trail[position] = log_ratio - value

        path = self.guide.sample_paths(size, *args, observe=observe, **kwargs)
        log_base = path.log_q + ends[0] if ends else path.log_q
        self.trails.append({position: value - log_base for position, value in trail.items()})
        self.batches.append(path)

    def collect(
        self, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[dict[str, Tensor], Tensor, Tensor, Tensor, dict[str, Any]]:
        z, log_weight, log_q, energy = (torch.cat([b[i] for b in self.batches]) for i in range(4))
        # A path that overflowed has left the support of any float: its weight is zero, and it is counted.
        diverged = ~z.isfinite().all(-1) | log_q.isnan() | (log_q == torch.inf)
        log_weight = torch.where(diverged, -torch.inf, log_weight)
        energy = torch.where(diverged, torch.inf, energy)
        blocks = [_pool(list(infos)) for infos in zip(*(b.infos for b in self.batches), strict=True)]
        info = {
            "blocks": [None if b is None else b.to_dict() for b in blocks],
            "block_names": [type(block).__name__ for block, _ in self.guide.get_transform()._directed()],
            "path_ess": self._path_ess(),
            "diverged": int(diverged.sum()),
            "z": z,
        }
        return self.guide.constrain(z), log_weight, log_q, energy, info

    def _path_ess(self) -> dict[int, float]:
        trail = {k: torch.cat([t[k] for t in self.trails]) for k in self.trails[0]}
        return {k: kish_ess(v.nan_to_num(nan=-torch.inf)) for k, v in trail.items() if bool(v.isfinite().any())}


class _TraceDrawer:
    """Any other guide, through Pyro's own vectorised weights."""

    default_batch = 2**14

    def __init__(self, model: Callable[..., Any], guide: Callable[..., Any]) -> None:
        self.model = model
        self.guide = guide
        self.samples: list[dict[str, Tensor]] = []
        self.weights: list[tuple[Tensor, Tensor]] = []
        self.plates: int | None = None

    def __call__(self, size: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if self.plates is None:
            single = poutine.trace(self.model).get_trace(*args, **kwargs)
            nesting = [len(site["cond_indep_stack"]) for site in single.nodes.values() if site["type"] == "sample"]
            batch = [len(s["fn"].batch_shape) for s in single.nodes.values() if s["type"] == "sample" and not s["is_observed"]]
            self.plates = max([*nesting, *batch, 0])
            self.shapes = {name: single.nodes[name]["value"].shape for name in single.stochastic_nodes}
        log_weights, model_trace, guide_trace = vectorized_importance_weights(
            self.model, self.guide, *args, num_samples=size, max_plate_nesting=self.plates, normalized=False, **kwargs
        )
        self.weights.append((log_weights.double(), _log_prob(guide_trace, size)))
        self.samples.append(
            {name: model_trace.nodes[name]["value"].reshape(size, *shape) for name, shape in self.shapes.items()}
        )

    def collect(
        self, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[dict[str, Tensor], Tensor, Tensor, Tensor, dict[str, Any]]:
        log_weights = torch.cat([w for w, _ in self.weights])
        log_q = torch.cat([q for _, q in self.weights])
        samples = {name: torch.cat([s[name] for s in self.samples]) for name in self.shapes}
        return samples, log_weights, log_q, -(log_weights + log_q), {}


def _log_prob(trace: poutine.Trace, size: int) -> Tensor:
    total: Tensor | float = 0.0
    for site in trace.nodes.values():
        if site["type"] == "sample":
            log_prob = site["log_prob"].double()
            total = total + log_prob.reshape(size, -1).sum(-1)
    return torch.as_tensor(total)


def _pool(infos: list[BlockInfo | None]) -> BlockInfo | None:
    total: BlockInfo | None = None
    for info in infos:
        if info is not None:
            total = info if total is None else total + info
    return total


def _refuse_nonfinite(draws: WeightedSamples, guide: Any, save_to: str | Path | None) -> None:
    assert draws.energy is not None
    bad = draws.energy.isnan() | draws.energy.isneginf() | draws.log_weights.isnan()
    count = int(bad.sum())
    if count:
        worst = "NaN" if bool(draws.energy.isnan().any()) else "-inf"
        sites = ", ".join(repr(name) for name in draws.samples)
        where = f"; all draws were saved to {save_to}" if save_to is not None else "; all draws are on this error's .samples"
        raise NonFiniteEnergyError(
            f"the energy is {worst} at {count} of {len(draws)} end states (latent sites {sites}){where}. An energy must be "
            "finite or +inf: look for log(0), 0 * inf, or a density that is not normalisable (energy unbounded below)",
            count=count,
            samples=draws,
            saved_to=None if save_to is None else str(save_to),
        )


@contextmanager
def _seeded(seed: int | None, guide: Any) -> Iterator[None]:
    if seed is None:
        yield
        return
    devices = sorted({p.device.index or 0 for p in guide.parameters() if p.is_cuda}) if hasattr(guide, "parameters") else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        yield
