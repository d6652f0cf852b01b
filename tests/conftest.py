"""Fixtures of the test suite (seeds and threads are set in the ``conftest.py`` above, which doctests share)."""

from __future__ import annotations

import pytest
import torch


@pytest.fixture
def cuda() -> torch.device:
    """The CUDA device; a test that asks for it is skipped where there is none."""
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    return torch.device("cuda")
