"""Rows of reports kept as JSON, and the median and the worst of several seeds."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from pyro_boltzmann.diagnostics import Metric, Truth

__all__ = ["from_plain", "median_rows", "to_plain", "worst_rows"]

HIGHER_IS_BETTER = frozenset({"ess", "forward_ess", "elbo", "modes_found"})
DECIDED_BY_SIZE = frozenset({"mean_energy", "virial", "log_z"})
"""Rows whose distance from the truth says how good they are."""


def to_plain(metric: Metric) -> dict[str, Any]:
    """A metric in JSON.

    >>> from_plain(to_plain(Metric(1.0, 0.1, truth=Truth(1.1, 0.01, "measured")))).truth
    Truth(value=1.1, std_error=0.01, quality='measured')
    """
    plain = dict(vars(metric))
    if isinstance(metric.truth, Truth):
        plain["truth"] = dict(vars(metric.truth))
    return plain


def from_plain(plain: Mapping[str, Any]) -> Metric:
    """The metric of :func:`to_plain`."""
    truth = plain["truth"]
    return Metric(**{**plain, "truth": Truth(**truth) if isinstance(truth, Mapping) else truth})


def median_rows(seeds: Sequence[Mapping[str, Metric]]) -> dict[str, Metric]:
    """Each metric of the seed that is in the middle by it; of an even number, the better of the two.

    >>> median_rows([{"ess": Metric(0.2)}, {"ess": Metric(0.9)}, {"ess": Metric(0.5)}])["ess"].value
    0.5
    """
    return {name: _ordered(name, seeds)[(len(seeds) - 1) // 2] for name in seeds[0]}


def worst_rows(seeds: Sequence[Mapping[str, Metric]]) -> dict[str, Metric]:
    """Each metric of the seed that is worst by it.

    >>> worst_rows([{"ess": Metric(0.2)}, {"ess": Metric(0.9)}])["ess"].value
    0.2
    """
    return {name: _ordered(name, seeds)[-1] for name in seeds[0]}


def _ordered(name: str, seeds: Sequence[Mapping[str, Metric]]) -> list[Metric]:
    """From the best to the worst; what could not be measured is worst."""
    return sorted((rows[name] for rows in seeds if name in rows), key=lambda row: _badness(name, row))


def _badness(name: str, row: Metric) -> float:
    if row.value is None or math.isnan(row.value):
        return math.inf
    truth = row.truth.value if isinstance(row.truth, Truth) else row.truth
    if name in DECIDED_BY_SIZE:
        return abs(row.value - truth) if truth is not None else row.value
    return -row.value if name in HIGHER_IS_BETTER else row.value
