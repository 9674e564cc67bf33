"""A wait with an end."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

from .errors import Timeout

# A swap takes a few milliseconds, the next reload seconds: a wait begins eager and then gets out of the way.
FIRST_PAUSE_S = 0.0005
LONGEST_PAUSE_S = 0.01


class Deadline:
    """Counts from its making; `timeout_s` of 0 allows a single try."""

    def __init__(self, timeout_s: float) -> None:
        if not (math.isfinite(timeout_s) and timeout_s >= 0):
            raise ValueError(f"timeout_s is {timeout_s}: give a number of seconds, 0 or more")
        self._timeout_s = timeout_s
        self._end = time.monotonic() + timeout_s
        self._pause_s = FIRST_PAUSE_S

    def left_s(self) -> float:
        return max(0.0, self._end - time.monotonic())

    def pause(self, waited_for: Callable[[], str]) -> None:
        """Sleeps a little. Raises Timeout, with what was waited for, when the time is over."""
        left_s = self.left_s()
        if left_s == 0:
            raise Timeout(f"waited {self._timeout_s:g} s for {waited_for()}")
        time.sleep(min(self._pause_s, left_s))
        self._pause_s = min(self._pause_s * 2, LONGEST_PAUSE_S)
