"""How many threads small tensors deserve."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

__all__ = ["one_thread"]


@contextmanager
def one_thread() -> Iterator[None]:
    """Run on one thread inside, and give the caller's number back.

    On batches of some hundred states a second thread saves nothing, and waiting for it at each of thousands of
    operations costs two to eight times the work itself wherever cores are shared.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
