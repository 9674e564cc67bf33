"""The control page: what a rank's worker says of its arena. docs/arena-format.md has the table of its fields.

The page changes while it is read, so it is read under its sequence lock: even generation, copy, same generation. x86
keeps loads in order. Python has no fence for processors that do not; docs/consumer.md says what to do there.
"""

from __future__ import annotations

import mmap
import os
import struct
import sys
from dataclasses import dataclass
from pathlib import Path

from .errors import ArenaInvalid
from .regular_file import open_regular

PAGE_BYTES = 4096
ABI = 1
MAGIC = b"LAYRCAST"
STATES = ("empty", "live", "swapping", "torn")
DEVICE_KINDS = ("cpu", "cuda")
VERSION_BYTES = 128
MATCH_THE_WORKER = "use this package in the version of the worker"

FIELDS = struct.Struct("<8sIIQQ16s32s64s64s128sQII16s64sQQ")
NAMES = (
    *("magic", "abi", "state", "generation", "epoch", "arena_id", "layout_digest", "reload", "content"),
    *("weight_version", "digest", "device_kind", "zero", "device_uuid", "ipc_handle", "data_offset", "data_bytes"),
)
GENERATION_WORD = 2
EPOCH_WORD = 3


@dataclass(frozen=True)
class ControlPage:
    """The fields of one moment, at an even generation."""

    state: str
    generation: int
    epoch: int
    arena_id: str
    layout_digest: str
    reload: str
    content: str
    weight_version: str
    digest: str
    device_kind: str
    device_uuid: bytes
    ipc_handle: bytes
    data_offset: int
    data_bytes: int


class PageFile:
    """The mapped file. Never writes to it."""

    def __init__(self, path: Path) -> None:
        """Raises FileNotFoundError, and ArenaInvalid when the file cannot be a control page."""
        if sys.byteorder != "little":
            raise ArenaInvalid(f"{path} is little-endian and this machine is not: attach on the worker's host")
        self.path = path
        with open_regular(path) as file:
            status = os.fstat(file.fileno())
            if status.st_size != PAGE_BYTES:
                raise ArenaInvalid(
                    f"{path} has {status.st_size} bytes, a control page has {PAGE_BYTES}: give a rank's directory"
                )
            self._mapped = mmap.mmap(file.fileno(), PAGE_BYTES, mmap.MAP_SHARED, mmap.PROT_READ)
        self._identity = (status.st_dev, status.st_ino)
        self._bytes = memoryview(self._mapped)
        # An item of a view of words is one load of the processor; struct would put it together from bytes, which may be
        # those of two moments.
        self._words = self._bytes.cast("Q")

    def generation(self) -> int:
        """Odd while the arena changes."""
        return self._words[GENERATION_WORD]

    def read(self) -> ControlPage | None:
        """None while the page changes, or is not written yet. Raises ArenaInvalid."""
        generation = self.generation()
        if generation % 2 == 1:
            return None
        raw = bytes(self._bytes[: FIELDS.size])
        if self.generation() != generation or raw[: len(MAGIC)] == bytes(len(MAGIC)):
            return None
        return parse_page(raw, str(self.path))

    def describe(self) -> str:
        """What can be relied on at any generation, for a message."""
        generation = self.generation()
        tells = f"generation {generation}, epoch {self._words[EPOCH_WORD]}"
        if generation % 2 == 0:
            return tells
        return f"{tells}: odd, so a swap is under way or its worker died in it"

    def is_at_its_path(self) -> bool:
        """False when another file lies there now: then nobody writes to this one any more."""
        try:
            status = os.stat(self.path)
        except FileNotFoundError:
            return True  # nobody else's: what is mapped is still the last that there was
        return (status.st_dev, status.st_ino) == self._identity

    def close(self) -> None:
        self._words.release()
        self._bytes.release()
        self._mapped.close()


def parse_page(raw: bytes, where: str) -> ControlPage:
    """`raw`: at least the fields' 448 bytes, of one moment. Raises ArenaInvalid."""
    fields = dict(zip(NAMES, FIELDS.unpack_from(raw), strict=True))
    magic, abi = fields.pop("magic"), fields.pop("abi")
    del fields["zero"]
    if magic != MAGIC:
        raise ArenaInvalid(f"{where} begins with {magic!r}, a control page with {MAGIC!r}: give a rank's directory")
    if abi != ABI:
        raise ArenaInvalid(f"{where} has ABI version {abi}, this package reads {ABI}: {MATCH_THE_WORKER}")
    fields["state"] = _named(STATES, fields["state"], "state", where)
    fields["device_kind"] = _named(DEVICE_KINDS, fields["device_kind"], "device kind", where)
    fields["digest"] = f"{fields['digest']:016x}"
    for name in ("arena_id", "layout_digest"):
        fields[name] = fields[name].hex()
    for name in ("reload", "content", "weight_version"):
        fields[name] = _text(fields[name])
    return ControlPage(**fields)


def fit_version(version: str) -> str:
    """As the page holds it: at most 128 bytes of UTF-8, cut at a character's end."""
    return version.encode()[:VERSION_BYTES].decode(errors="ignore")


def _named(names: tuple[str, ...], number: int, field: str, where: str) -> str:
    if number < len(names):
        return names[number]
    raise ArenaInvalid(f"{where} says {field} {number}, known are 0 to {len(names) - 1}: {MATCH_THE_WORKER}")


def _text(field: bytes) -> str:
    return field.split(b"\0", 1)[0].decode(errors="replace")
