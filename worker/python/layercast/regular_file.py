"""Opening a rank's files without waiting: the open of a FIFO waits for its writer, and no deadline ends that."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import BinaryIO

from .errors import ArenaInvalid


def open_regular(path: Path) -> BinaryIO:
    """Opens for reading. Raises FileNotFoundError, and ArenaInvalid when `path` is a directory, a FIFO or a device."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    mode = os.fstat(descriptor).st_mode
    if stat.S_ISREG(mode):
        return os.fdopen(descriptor, "rb")
    os.close(descriptor)
    raise ArenaInvalid(f"{path} is {_kind(mode)}, not a regular file: give a rank's directory")


def _kind(mode: int) -> str:
    if stat.S_ISDIR(mode):
        return "a directory"
    return "a FIFO" if stat.S_ISFIFO(mode) else "a device"
