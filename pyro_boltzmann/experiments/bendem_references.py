"""Two independent sets of reference samples: one to score a sampler against, both for the floor of that score."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from pyro_boltzmann.diagnostics.atomic import write_atomically
from pyro_boltzmann.energies.catalogue import Target
from pyro_boltzmann.energies.evaluation import energy_value
from pyro_boltzmann.exceptions import CheckpointError
from pyro_boltzmann.experiments.reference_draws import draw_by_smc
from pyro_boltzmann.experiments.run_metrics import ExactDraws, stream_seed

__all__ = ["References", "keep_references"]

SETS = ("first", "second")
FEWEST_PARTICLES = 300
"""Of a reference run: with fewer, sequential Monte Carlo may lose part of its target."""


@dataclass(frozen=True)
class References:
    """Two independent sets ``(n, dim)`` with their energies; exact, or from two runs of sequential Monte Carlo."""

    first: ExactDraws
    second: ExactDraws
    exact: bool


@torch.no_grad()
def keep_references(target: Target, number: int, seed: int, path: Path, *, proposal: float) -> References | None:
    """Draw the sets, or read them where they were drawn before; ``None`` for ``number = 0``.

    :param number: draws in each set.
    :param path: the file that keeps them.
    :param proposal: standard deviation of the Gaussian that sequential Monte Carlo starts from, where there is no exact
        sampler.
    :raises CheckpointError: if the file is of other samples.
    """
    if number == 0:
        return None
    identity = {"target": target.target_hash, "number": str(number), "seed": str(seed)}
    if path.exists():
        sets = _read(path, identity)
    else:
        sets = [_draw(target, number, stream_seed(seed, which), proposal) for which in SETS]
        tensors = dict(zip(SETS, sets, strict=True))
        write_atomically(path, lambda temporary: save_file(tensors, temporary, metadata=identity))
    first, second = (ExactDraws(z, energy_value(target.energy, z)) for z in sets)
    return References(first, second, target.has_exact_sampler)


def _draw(target: Target, number: int, seed: int, proposal: float) -> Tensor:
    if target.has_exact_sampler:
        return target.sample(number, generator=torch.Generator().manual_seed(seed), dtype=torch.get_default_dtype())
    return draw_by_smc(target, number, seed, scale=proposal, num_samples=max(FEWEST_PARTICLES, number))


def _read(path: Path, identity: dict[str, str]) -> list[Tensor]:
    try:
        with safe_open(path, framework="pt") as file:
            known = file.metadata() == identity
            sets = [file.get_tensor(which) for which in SETS]
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path} cannot be read ({error}); delete it to draw its samples again") from error
    if not known:
        raise CheckpointError(f"{path} holds reference samples of another run; choose another --out, or delete it")
    return sets
