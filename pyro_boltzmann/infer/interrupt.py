"""Ctrl-C that waits for the update in progress."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

__all__ = ["deferred_interrupt"]


@contextmanager
def deferred_interrupt() -> Iterator[None]:
    """Let the block run to its end before Ctrl-C takes effect; a second Ctrl-C takes effect at once.

    An error that leaves the block takes precedence over a waiting interrupt. Outside the main thread, and in programs
    that handle SIGINT in a way of their own, nothing changes.

    :raises KeyboardInterrupt: at the end of the block, if Ctrl-C was pressed inside it.

    >>> done = []
    >>> try:
    ...     with deferred_interrupt():
    ...         signal.raise_signal(signal.SIGINT)
    ...         done.append("the block")
    ... except KeyboardInterrupt:
    ...     done.append("the interrupt")
    >>> done
    ['the block', 'the interrupt']
    """
    in_main_thread = threading.current_thread() is threading.main_thread()
    if not in_main_thread or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield
        return
    is_waiting = False

    def wait(number: int, frame: FrameType | None) -> None:
        nonlocal is_waiting
        if is_waiting:
            signal.default_int_handler(number, frame)
        is_waiting = True

    signal.signal(signal.SIGINT, wait)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if is_waiting:
        raise KeyboardInterrupt
