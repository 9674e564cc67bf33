"""Which workers have asked an engine to stand still: written by the links' threads, read by the core's."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from .messages import Message, whole_number


class OpenStops:
    """A stop is open until its worker says go, or its link ends: a dead worker cannot say it, and swaps nothing more."""

    def __init__(self, wake: Callable[[], None]) -> None:
        self._wake = wake
        self._lock = threading.Lock()
        self._open: dict[int, int] = {}
        self._first_heard: float | None = None

    def hear(self, rank: int, message: Message) -> None:
        """A message of that rank's worker. Others are for later releases. Raises Malformed."""
        if "stop" in message:
            epoch = whole_number(message, "stop")
            with self._lock:
                self._open[rank] = epoch
                if self._first_heard is None:
                    self._first_heard = time.monotonic()
            self._wake()
        elif "go" in message:
            whole_number(message, "go")
            self.lose(rank)

    def lose(self, rank: int) -> None:
        """Its link has ended, or it said go."""
        with self._lock:
            was_open = self._open.pop(rank, None) is not None
        if was_open:
            self._wake()

    def open(self) -> dict[int, int]:
        """Epoch by rank."""
        with self._lock:
            return dict(self._open)

    def take_first(self) -> float | None:
        """When the first stop was heard that nobody has taken notice of yet; also one that is no longer open."""
        with self._lock:
            heard, self._first_heard = self._first_heard, None
        return heard
