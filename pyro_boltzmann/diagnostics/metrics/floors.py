"""What a metric gives between two exact samples: the number below which no sampler can be told apart."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from pyro_boltzmann.exceptions import ShapeError

__all__ = ["sampling_floor"]


def sampling_floor(
    metric: Callable[[Any, Any], float], sample: Callable[[], Any], num_repeats: int = 20
) -> tuple[float, float]:
    """What ``metric`` gives between two *exact* samples of the same size: its mean and standard deviation.

    :param metric: a distance of two samples, the very function whose value the floor stands beside.
    :param sample: draws one exact (or reference) sample, independent at each call.
    :raises ShapeError: if ``num_repeats`` is not positive.

    >>> from pyro_boltzmann.diagnostics import energy_w2
    >>> rng = np.random.default_rng(0)
    >>> floor, spread = sampling_floor(energy_w2, lambda: rng.normal(size=1000))
    >>> 0.03 < floor < 0.1
    True
    """
    if num_repeats < 1:
        raise ShapeError(f"expected num_repeats >= 1, got {num_repeats}")
    values = [metric(sample(), sample()) for _ in range(num_repeats)]
    return float(np.mean(values)), float(np.std(values, ddof=1)) if num_repeats > 1 else math.inf
