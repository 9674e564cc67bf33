"""The run lock of a rank: whoever computes with its arena holds it shared, the worker holds it alone while it swaps.

The kernel gives the lock back when its holder's process ends, however that dies, so neither side ever waits for a dead
one. An engine thus never computes with half a swap, whatever message is lost.
"""

from __future__ import annotations

import errno
import fcntl
import os
from pathlib import Path

from ..deadline import Deadline
from ..errors import Timeout

NAME = "running.lock"


class RunLock:
    """The lock of the rank whose directory this is. Used by one thread."""

    def __init__(self, directory: Path) -> None:
        self.path = directory / NAME
        self._descriptor: int | None = None
        self.held = False
        # A child that is forked without exec would share the lock, and keep it when this process has died.
        os.register_at_fork(after_in_child=self._close)

    def try_take(self) -> bool:
        """Takes the lock shared, unless somebody has it alone. Raises OSError where there is no such file."""
        if self.held:
            return True
        descriptor = self._open()
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EWOULDBLOCK, errno.EACCES, errno.EINTR):
                return False
            raise
        self.held = True
        return True

    def take(self, timeout_s: float) -> None:
        """Takes the lock shared. Raises Timeout, also where the file is not there in time."""
        deadline = Deadline(timeout_s)
        while True:
            try:
                if self.try_take():
                    return
                reason = "the worker has it for a swap"
            except FileNotFoundError:
                reason = "there is no such file: the worker makes it when it starts"
            deadline.pause(lambda: f"the run lock {self.path} ({reason})")

    def take_soon(self, timeout_s: float) -> bool:
        """As `take`, but says False in place of a Timeout."""
        try:
            self.take(timeout_s)
        except Timeout:
            return False
        return True

    def give_back(self) -> None:
        """Nothing happens where it is not held."""
        if self.held and self._descriptor is not None:
            fcntl.flock(self._descriptor, fcntl.LOCK_UN)
        self.held = False

    def close(self) -> None:
        """Gives the lock back for good."""
        self.give_back()
        self._close()

    def _open(self) -> int:
        """The file at the path: another one may lie there than the one that is open, when the directory was made again."""
        if self._descriptor is not None:
            found, opened = os.stat(self.path), os.fstat(self._descriptor)
            if (found.st_dev, found.st_ino) == (opened.st_dev, opened.st_ino):
                return self._descriptor
            self._close()
        # Reading is enough for a lock, and all that another user of the file's group may do.
        self._descriptor = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
        return self._descriptor

    def _close(self) -> None:
        descriptor, self._descriptor = self._descriptor, None
        self.held = False
        if descriptor is not None:
            os.close(descriptor)
