"""Competitors' libraries, imported when they are needed."""

from __future__ import annotations

import importlib
import importlib.util
import os
from typing import Any

from pyro_boltzmann.exceptions import PyroBoltzmannError

__all__ = ["MissingExtraError", "is_installed", "need"]

ONE_THREAD = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"


class MissingExtraError(PyroBoltzmannError, ImportError):
    """A library of the extra ``bench`` that is not installed."""


def is_installed(*names: str) -> bool:
    """Whether all of these modules could be imported, without importing them.

    >>> is_installed("math", "no_such_library")
    False
    """
    return all(importlib.util.find_spec(name) is not None for name in names)


def need(name: str) -> Any:
    """Import a module of the extra ``bench``; JAX is told to use one thread and to wait for its results.

    :raises MissingExtraError: if it is not installed.

    >>> need("no_such_library")
    Traceback (most recent call last):
    ...
    pyro_boltzmann...MissingExtraError: no_such_library is not installed; pip install "pyro-boltzmann[bench]"
    """
    library = name.partition(".")[0]
    if not is_installed(library):
        raise MissingExtraError(f'{library} is not installed; pip install "pyro-boltzmann[bench]"')
    if library != "jax" and library in ("numpyro", "blackjax"):
        need("jax")
    elif library == "jax":
        if ONE_THREAD not in (flags := os.environ.get("XLA_FLAGS", "")):
            os.environ["XLA_FLAGS"] = f"{flags} {ONE_THREAD}".strip()  # read when JAX starts its device
        importlib.import_module("jax").config.update("jax_cpu_enable_async_dispatch", False)
    return importlib.import_module(name)
