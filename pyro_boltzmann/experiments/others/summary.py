"""Runs of one method on one target at one budget, taken together over seeds."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from pyro_boltzmann.experiments.others.record import Record

__all__ = ["FAR_LOG_Z", "FAR_MEAN_ENERGY", "FAR_MODES", "Point", "largest", "points_of", "ranked"]

FAR_LOG_Z = 0.5
FAR_MODES = 0.25
FAR_MEAN_ENERGY = 0.5
"""In units of the spread :math:`\\sqrt{d / 2}` that the energy of a Gaussian has."""


@dataclass(frozen=True)
class Point:
    """Medians over seeds of what runs cost, and root mean squares of their errors.

    :ivar compile_seconds: of one compilation, which the seeds share.
    :ivar modes_found: the fewest of any seed.
    """

    method: str
    target: str
    size: int
    num_seeds: int
    evaluations: float
    cpu_seconds: float
    compile_seconds: float
    ess: float | None
    log_z_error: float | None
    modes_found: int | None
    mode_error: float | None
    mean_energy_error: float | None

    @property
    def evaluations_per_ess(self) -> float | None:
        return None if not self.ess else self.evaluations / self.ess

    @property
    def seconds_per_ess(self) -> float | None:
        """Without compilation."""
        return None if not self.ess else self.cpu_seconds / self.ess

    @property
    def seconds_per_ess_compiled(self) -> float | None:
        """With it."""
        return None if not self.ess else (self.cpu_seconds + self.compile_seconds) / self.ess

    def is_far(self, dim: int) -> bool:
        """Whether an estimate is so far from the truth that effective draws would be counted for a wrong answer."""
        limits = (
            (self.log_z_error, FAR_LOG_Z),
            (self.mode_error, FAR_MODES),
            (self.mean_energy_error, FAR_MEAN_ENERGY * math.sqrt(dim / 2)),
        )
        return self.ess is None or any(value is not None and value > limit for value, limit in limits)


def points_of(records: Iterable[Record]) -> list[Point]:
    """One point for each method, target and size that has a run without an error, in the order of the records.

    >>> runs = [Record("a", "t", 5, s, values=n, gradients=n, cpu_seconds=1.0, ess=4.0, log_z_error=e)
    ...         for s, (n, e) in enumerate([(10, 0.3), (20, -0.4)])]
    >>> point, = points_of(runs)
    >>> point.evaluations, point.evaluations_per_ess, round(point.log_z_error, 4)
    (30.0, 7.5, 0.3536)
    """
    groups: dict[tuple[str, str, int], list[Record]] = {}
    for record in records:
        if record.error is None:
            groups.setdefault((record.method, record.target, record.size), []).append(record)
    return [_point(key, runs) for key, runs in groups.items()]


def largest(points: Iterable[Point]) -> list[Point]:
    """Each method's point of the largest size on each target: to take the best of several would favour luck.

    >>> largest([])
    []
    """
    last: dict[tuple[str, str], Point] = {}
    for point in sorted(points, key=lambda point: point.size):
        last[point.method, point.target] = point
    return list(last.values())


def ranked(points: Iterable[Point], quantity: str) -> list[tuple[str, float]]:
    """Methods with their smallest value of an attribute over the points, smallest first.

    >>> ranked([], "cpu_seconds")
    []
    """
    best: dict[str, float] = {}
    for point in points:
        value = getattr(point, quantity)
        if value is not None:
            best[point.method] = min(best.get(point.method, math.inf), value)
    return sorted(best.items(), key=lambda item: item[1])


def _point(key: tuple[str, str, int], runs: Sequence[Record]) -> Point:
    found = [run.modes_found for run in runs if run.modes_found is not None]
    return Point(
        *key,
        num_seeds=len(runs),
        evaluations=float(statistics.median(run.evaluations for run in runs)),
        cpu_seconds=statistics.median(run.cpu_seconds for run in runs),
        compile_seconds=max(run.compile_seconds for run in runs),
        ess=_median([run.ess for run in runs]),
        log_z_error=_root_mean_square([run.log_z_error for run in runs]),
        modes_found=min(found, default=None),
        mode_error=_median([run.mode_error for run in runs]),
        mean_energy_error=_root_mean_square([run.mean_energy_error for run in runs]),
    )


def _median(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.median(known) if known else None


def _root_mean_square(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return math.sqrt(statistics.fmean(value * value for value in known)) if known else None
