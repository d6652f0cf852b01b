"""The headline model of the double-well experiment over several seeds: medians and the worst."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median

from pyro_boltzmann.diagnostics import Metric
from pyro_boltzmann.experiments.finished_parts import FinishedParts

__all__ = ["SEEDS", "over_seeds"]

SEEDS = 10

WORST: dict[str, Callable[[list[float]], float]] = {"ess": min}
"""Of everything else, larger is worse."""


def over_seeds(
    out: Path, seed: int, number: int, share: float, count: int, measure: Callable[[int], dict[str, float]]
) -> dict[str, dict[str, Metric]]:
    """Rows ``snf_median`` and ``snf_worst`` over ``number`` seeds from ``seed`` on, resumed from ``seeds.json``.

    :param measure: trains and scores one seed; its numbers by name.
    """
    parts = FinishedParts(out / "seeds.json", {"seed": seed, "share": share, "num_samples": count})
    runs = [parts.get(str(seed + index), partial(measure, seed + index)) for index in range(number)]
    columns = {name: [one[name] for one in runs] for name in runs[0]}
    return {
        "snf_median": {name: Metric(median(values)) for name, values in columns.items()},
        "snf_worst": {name: Metric(WORST.get(name, max)(values)) for name, values in columns.items()},
    }
