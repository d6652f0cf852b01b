"""What Pyro's guides do on their first call, done before a result depends on it."""

from __future__ import annotations

from typing import Any

from torch import nn

from pyro_boltzmann.guides import AutoStochasticFlow
from pyro_boltzmann.infer.randomness import seeded

__all__ = ["prepare_guide"]


def prepare_guide(guide: Any, args: tuple[Any, ...], kwargs: dict[str, Any], seed: int | None) -> None:
    """Let ``guide`` inspect its model and create its parameters, from ``seed``.

    The random numbers of this are not those of the run: a run from the same seed must be the same whether or not the
    guide was in use before.
    """
    with seeded(seed):
        if isinstance(guide, AutoStochasticFlow):
            guide.initialize(*args, **kwargs)
        elif getattr(guide, "prototype_trace", "none of Pyro's") is None or (
            isinstance(guide, nn.Module) and not list(guide.parameters())
        ):
            guide(*args, **kwargs)
