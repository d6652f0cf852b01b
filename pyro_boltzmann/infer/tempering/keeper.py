"""Keeps a long run in a file: what identifies it, its state, its random numbers, and what it has cost."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pyro_boltzmann.energies.evaluation import Energy, EvaluationCount, energy_value
from pyro_boltzmann.exceptions import CheckpointError
from pyro_boltzmann.infer.checkpoint import load_checkpoint, save_checkpoint
from pyro_boltzmann.infer.interrupt import deferred_interrupt
from pyro_boltzmann.infer.randomness import devices_in_use, generator_states, kept_generators, restore_generators
from pyro_boltzmann.infer.tempering.proposal import Proposal

__all__ = ["Keeper"]


class Keeper:
    """Saves and restores the state of a run; without a file it only counts what the run costs.

    :param file: where to keep the run, or ``None``.
    :param every: seconds between saves.
    :param identity: what must agree for a run to continue.
    :param resume: read what ``file`` holds; otherwise it is overwritten.
    :raises CheckpointError: on :meth:`load`, if ``file`` holds another run.
    :raises OutputError: on :meth:`save`, if it cannot be written.
    """

    def __init__(self, file: str | Path | None, every: float, identity: Mapping[str, Any], *, resume: bool) -> None:
        self.file = None if file is None else Path(file)
        self.every = every
        self.identity: dict[str, Any] = json.loads(json.dumps(dict(identity)))
        self.resume = resume
        self.count = EvaluationCount()
        """Evaluations of this call; whoever runs under :func:`count_evaluations` sets it."""
        self._before = EvaluationCount()
        self._seconds = self._cpu_seconds = 0.0
        self._start, self._cpu_start = time.perf_counter(), time.process_time()
        self._saved_at = self._start

    @property
    def spent(self) -> EvaluationCount:
        """Evaluations of the whole run, earlier calls counted in."""
        return self._before + self.count

    @property
    def seconds(self) -> float:
        """Wall time of the whole run, earlier calls counted in."""
        return self._seconds + time.perf_counter() - self._start

    @property
    def cpu_seconds(self) -> float:
        """Processor time of the whole run, earlier calls counted in."""
        return self._cpu_seconds + time.process_time() - self._cpu_start

    def load(self, proposal: Proposal) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """What was saved, on the device of ``proposal``, with torch's generators put back as they were then; ``None``
        for a new run."""
        if self.file is None or not self.resume or not self.file.exists():
            return None
        tensors, kept = load_checkpoint(self.file)
        try:
            identity, described = kept["identity"], kept["described"]
            different = sorted(
                k for k in self.identity.keys() | identity.keys() if identity.get(k) != self.identity.get(k)
            )
            if different:
                now = ", ".join(f"{k}={self.identity.get(k)!r} (was {identity.get(k)!r})" for k in different)
                raise CheckpointError(
                    f"{self.file} holds another run: {now}; name another checkpoint, or pass "
                    "resume=False to overwrite it"
                )
            self._before = EvaluationCount(**kept["spent"])
            self._seconds, self._cpu_seconds = kept["seconds"], kept["cpu_seconds"]
            prefix = "generator."
            states = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
            device = proposal.device  # a draw, which initialises the generator of that device
            restore_generators(states, devices_in_use())
            return {k: v.to(device) for k, v in tensors.items() if not k.startswith(prefix)}, described
        except (KeyError, TypeError, AttributeError) as error:
            raise CheckpointError(
                f"{self.file} is not a complete checkpoint of such a run ({type(error).__name__}: {error}); "
                "delete it or name another"
            ) from error

    def refuse_other_energy(self, name: str, energy: Energy, x: Tensor, kept: Tensor) -> None:
        """Compare an energy at a few of the states ``x`` ``(*batch, dim)`` with what the file knows of it.

        An energy that is random by itself cannot be compared, and passes.

        :param kept: ``(*batch)``.
        :raises CheckpointError: if they differ by more than rounding.
        """
        few = (slice(0, 1),) * (x.dim() - 2) + (slice(0, 4),)
        before = self.count.copy()
        with kept_generators():
            now, again = energy_value(energy, x[few]), energy_value(energy, x[few])
        self.count.values, self.count.gradients = before.values, before.gradients
        if torch.equal(now, again) and not torch.allclose(now, kept[few], rtol=1e-3, atol=1e-2):
            raise CheckpointError(
                f"{self.file} holds the run of another {name}, which was {kept[few].flatten().tolist()} where this one "
                f"is {now.flatten().tolist()}; name another checkpoint, or pass resume=False to overwrite it"
            )

    def is_due(self) -> bool:
        """Whether it is time to save again."""
        return self.file is not None and time.perf_counter() - self._saved_at > self.every

    def save(self, tensors: Mapping[str, Tensor], described: Mapping[str, Any]) -> None:
        """Write the state, atomically."""
        if self.file is None:
            return
        kept = {
            "identity": self.identity,
            "described": dict(described),
            "spent": self.spent.to_dict(),
            "seconds": self.seconds,
            "cpu_seconds": self.cpu_seconds,
        }
        generators = {f"generator.{name}": state for name, state in generator_states(devices_in_use()).items()}
        with deferred_interrupt():
            save_checkpoint(self.file, {**tensors, **generators}, kept)
        self._saved_at = time.perf_counter()
