"""What every test and every doctest starts from: one seed, an empty parameter store, few threads."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator

# Before torch loads OpenMP; child processes (the command line's tests) inherit them.
_THREADS = 1 if "PYTEST_XDIST_WORKER" in os.environ else min(2, os.cpu_count() or 1)
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("OMP_NUM_THREADS", str(_THREADS))
os.environ.setdefault("MPLBACKEND", "Agg")

import pyro
import pytest
import torch

torch.set_num_threads(_THREADS)


def pytest_configure() -> None:
    """Handle Ctrl-C as a terminal does: a job started in the background inherits a SIGINT that is ignored."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def _same_start() -> Iterator[None]:
    """Seed torch, numpy and random, and empty Pyro's parameter store; afterwards close the figures left open."""
    torch.set_default_dtype(torch.float32)
    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    yield
    if pyplot := sys.modules.get("matplotlib.pyplot"):
        pyplot.close("all")
