"""Sequential Monte Carlo as the teacher of a diffusion sampler: where it draws, and whether to trust it."""

from __future__ import annotations

import warnings
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

from pyro_boltzmann.diagnostics.weighted_samples import WeightedSamples

__all__ = ["FEWEST_ROOTS", "drawing_on", "warn_of_few_roots"]

FEWEST_ROOTS = 100
"""Distinct first ancestors below which there is a warning."""


def drawing_on(device: torch.device) -> AbstractContextManager[Any]:
    """Make new tensors on ``device`` unless told otherwise.

    >>> with drawing_on(torch.device("meta")):
    ...     torch.zeros(2).device
    device(type='meta')
    """
    # Where that is so in any case, each call of a function would only cost more.
    return nullcontext() if torch.empty(0).device == device else device


def warn_of_few_roots(draws: WeightedSamples) -> None:
    r"""Warn if ``draws`` of :func:`~pyro_boltzmann.smc` descend from few of the first particles.

    From R of them the mass p of a mode is known to a relative error of :math:`\sqrt{(1 - p) / (p R)}`, and a mode is
    missed with probability :math:`(1 - p)^R`. The limit is R = 100: an error of 30 % for a mode of a tenth, and one
    chance in 170 to miss a mode of a twentieth. Of fewer than 1000 draws nobody expects as much; there it is a tenth.
    """
    roots = sum(draws.info["smc"]["num_roots"])
    if roots < min(FEWEST_ROOTS, len(draws) // 10):
        warnings.warn(
            f"the {len(draws)} draws to learn from descend from only {roots} particles, and their log Z is "
            f"{draws.log_normalizer:.4g} +- {draws.log_normalizer_error:.2g}: modes may be missing or out of "
            "proportion. The weights of the trained sampler make up for wrong proportions, not for missing modes. Take "
            "more draws (num_draws=), more moves (smc={'num_moves': ...}) or a wider proposal "
            "(smc={'proposal': ...}), whose standard deviation should be that of the target or more",
            UserWarning,
            stacklevel=2,
        )
