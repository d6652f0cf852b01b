"""Importance sampling with any guide: weighted draws and nothing else kept."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from tqdm.auto import tqdm

from pyro_boltzmann.diagnostics.weighted_samples import WeightedSamples
from pyro_boltzmann.energies.evaluation import count_evaluations
from pyro_boltzmann.exceptions import NonFiniteEnergyError
from pyro_boltzmann.guides import AutoStochasticFlow
from pyro_boltzmann.infer.drawers import PathDrawer, TraceDrawer
from pyro_boltzmann.infer.output import check_writable, save_without_latents
from pyro_boltzmann.infer.path_resampling import PathResampler
from pyro_boltzmann.infer.preparation import prepare_guide
from pyro_boltzmann.infer.randomness import seeded

__all__ = ["importance_sample"]


@torch.no_grad()
def importance_sample(
    model: Callable[..., Any],
    guide: Callable[..., Any],
    *args: Any,
    num_samples: int = 10_000,
    num_chains: int = 1,
    batch_size: int | None = None,
    resample_below: float | None = None,
    resampler: str = "systematic",
    seed: int | None = None,
    progress: bool = False,
    save_to: str | Path | None = None,
    **kwargs: Any,
) -> WeightedSamples:
    r"""Draw from a guide and weight by the model, :math:`\log w_i = \log p(x_i) - \log q(x_i)`, batched, without a
    graph.

    For an :class:`~pyro_boltzmann.AutoStochasticFlow` paths are streamed and the weights are exact path weights; any
    other Pyro guide is run in a vectorised plate, after one run of its own to learn how the plates nest.

    :param model: a Pyro program.
    :param guide: a guide for it.
    :param args: the model's arguments.
    :param num_samples: N >= 1, over all chains.
    :param num_chains: report the draws as so many independent replicates; must divide N.
    :param batch_size: draws at a time; the default suits the device's cache.
    :param resample_below: resample the paths of a stochastic flow between blocks, wherever their ESS falls below this
        fraction (:class:`~.path_resampling.PathResampler`). Z stays unbiased; draws with a common ancestor are not
        independent. Each batch is a population of its own, by default one a chain.
    :param resampler: a name in ``RESAMPLERS``.
    :param seed: draw from this seed and leave the global generator as it was; otherwise the global generator is used.
    :param progress: show a progress bar.
    :param save_to: netCDF file to save the draws to, also when they turn out to be unusable.
    :return: weighted draws of the model's sites. From a stochastic flow, ``info`` holds ``"path_ess"`` (the ESS after
        each block whose energy is known there, by position; a :class:`~pyro_boltzmann.stochastic.ResamplingPoint` is
        asked for its own only with ``resample_below``, because that costs evaluations and, where it is random, other
        random numbers; one of a learned density at a cut of an :class:`~pyro_boltzmann.AutoDiffusion` costs none and is
        always known), ``"blocks"`` (their acceptance and divergences, with
        ``"block_names"`` and their positions between reference and target in ``"annealing"``), ``"diverged"`` (how many
        paths overflowed; their weight is zero), ``"z"`` (unconstrained latents; not saved) and, if asked for,
        ``"resampled"`` (how many batches were, by position).
    :raises ValueError: for ``num_samples < 1``, or chains that do not divide it.
    :raises ModelError: if the model subsamples its data, or is no energy for a stochastic flow.
    :raises OutputError: before anything is drawn, if ``save_to`` cannot be written.
    :raises NonFiniteEnergyError: if the energy is NaN or -inf at an end state. The draws are saved first, if
        ``save_to`` was given, and are on the error in any case.

    >>> import pyro_boltzmann as pb, pyro.distributions.transforms as T
    >>> model = pb.BoltzmannModel(lambda x: 0.5 * x.square().sum(-1), 2)
    >>> guide = pb.AutoStochasticFlow(model, lambda energy, dim: [])
    >>> draws = pb.importance_sample(model, guide, num_samples=1000, seed=0)
    >>> round(draws.log_normalizer, 4), round(draws.ess, 4)  # log 2 pi, and an exact guide
    (1.8379, 1.0)
    """
    _check_counts(num_samples, num_chains, batch_size)
    if save_to is not None:
        check_writable(save_to)
    prepare_guide(guide, args, kwargs, seed)
    redirect = None
    if resample_below is not None:
        redirect = PathResampler(resample_below, resampler)
        if not isinstance(guide, AutoStochasticFlow):
            raise TypeError(
                f"resample_below needs a guide with a path to resample in, an AutoStochasticFlow; got "
                f"{type(guide).__name__}"
            )
        length = num_samples // num_chains
        batch_size = length if batch_size is None else batch_size
        if length % batch_size:
            raise ValueError(f"with resampling, batch_size={batch_size} must divide the {length} draws of a chain")
    draw = PathDrawer(guide, redirect) if isinstance(guide, AutoStochasticFlow) else TraceDrawer(model, guide)
    start, cpu_start = time.perf_counter(), time.process_time()
    with count_evaluations() as count, seeded(seed), tqdm(total=num_samples, disable=not progress) as bar:
        done = 0
        while done < num_samples:
            size = min(batch_size or draw.default_batch, num_samples - done)
            draw(size, args, kwargs)
            done += size
            bar.update(size)
        drawn = draw.collect()
    draws = WeightedSamples(
        drawn.samples,
        drawn.log_weights,
        num_chains=num_chains,
        log_q=drawn.log_q,
        energy=drawn.energy,
        roots=drawn.roots,
        evaluations={"sample": count.to_dict()},
        seconds=time.perf_counter() - start,
        info={**drawn.info, "cpu_seconds": time.process_time() - cpu_start},
    )
    if save_to is not None:
        save_without_latents(draws, save_to)
    _refuse_nonfinite(draws, save_to)
    return draws


def _check_counts(num_samples: int, num_chains: int, batch_size: int | None) -> None:
    if isinstance(num_samples, bool) or not isinstance(num_samples, int) or num_samples < 1:
        raise ValueError(f"num_samples must be a positive integer, got {num_samples!r}")
    if num_chains < 1 or num_samples % num_chains:
        raise ValueError(f"num_chains must be positive and divide num_samples={num_samples}, got {num_chains}")
    if batch_size is not None and batch_size < 1:
        raise ValueError(f"batch_size must be positive, got {batch_size}")


def _refuse_nonfinite(draws: WeightedSamples, save_to: str | Path | None) -> None:
    assert draws.energy is not None
    bad = ~(draws.energy > -torch.inf) | draws.log_weights.isnan() | draws.log_weights.isposinf()
    count = int(bad.sum())
    if not count:
        return
    worst = "NaN" if bool(draws.energy.isnan().any()) else "-inf"
    sites = ", ".join(repr(name) for name in draws.samples)
    where = f"all draws were saved to {save_to}" if save_to is not None else "all draws are on this error's .samples"
    raise NonFiniteEnergyError(
        f"the energy is {worst} at {count} of {len(draws)} end states (latent sites {sites}); {where}. An energy must "
        "be finite or +inf: look for log(0), 0 * inf, or a density that is not normalisable (energy unbounded below)",
        count=count,
        samples=draws,
        saved_to=None if save_to is None else str(save_to),
    )
