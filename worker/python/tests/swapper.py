"""Swaps the bytes of an arena that is there, over and over until it is killed: version N has bytes N modulo 251."""

from __future__ import annotations

import mmap
import struct
import sys
import time
from pathlib import Path


def main() -> None:
    directory, header_bytes = Path(sys.argv[1]), int(sys.argv[2])
    with open(directory / "control", "r+b") as file:
        page = mmap.mmap(file.fileno(), 0)
    with open(directory / "live.safetensors", "r+b") as file:
        live = mmap.mmap(file.fileno(), 0)
    words = memoryview(page).cast("Q")
    version = 1
    while True:
        version += 1
        words[2] += 1
        for at in range(header_bytes, len(live), 64):
            live[at : at + 64] = bytes([version % 251]) * len(live[at : at + 64])
        page[208 : 208 + 128] = str(version).encode().ljust(128, b"\0")
        page[12:16] = struct.pack("<I", 1)
        words[2] += 1
        time.sleep(0.0005)


if __name__ == "__main__":
    main()
