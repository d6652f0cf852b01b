"""CPU seconds of calls that take turns, and their ratios."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping

import torch

__all__ = ["REPEATS", "measure", "ratio"]

REPEATS = 15


def measure(rows: Mapping[str, Callable[[], object]], repeats: int = REPEATS) -> dict[str, list[float]]:
    """CPU seconds of each call, ``repeats`` times, without a graph; interleaved, so that a change of the machine's pace
    hits all rows alike."""
    times: dict[str, list[float]] = {name: [] for name in rows}
    with torch.no_grad():
        for call in rows.values():
            call()
        for _ in range(repeats):
            for name, call in rows.items():
                start = time.process_time()
                call()
                times[name].append(time.process_time() - start)
    return times


def ratio(ours: list[float], theirs: list[float], asked: float | None) -> str:
    """Of the minima, and in brackets the median over repeats: each repeat compares runs of the same half minute.

    >>> ratio([1.0, 2.0], [4.0, 4.0], 0.5)
    '   0.25  (0.38)  asked: at most 0.5, met'
    """
    least = min(ours) / min(theirs)
    median = statistics.median(a / b for a, b in zip(ours, theirs, strict=True))
    text = f"{least:7.2f}  ({median:.2f})"
    if asked is None:
        return text
    return f"{text}  asked: at most {asked:.3g}, {'met' if max(least, median) <= asked else 'short'}"
