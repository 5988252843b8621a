"""What signals do to a run: SIGTERM ends it as Ctrl-C does."""

import signal
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import FrameType
from typing import Any


class Terminated(KeyboardInterrupt):
    """SIGTERM, handled like Ctrl-C: the run is marked interrupted and everything is closed."""


@contextmanager
def handling(handlers: Mapping[signal.Signals, Any]) -> Iterator[None]:
    """Within: signals are handled so; only a main thread can."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def on_sigterm(number: int, frame: FrameType | None) -> None:
    # A cluster and the launcher's process may both send one; the second must not cut off the first one's end.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise Terminated
