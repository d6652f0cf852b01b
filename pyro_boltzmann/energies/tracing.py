"""Whether ``torch.jit.trace`` is recording: checks that read values must then stand back."""

from __future__ import annotations

import torch

__all__ = ["is_tracing"]


def is_tracing() -> bool:
    """True inside ``torch.jit.trace`` (Pyro's Jit ELBOs)."""
    return torch._C._get_tracing_state() is not None
