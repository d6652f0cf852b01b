"""Training, validation and test configurations of particle targets, by the project's own parallel tempering."""

from __future__ import annotations

import math
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
from pyro_boltzmann.experiments.run_metrics import stream_seed
from pyro_boltzmann.experiments.threads import one_thread
from pyro_boltzmann.infer import parallel_tempering

__all__ = ["CHAINS", "DATA_PLANS", "DataPlan", "ParticleData", "keep_particle_data", "num_shared"]

CHAINS = {"train": 22, "validation": 4, "test": 6}
"""Independent systems of parallel tempering behind each set."""


@dataclass(frozen=True)
class DataPlan:
    """How a target is sampled.

    :ivar scale: standard deviation of the Gaussian start.
    :ivar num_steps: leapfrog steps of a move.
    :ivar thin: rounds between the draws that are kept, of one system.
    :ivar num_warmup: rounds before.
    """

    scale: float
    num_steps: int
    thin: int
    num_warmup: int = 1000


DATA_PLANS = {"dw4": DataPlan(math.sqrt(6.0), 5, 4), "lj13": DataPlan(1.0, 10, 8)}


@dataclass(frozen=True)
class ParticleData:
    """Helmert coordinates in random order: the first n of ``train`` are a training set of size n.

    :ivar train: ``(num_train, dim)``; likewise ``validation`` and ``test``.
    :ivar mean_energy: of all draws behind the sets, weighted alike.
    :ivar mean_energy_error: its standard error, by the differences of the systems.
    :ivar virial: :math:`E[z \\cdot \\nabla u]`, the number of degrees of freedom for draws of the target.
    :ivar virial_error: likewise.
    :ivar seconds: CPU seconds that the draws took, 0.0 for exact draws.
    :ivar evaluations: of the energy, with its gradient, that they took.
    """

    train: Tensor
    validation: Tensor
    test: Tensor
    mean_energy: float
    mean_energy_error: float
    virial: float
    virial_error: float
    seconds: float
    evaluations: float

    @property
    def num_distinct(self) -> dict[str, int]:
        """Distinct rows of each set: a move that is rejected leaves the same row twice."""
        return {name: len(torch.unique(getattr(self, name), dim=0)) for name in CHAINS}


@torch.no_grad()
def keep_particle_data(
    target: Target,
    path: Path,
    *,
    num_train: int,
    num_validation: int,
    num_test: int,
    seed: int,
    plan: DataPlan | None = None,
    progress: bool = False,
) -> ParticleData:
    """Draw the sets, or read them where they were drawn before.

    Exact draws where the target has them. Else each set comes from systems of parallel tempering of its own
    (:data:`CHAINS`), so that no draw is in two sets, nor a relative of one. Rows keep the multiplicity
    with which the systems visited them: to strike out repetitions would change their law.

    A run that is stopped continues from its checkpoint beside ``path``.

    :param path: the file that keeps the sets.
    :param num_train: rows of the training set; likewise the others.
    :param plan: how to sample, :data:`DATA_PLANS` unless given.
    :raises CheckpointError: if the file is of other data.
    :raises ValueError: for a target without exact draws or a plan, or draws that contradict what is known of it.
    """
    sizes = {"train": num_train, "validation": num_validation, "test": num_test}
    if min(sizes.values()) < 1:
        raise ValueError(f"each set needs a row or more, got {sizes}")
    plan = plan or DATA_PLANS.get(target.name)
    if plan is None and not target.has_exact_sampler:
        raise ValueError(f"no plan for {target.name!r}; pass plan=DataPlan(...), or choose from {sorted(DATA_PLANS)}")
    identity = {"target": target.target_hash, "sizes": str(sizes), "seed": str(seed), "plan": str(plan)}
    if path.exists():
        return _read(path, identity)
    path.parent.mkdir(parents=True, exist_ok=True)
    checkpoint = path.with_suffix(".running")
    if target.has_exact_sampler:
        data = _exact(target, sizes, seed)
    else:
        assert plan is not None
        data = _tempered(target, sizes, seed, plan, checkpoint, progress)
    _refuse_wrong_law(target, data)
    tensors = {name: getattr(data, name).contiguous() for name in CHAINS}
    numbers = {name: repr(getattr(data, name)) for name in _NUMBERS}
    write_atomically(path, lambda temporary: save_file(tensors, temporary, metadata={**identity, **numbers}))
    checkpoint.unlink(missing_ok=True)
    return data


def num_shared(first: Tensor, second: Tensor) -> int:
    """How many distinct rows two sets have in common.

    >>> num_shared(torch.tensor([[1.0], [1.0], [2.0]]), torch.tensor([[1.0], [3.0]]))
    1
    """
    distinct = torch.cat([torch.unique(one, dim=0) for one in (first, second)])
    return len(distinct) - len(torch.unique(distinct, dim=0))


_NUMBERS = ("mean_energy", "mean_energy_error", "virial", "virial_error", "seconds", "evaluations")


def _exact(target: Target, sizes: dict[str, int], seed: int) -> ParticleData:
    sets = {
        name: target.sample(
            number,
            generator=torch.Generator().manual_seed(stream_seed(seed, name)),
            dtype=torch.get_default_dtype(),
        )
        for name, number in sizes.items()
    }
    z = torch.cat(list(sets.values()))
    # Every draw is independent: a system of its own.
    return _data(sets, {**_moments(target, z.unsqueeze(1)), "seconds": 0.0, "evaluations": 0.0})


def _tempered(
    target: Target, sizes: dict[str, int], seed: int, plan: DataPlan, checkpoint: Path, progress: bool
) -> ParticleData:
    systems = sum(CHAINS.values())
    length = max(math.ceil(sizes[name] / CHAINS[name]) for name in CHAINS)
    with one_thread():
        draws = parallel_tempering(
            target.energy,
            dim=target.dim,
            proposal=plan.scale,
            num_chains=systems,
            num_samples=systems * length,
            thin=plan.thin,
            num_steps=plan.num_steps,
            num_warmup=plan.num_warmup,
            seed=stream_seed(seed, "particle data"),
            checkpoint=checkpoint,
            progress=progress,
        )
    z = draws.info["z"].reshape(systems, length, target.dim)
    generator = torch.Generator().manual_seed(stream_seed(seed, "order of particle data"))
    sets = {}
    for (name, number), block in zip(sizes.items(), z.split(list(CHAINS.values())), strict=True):
        rows = block.flatten(0, 1)
        sets[name] = rows[torch.randperm(len(rows), generator=generator)[:number]]
    spent = float(sum(part["gradients"] for part in (draws.evaluations or {}).values()))
    return _data(sets, {**_moments(target, z), "seconds": float(draws.info["cpu_seconds"]), "evaluations": spent})


def _data(sets: dict[str, Tensor], numbers: dict[str, float]) -> ParticleData:
    return ParticleData(train=sets["train"], validation=sets["validation"], test=sets["test"], **numbers)


def _moments(target: Target, z: Tensor) -> dict[str, float]:
    """Mean energy and virial with their errors, from systems ``(systems, length, dim)``."""
    _, gradient = target.energy.energy_and_gradient(z)  # type: ignore[attr-defined]
    found = {}
    for name, values in (("mean_energy", energy_value(target.energy, z)), ("virial", (z * gradient).sum(-1))):
        means = values.double().mean(1)
        found[name] = float(means.mean())
        found[f"{name}_error"] = float(means.std() / math.sqrt(len(means)))
    return found


def _refuse_wrong_law(target: Target, data: ParticleData) -> None:
    known = {"virial": (float(target.virial_dof), 0.0)}
    if target.mean_energy is not None:
        known["mean_energy"] = (target.mean_energy, target.mean_energy_error)
    for name, (truth, error) in known.items():
        found, own = getattr(data, name), getattr(data, f"{name}_error")
        if not abs(found - truth) <= 4.5 * math.hypot(own, error):
            raise ValueError(
                f"{name} of the draws of {target.name} is {found:.4g} +- {own:.2g}, expected {truth:.4g} +- {error:.2g}"
                "; draw more, with a longer warm-up"
            )


def _read(path: Path, identity: dict[str, str]) -> ParticleData:
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            sets = {name: file.get_tensor(name) for name in CHAINS}
            numbers = {name: float(metadata.pop(name)) for name in _NUMBERS}
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read ({error}); delete it to draw its data again") from error
    if metadata != identity:
        raise CheckpointError(f"{path} holds other particle data; choose another --out, or delete it")
    return _data(sets, numbers)
