"""How weighted draws come out of a guide, batch by batch."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from pyro import poutine
from pyro.infer.importance import vectorized_importance_weights
from torch import Tensor

from pyro_boltzmann.diagnostics.weights import kish_ess
from pyro_boltzmann.energies.annealed import AnnealedEnergy
from pyro_boltzmann.energies.evaluation import count_evaluations, record_evaluations
from pyro_boltzmann.energies.memo import EnergyMemo
from pyro_boltzmann.exceptions import ModelError
from pyro_boltzmann.guides import AutoStochasticFlow, WeightedPath
from pyro_boltzmann.infer.path_resampling import PathResampler
from pyro_boltzmann.infer.randomness import cuda_devices
from pyro_boltzmann.stochastic.block import StochasticBlock
from pyro_boltzmann.stochastic.info import BlockInfo

__all__ = ["Drawn", "PathDrawer", "TraceDrawer"]


class Drawn(NamedTuple):
    """All batches together: sites ``(N, *event)``; log weights, log q and energies ``(N,)``; what else is known."""

    samples: dict[str, Tensor]
    log_weights: Tensor
    log_q: Tensor
    energy: Tensor
    info: dict[str, Any]
    roots: Tensor | None = None


class PathDrawer:
    """Streams the paths of a stochastic flow."""

    def __init__(self, guide: AutoStochasticFlow, resampler: PathResampler | None = None) -> None:
        self.guide = guide
        self.resampler = resampler
        self.batches: list[WeightedPath] = []
        self.trails: list[dict[int, Tensor]] = []
        # About a megabyte a tensor: large enough to hide the cost of a call, small enough to stay near the caches.
        dim = 8 if guide.path is None else guide.path.dim
        self.default_batch = 2**20 if cuda_devices(guide) else max(2**12, 2**18 // dim)

    def __call__(self, size: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        trail: dict[int, Tensor] = {}
        ends: list[Tensor] = []

        def observe(position: int, block: Any, x: Tensor, log_ratio: Tensor, memo: EnergyMemo) -> None:
            ends[:] = [log_ratio]
            if isinstance(block, StochasticBlock) and hasattr(block, "energy"):
                value = memo.known_value(block.energy)
                if value is not None:
                    trail[position] = log_ratio - value

        if self.resampler is not None:
            self.batches.append(self.guide.sample_paths(size, *args, resampler=self.resampler, **kwargs))
            return
        path = self.guide.sample_paths(size, *args, observe=observe, **kwargs)
        log_base = path.log_q + ends[0] if ends else path.log_q
        self.trails.append({position: value - log_base for position, value in trail.items()})
        self.batches.append(path)

    def collect(self) -> Drawn:
        """Join the batches."""
        z, log_weights, log_q, energy = (
            torch.cat([getattr(batch, name) for batch in self.batches]) for name in WeightedPath._fields[:4]
        )
        # A path that overflowed has left the support of any float: its weight is zero, and it is counted.
        diverged = ~z.isfinite().all(-1) | ~log_q.isfinite()
        log_weights = torch.where(diverged, -torch.inf, log_weights)
        energy = torch.where(diverged, torch.inf, energy)
        blocks = [_pool(list(infos)) for infos in zip(*(b.infos for b in self.batches), strict=True)]
        layers = [block for block, _ in self.guide.get_transform()._directed()]
        info = {
            "blocks": [None if b is None else b.to_dict() for b in blocks],
            "block_names": [type(layer).__name__ for layer in layers],
            "annealing": [_position(layer) for layer in layers],
            "path_ess": self._path_ess(),
            "diverged": int(diverged.sum()),
            "z": z,
        }
        roots = None
        if self.resampler is not None:
            info["resampled"] = self.resampler.resampled
            if any(self.resampler.resampled.values()):
                roots = torch.cat(self.resampler.roots)
        return Drawn(self.guide.constrain(z), log_weights, log_q, energy, info, roots)

    def _path_ess(self) -> dict[int, float]:
        if self.resampler is not None:
            return {position: sum(values) / len(values) for position, values in self.resampler.ess.items()}
        trails = {k: torch.cat([t[k] for t in self.trails]) for k in self.trails[0]}
        # Draws that cannot be weighted are reported by whoever weighs the end states; here they only count as lost.
        return {
            k: kish_ess(torch.where(v.isfinite(), v, -torch.inf)) for k, v in trails.items() if bool(v.isfinite().any())
        }


class TraceDrawer:
    """Any other guide, through Pyro's own vectorised traces."""

    default_batch = 2**15

    def __init__(self, model: Callable[..., Any], guide: Callable[..., Any]) -> None:
        self.model = model
        self.guide = guide
        self.samples: list[dict[str, Tensor]] = []
        self.terms: list[tuple[Tensor, Tensor]] = []
        self.shapes: dict[str, torch.Size] | None = None
        self.plates = 0

    def __call__(self, size: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        with warnings.catch_warnings():
            # Pyro warns of each batch with an infinite or NaN log_prob; here they are counted and reported once.
            warnings.filterwarnings("ignore", message="Encountered", category=UserWarning)
            if self.shapes is None:
                self._inspect(args, kwargs)
            assert self.shapes is not None
            with count_evaluations() as count:
                _, model_trace, guide_trace = vectorized_importance_weights(
                    self.model,
                    self.guide,
                    *args,
                    num_samples=size,
                    max_plate_nesting=self.plates,
                    normalized=False,
                    **kwargs,
                )
        # A program that holds no energy of ours has counted nothing.
        record_evaluations(max(0, size - count.values))
        self.terms.append((_log_prob(model_trace, size), _log_prob(guide_trace, size)))
        self.samples.append(
            {name: model_trace.nodes[name]["value"].reshape(size, *shape) for name, shape in self.shapes.items()}
        )

    def _inspect(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        # The model is replayed against the guide, because not every model can be drawn from on its own.
        guided = poutine.trace(self.guide).get_trace(*args, **kwargs)
        single = poutine.trace(poutine.replay(self.model, trace=guided)).get_trace(*args, **kwargs)
        _refuse_subsampling(single)
        single = poutine.util.prune_subsample_sites(single)
        sites: list[Any] = [site for site in single.nodes.values() if site["type"] == "sample"]
        frames = [-frame.dim for site in sites for frame in site["cond_indep_stack"] if frame.vectorized]
        self.plates = max([0, *frames, *(len(site["fn"].batch_shape) for site in sites)])
        nodes: Any = single.nodes
        self.shapes = {name: nodes[name]["value"].shape for name in single.stochastic_nodes}

    def collect(self) -> Drawn:
        """Join the batches."""
        assert self.shapes is not None
        log_p, log_q = (torch.cat([pair[i] for pair in self.terms]) for i in range(2))
        samples = {name: torch.cat([s[name] for s in self.samples]) for name in self.shapes}
        return Drawn(samples, log_p - log_q, log_q, -log_p, {})


def _log_prob(trace: poutine.Trace, size: int) -> Tensor:
    """The log density of a vectorised trace, ``(size,)`` in float64."""
    total: Tensor | None = None
    for site in trace.nodes.values():
        if site["type"] == "sample":
            term = site["log_prob"].double().reshape(size, -1).sum(-1)
            total = term if total is None else total + term
    return torch.zeros(size, dtype=torch.float64) if total is None else total


def _refuse_subsampling(trace: poutine.Trace) -> None:
    for site in trace.nodes.values():
        for frame in site["cond_indep_stack"] if site["type"] == "sample" else ():
            if frame.full_size is not None and frame.full_size > frame.size:
                raise ModelError(
                    f"plate '{frame.name}' uses {frame.size} of {frame.full_size} data and makes weights random; "
                    "remove subsample_size (weigh on all data, or on a smaller fixed data set)"
                )


def _position(layer: Any) -> float | None:
    """Where between its reference and its target a block's energy stands."""
    energy = getattr(layer, "energy", None)
    return float(energy.position) if isinstance(energy, AnnealedEnergy) else None


def _pool(infos: list[BlockInfo | None]) -> BlockInfo | None:
    total: BlockInfo | None = None
    for info in infos:
        if info is not None:
            total = info if total is None else total + info
    return total
