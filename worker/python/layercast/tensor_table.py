"""A safetensors header -> where each kernel tensor lies. Trusts nothing that it reads; nothing is unpickled."""

from __future__ import annotations

import json
import math
import struct
from collections import Counter
from dataclasses import dataclass
from typing import Any

from .errors import ArenaInvalid

# The element types that kernel tensors have; the format knows more.
ELEMENT_BYTES = {"BF16": 2, "F16": 2, "F32": 4, "F8_E4M3": 1, "U8": 1}
LENGTH = struct.Struct("<Q")
ALIGNMENT_BYTES = 256
# The format's own limit.
MAX_HEADER_BYTES = 100_000_000
PAD_PREFIX = "__pad__."
METADATA = "__metadata__"


@dataclass(frozen=True)
class TableEntry:
    """A kernel tensor: row-major, little-endian, bytes `begin` to `end` of the tensor bytes."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


def parse_header(header: bytes, data_bytes: int, where: str) -> dict[str, TableEntry]:
    """
    `header`: everything before the tensor bytes, the length prefix included; `data_bytes`: how many of those there are.
    Returns the kernel tensors in the order of their bytes, without pads. Raises ArenaInvalid.
    """
    try:
        entries = {name: _entry(name, value) for name, value in _objects(header).items() if name != METADATA}
        _check_cover(entries, data_bytes)
    except _Flaw as flaw:
        raise ArenaInvalid(f"{where}: {flaw}: reload the rank's weights, then attach again") from None
    in_order = sorted(entries.items(), key=lambda item: (item[1].begin, item[1].end))
    return {name: entry for name, entry in in_order if not name.startswith(PAD_PREFIX)}


class _Flaw(Exception):
    """What is wrong with a header, without its file's name."""


def _objects(header: bytes) -> dict[str, Any]:
    if len(header) < LENGTH.size:
        raise _Flaw(f"the header has {len(header)} bytes, fewer than its length prefix")
    (json_bytes,) = LENGTH.unpack_from(header)
    if json_bytes != len(header) - LENGTH.size:
        raise _Flaw(f"the header says that it has {json_bytes} bytes, there are {len(header) - LENGTH.size}")
    try:
        objects = json.loads(header[LENGTH.size :].decode(), object_pairs_hook=_unique, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise _Flaw(f"the header is not JSON ({error})") from None
    if not isinstance(objects, dict):
        raise _Flaw("the header is not a JSON object")
    return objects


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    names = dict(pairs)
    if len(names) < len(pairs):
        counts = Counter(name for name, _ in pairs)
        twice = next(name for name, count in counts.items() if count > 1)
        raise _Flaw(f"the header has {twice!r} twice")
    return names


def _no_constant(word: str) -> Any:
    raise _Flaw(f"the header has the number {word}")


def _entry(name: str, value: Any) -> TableEntry:
    if not isinstance(value, dict) or value.keys() != {"dtype", "shape", "data_offsets"}:
        raise _Flaw(f"tensor {name!r} does not have exactly dtype, shape and data_offsets")
    dtype, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
    if not isinstance(dtype, str) or dtype not in ELEMENT_BYTES:
        raise _Flaw(f"tensor {name!r} has dtype {dtype!r}, known are {', '.join(ELEMENT_BYTES)}")
    if not _are_counts(shape):
        raise _Flaw(f"tensor {name!r} has shape {shape!r}")
    if not _are_counts(offsets) or len(offsets) != 2:
        raise _Flaw(f"tensor {name!r} has data_offsets {offsets!r}")
    begin, end = offsets
    wanted_bytes = math.prod(shape) * ELEMENT_BYTES[dtype]
    if end - begin != wanted_bytes:
        raise _Flaw(f"tensor {name!r} has bytes {begin} to {end}, {dtype} {shape} takes {wanted_bytes}")
    if not name.startswith(PAD_PREFIX) and begin % ALIGNMENT_BYTES != 0:
        raise _Flaw(f"tensor {name!r} begins at byte {begin}, which is no multiple of {ALIGNMENT_BYTES}")
    return TableEntry(dtype, tuple(shape), begin, end)


def _are_counts(value: Any) -> bool:
    # bool is an int to Python, but not to JSON.
    return isinstance(value, list) and all(type(count) is int and 0 <= count < 2**63 for count in value)


def _check_cover(entries: dict[str, TableEntry], data_bytes: int) -> None:
    """Every byte belongs to one tensor: no overlap, no hole, nothing outside."""
    at = 0
    for name, entry in sorted(entries.items(), key=lambda item: (item[1].begin, item[1].end)):
        if entry.begin != at:
            what = "overlaps the one before it" if entry.begin < at else "leaves a hole before it"
            raise _Flaw(f"tensor {name!r} begins at byte {entry.begin}, not at {at}: it {what}")
        at = entry.end
    if at != data_bytes:
        raise _Flaw(f"the tensors end at byte {at}, the tensor bytes at {data_bytes}")
