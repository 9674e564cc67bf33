"""A worker's part for these tests: a rank's directory with a control page and a live file, and swaps under the lock."""

from __future__ import annotations

import json
import mmap
import os
import struct
from collections.abc import Callable, Mapping
from pathlib import Path

PAGE_BYTES = 4096
PAGE = struct.Struct("<8sIIQQ16s32s64s64s128sQII16s64sQQ")
ELEMENT_BYTES = {"BF16": 2, "F16": 2, "F32": 4, "F8_E4M3": 1, "U8": 1}
LIVE, SWAPPING = 1, 2

# What these tests' arenas hold unless told otherwise: sizes that need pads, a scalar, every dtype, experts, and a rank without any.
TENSORS = {
    "norm.weight": ("BF16", [5]),
    "qkv_proj.weight": ("F8_E4M3", [16, 32]),
    "experts.w13_weight": ("F8_E4M3", [3, 4, 32]),
    "experts.w13_weight_scale": ("F32", [3, 4, 1]),
    "experts.none_here": ("BF16", [0, 4, 32]),
    "qkv_proj.weight_scale": ("F32", [16, 1]),
    "attn.k_scale": ("F32", []),
    "half": ("F16", [3, 2]),
}


def header_of(entries: Mapping[str, object], multiple_bytes: int = 4096) -> bytes:
    text = json.dumps({"__metadata__": {"format": "pt"}, **entries}).encode()
    size = -(-(8 + len(text)) // multiple_bytes) * multiple_bytes
    return struct.pack("<Q", size - 8) + text.ljust(size - 8)


def lay_out(tensors: dict[str, tuple[str, list[int]]]) -> tuple[dict[str, object], int]:
    """Header entries, pads included, and how many tensor bytes they take."""
    entries: dict[str, object] = {}
    at = 0
    for name, (dtype, shape) in tensors.items():
        size = ELEMENT_BYTES[dtype]
        for dimension in shape:
            size *= dimension
        entries[name] = {"dtype": dtype, "shape": shape, "data_offsets": [at, at + size]}
        at += size
        pad = -at % 256
        if pad > 0:
            entries[f"__pad__.{len(entries)}"] = {"dtype": "U8", "shape": [pad], "data_offsets": [at, at + pad]}
        at += pad
    return entries, at


class RankWriter:
    """`fill` of a version makes all its tensor bytes one value, so that a torn read shows."""

    def __init__(self, directory: Path, tensors: dict[str, tuple[str, list[int]]] = TENSORS) -> None:
        self.directory = directory
        self.entries, self.data_bytes = lay_out(tensors)
        self.header = header_of(self.entries)
        self.arena_id = os.urandom(16)
        self.device_kind, self.device_uuid, self.ipc_handle = 0, bytes(16), bytes(64)
        self.generation = self.epoch = 0
        directory.mkdir(parents=True, exist_ok=True)
        self.page = map_whole(directory / "control", PAGE_BYTES)
        self.words = memoryview(self.page).cast("Q")
        self.write_fields(state=0, version="")
        self.live: mmap.mmap | None = None

    def write_live(self, fill: int) -> None:
        """The file of a new arena, under its name at once."""
        path = self.directory / "next.safetensors"
        live = map_whole(path, len(self.header) + self.data_bytes)
        live[:] = self.header + bytes([fill]) * self.data_bytes
        path.rename(self.directory / "live.safetensors")
        self.live = live

    def swap(self, version: str, change: Callable[[], None]) -> None:
        self.begin()
        change()
        self.end(version)

    def begin(self) -> None:
        self.generation += 1
        self.epoch += 1
        self.words[2] = self.generation
        self.page[12:16] = struct.pack("<I", SWAPPING)
        self.words[3] = self.epoch

    def end(self, version: str) -> None:
        self.write_fields(state=LIVE, version=version)
        self.generation += 1
        self.words[2] = self.generation

    def fill(self, value: int) -> Callable[[], None]:
        def change() -> None:
            assert self.live is not None
            half = len(self.header) + self.data_bytes // 2
            self.live[len(self.header) : half] = bytes([value]) * (half - len(self.header))
            self.live[half:] = bytes([value]) * (len(self.live) - half)

        return change

    def start(self, version: str, fill: int) -> None:
        self.swap(version, lambda: self.write_live(fill))

    def write_fields(self, state: int, version: str, **other: object) -> None:
        fields = {
            "magic": b"LAYRCAST",
            "abi": 1,
            "state": state,
            "generation": self.generation,
            "epoch": self.epoch,
            "arena_id": self.arena_id,
            "layout_digest": bytes(32),
            "reload": b"r1",
            "content": b"r1",
            "version": version.encode(),
            "digest": 0,
            "device_kind": self.device_kind,
            "zero": 0,
            "device_uuid": self.device_uuid,
            "ipc_handle": self.ipc_handle,
            "data_offset": len(self.header),
            "data_bytes": self.data_bytes,
            **other,
        }
        packed = PAGE.pack(*fields.values())
        self.page[:16] = packed[:16]
        self.page[24 : len(packed)] = packed[24:]


def map_whole(path: Path, size: int) -> mmap.mmap:
    with open(path, "w+b") as file:
        file.truncate(size)
        return mmap.mmap(file.fileno(), size)
