"""One run of a Pyro program, to learn its sites."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from pyro import poutine
from pyro.infer.autoguide.initialization import InitMessenger, init_to_median

from pyro_boltzmann.energies.log_joint import isolated

__all__ = ["prototype_trace"]


def prototype_trace(program: Callable[[], Any]) -> poutine.Trace:
    """The trace of one run with latents near their prior medians; the random state is left as it was."""
    cuda = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
    traced = poutine.trace(InitMessenger(init_to_median)(program))
    with torch.random.fork_rng(devices=cuda), torch.no_grad(), isolated(validates=True), poutine.block():
        return traced.get_trace()
