"""What a run cost and what came of it, as a line of JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pyro_boltzmann.diagnostics.atomic import write_atomically
from pyro_boltzmann.diagnostics.weights import normalized_weights
from pyro_boltzmann.exceptions import PyroBoltzmannError
from pyro_boltzmann.experiments.others.problem import BenchProblem

__all__ = ["Outcome", "Record", "append_record", "bulk_ess", "measure", "read_records"]


@dataclass
class Outcome:
    """What a sampler returns.

    :ivar x: draws, ``(N, dim)``, or ``(chains, draws, dim)``.
    :ivar log_weights: ``(N,)``; ``None`` for equal weights.
    :ivar ess: effective number of draws.
    :ivar log_z: ``None`` where the method has none.
    :ivar values: energies of single configurations, gradients' own included.
    :ivar gradients: of single configurations.
    :ivar cpu_seconds: of all but compilation.
    :ivar compile_seconds: CPU seconds of JAX's tracing and compilation.
    """

    x: NDArray[Any]
    log_weights: NDArray[Any] | None
    ess: float
    log_z: float | None
    values: int
    gradients: int
    cpu_seconds: float
    compile_seconds: float = 0.0


@dataclass
class Record:
    """A finished run. Numbers that are not finite or not known are ``None``."""

    method: str
    target: str
    size: int
    seed: int
    version: str = ""
    error: str | None = None
    values: int = 0
    gradients: int = 0
    cpu_seconds: float = math.nan
    compile_seconds: float = 0.0
    ess: float | None = None
    log_z_error: float | None = None
    modes_found: int | None = None
    mode_error: float | None = None
    mean_energy_error: float | None = None

    @property
    def key(self) -> tuple[str, str, int, int]:
        return self.method, self.target, self.size, self.seed

    @property
    def evaluations(self) -> int:
        """Values and gradients together: a gradient costs two, its value and itself."""
        return self.values + self.gradients


def measure(record: Record, problem: BenchProblem, outcome: Outcome) -> Record:
    """Fill a record in: the errors of log Z, mean energy and modes, none of them counted or timed."""
    x = torch.from_numpy(np.array(outcome.x, dtype=np.float64).reshape(-1, problem.dim))
    log_weights = np.zeros(len(x)) if outcome.log_weights is None else np.asarray(outcome.log_weights, np.float64)
    record.values, record.gradients = int(outcome.values), int(outcome.gradients)
    record.cpu_seconds, record.compile_seconds = outcome.cpu_seconds, outcome.compile_seconds
    record.ess = _finite(outcome.ess)
    record.log_z_error = None if outcome.log_z is None else _finite(outcome.log_z - problem.log_z)
    with torch.no_grad():
        energy = problem.energy(x).double().numpy()
    weights = normalized_weights(log_weights)
    kept = weights > 0
    record.mean_energy_error = _finite(float(weights[kept] @ energy[kept]) - problem.mean_energy)
    found = problem.modes(x, log_weights)
    if found is not None:
        record.modes_found, record.mode_error = found
    return record


def bulk_ess(x: NDArray[Any]) -> float:
    """Least bulk ESS of the coordinates of ``(chains, draws, dim)``, as ArviZ has it; NaN for fewer than four draws.

    >>> chains = np.random.default_rng(0).standard_normal((4, 500, 2))
    >>> 1500 < bulk_ess(chains) < 2500
    True
    """
    import arviz

    if x.shape[1] < 4:
        return math.nan
    ess: Callable[..., Any] = arviz.ess
    named = {f"x{i}": np.asarray(x[..., i], dtype=np.float64) for i in range(x.shape[-1])}
    values = [float(np.asarray(ess(value, method="bulk"))) for value in named.values()]
    return min(values)


def read_records(path: Path) -> list[Record]:
    """The lines of a file of records; none if it does not exist.

    :raises PyroBoltzmannError: if a line is no record.
    """
    if not path.exists():
        return []
    try:
        return [Record(**json.loads(line)) for line in path.read_text(encoding="utf-8").splitlines() if line]
    except (TypeError, ValueError) as error:
        raise PyroBoltzmannError(f"{path} is no file of benchmark records ({error}); choose another --out") from error


def append_record(path: Path, records: Iterable[Record], new: Record) -> list[Record]:
    """All records with a new one behind them, written so that a killed run loses at most the run in progress."""
    both = [*(old for old in records if old.key != new.key), new]
    text = "".join(json.dumps(asdict(one), allow_nan=False) + "\n" for one in both)

    def write(temporary: Path) -> None:
        temporary.write_text(text, encoding="utf-8")

    write_atomically(path, write)
    return both


def _finite(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None
