"""What a training run on pairs did."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

__all__ = ["ConditionalFit"]


@dataclass
class ConditionalFit:
    """What a training run on pairs did.

    :ivar history: lists of equal length, an entry for each look at the rows held back: ``step``, ``epoch``, ``loss``
        (the mean over the rows shown since the last look), ``validation`` (over all rows held back; NaN without),
        ``learning_rate``, ``seconds``.
    :ivar steps: updates made.
    :ivar epochs: whole passes; each met every row that is not held back exactly once.
    :ivar best_step: the update whose parameters were kept, and ``best_epoch``, the pass that it ended or was part of.
    :ivar validation: the loss of the rows held back at that update.
    :ivar seconds: wall time, resumed runs counted in; ``cpu_seconds`` likewise.
    :ivar stopped: why: ``"steps"``, ``"epochs"``, ``"patience"`` or ``"time"``.
    :ivar skipped: updates left out because the loss or its gradient was not finite.
    :ivar held_out: indices of the rows held back.
    """

    history: dict[str, list[float]] = field(default_factory=dict)
    steps: int = 0
    epochs: int = 0
    best_step: int = 0
    best_epoch: int = 0
    validation: float = math.inf
    seconds: float = 0.0
    cpu_seconds: float = 0.0
    stopped: str = "steps"
    skipped: int = 0
    held_out: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.long))
