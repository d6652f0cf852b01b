"""CPU seconds of this process, all its threads together."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from pyro_boltzmann.exceptions import PyroBoltzmannError

__all__ = ["CpuClock", "Deadline", "TooLongError"]

MOST_SECONDS = 30.0


class TooLongError(PyroBoltzmannError, RuntimeError):
    """A run beyond its limit."""


class Deadline:
    """Stops a run from within its energy, once it has used so much CPU.

    :raises TooLongError: when it is called too late.

    >>> Deadline()()
    """

    def __init__(self, seconds: float = MOST_SECONDS) -> None:
        self.seconds = seconds
        self._start = time.process_time()

    def __call__(self) -> None:
        if time.process_time() - self._start > self.seconds:
            raise TooLongError(f"stopped after {self.seconds:.0f} CPU seconds")


class CpuClock:
    """Adds up the CPU time spent inside its blocks, by name.

    >>> clock = CpuClock()
    >>> with clock("run"):
    ...     _ = sum(range(1000))
    >>> clock.seconds["run"] >= 0
    True
    """

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        start = time.process_time()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.process_time() - start
