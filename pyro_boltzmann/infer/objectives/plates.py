"""Let Pyro's objectives learn how plates nest before a run."""

from __future__ import annotations

from typing import Any

import torch
from pyro.infer.elbo import ELBO

__all__ = ["learn_plates"]


def learn_plates(elbo: ELBO, model: Any, guide: Any, args: Any, kwargs: Any) -> None:
    """Learn how plates nest, which draws random numbers, before a run whose random numbers matter begins.

    An objective with a method ``learn_plates`` of its own knows better.
    """
    own = getattr(elbo, "learn_plates", None)
    if own is not None:
        own(model, guide, args, kwargs)
    elif elbo.max_plate_nesting == torch.inf:
        elbo._guess_max_plate_nesting(model, guide, args, kwargs)
