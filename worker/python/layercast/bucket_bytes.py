"""Tensors, or rows of them -> the bytes of a safetensors file, tensor by tensor: at most one is copied at a time."""

from __future__ import annotations

import ctypes
import json
import math
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Union

if TYPE_CHECKING:
    import torch

# What a file says of its tensors that are rows of larger ones.
ROW_RANGES_KEY = "layercast.row_ranges"
ALIGNMENT_BYTES = 8

# By torch's names: the format's, and the bytes of an element.
_DTYPES = {
    "torch.bfloat16": ("BF16", 2),
    "torch.float16": ("F16", 2),
    "torch.float32": ("F32", 4),
    "torch.float64": ("F64", 8),
    "torch.float8_e4m3fn": ("F8_E4M3", 1),
    "torch.float8_e5m2": ("F8_E5M2", 1),
    "torch.uint8": ("U8", 1),
    "torch.int8": ("I8", 1),
    "torch.int32": ("I32", 4),
    "torch.int64": ("I64", 8),
    "torch.bool": ("BOOL", 1),
}
_ELEMENT_BYTES = dict(_DTYPES.values())


@dataclass(frozen=True)
class RawTensor:
    """A tensor as bytes: row-major, little-endian. `dtype` by the format's name, such as "BF16"."""

    dtype: str
    shape: Sequence[int]
    buffer: Any


@dataclass(frozen=True)
class Rows:
    """Rows of a tensor: `tensor` holds those from `first_row` on, of `of_rows` in its first dimension."""

    tensor: Tensor
    first_row: int
    of_rows: int


Tensor = Union["torch.Tensor", RawTensor]
Sent = Union["torch.Tensor", RawTensor, Rows]


def describe(tensor: Tensor) -> tuple[str, list[int]]:
    """Its dtype by the format's name, and its shape."""
    if isinstance(tensor, RawTensor):
        dtype, shape = tensor.dtype, [int(size) for size in tensor.shape]
        if dtype not in _ELEMENT_BYTES:
            raise ValueError(f"dtype {dtype!r} is not known: use one of {', '.join(_ELEMENT_BYTES)}")
        return dtype, shape
    known = _DTYPES.get(str(tensor.dtype))
    if known is None:
        raise ValueError(f"{tensor.dtype} is not known: send a tensor of {', '.join(_DTYPES)}, or a RawTensor")
    return known[0], list(tensor.shape)


class BucketBytes:
    """A safetensors file of `tensors`. It can be read again and again."""

    def __init__(self, tensors: Mapping[str, Sent]) -> None:
        if not tensors:
            raise ValueError("a bucket holds one tensor or more")
        self._tensors = [_held(sent) for sent in tensors.values()]
        self._header = _header(tensors)
        self.size = len(self._header) + sum(map(_byte_count, self._tensors))

    def chunks(self) -> Iterator[Any]:
        yield self._header
        for tensor in self._tensors:
            if _byte_count(tensor) > 0:
                yield _buffer_of(tensor)


def _held(sent: Sent) -> Tensor:
    return sent.tensor if isinstance(sent, Rows) else sent


def _header(tensors: Mapping[str, Sent]) -> bytes:
    entries: dict[str, Any] = {}
    ranges: dict[str, Any] = {}
    end = 0
    for name, sent in tensors.items():
        dtype, shape = describe(_held(sent))
        begin, end = end, end + _byte_count(_held(sent))
        entries[name] = {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}
        if isinstance(sent, Rows):
            ranges[name] = _range(name, sent, shape)
    if ranges:
        entries["__metadata__"] = {ROW_RANGES_KEY: json.dumps(ranges)}
    text = json.dumps(entries).encode()
    text += b" " * (-len(text) % ALIGNMENT_BYTES)
    return struct.pack("<Q", len(text)) + text


def _range(name: str, rows: Rows, shape: list[int]) -> dict[str, list[int]]:
    if not shape:
        raise ValueError(f"{name} is a scalar, which has no rows: send it whole")
    if rows.first_row < 0 or rows.first_row + shape[0] > rows.of_rows:
        sent = f"{rows.first_row} to {rows.first_row + shape[0]}"
        raise ValueError(f"{name} has {rows.of_rows} rows, not those from {sent}")
    return {"offset": [rows.first_row, *[0] * (len(shape) - 1)], "global_shape": [rows.of_rows, *shape[1:]]}


def _byte_count(tensor: Tensor) -> int:
    dtype, shape = describe(tensor)
    return math.prod(shape) * _ELEMENT_BYTES[dtype]


def _buffer_of(tensor: Tensor) -> memoryview:
    if isinstance(tensor, RawTensor):
        view = memoryview(tensor.buffer).cast("B")
        if view.nbytes != _byte_count(tensor):
            what = f"{tensor.dtype} of shape {list(tensor.shape)}"
            raise ValueError(f"a {what} has {_byte_count(tensor)} bytes, not {view.nbytes}")
        return view
    # Not through NumPy, which is an extra of torch's and knows no bfloat16.
    here = tensor.detach().cpu().contiguous()
    memory = (ctypes.c_char * _byte_count(tensor)).from_address(here.data_ptr())
    memory.keeps = here  # type: ignore[attr-defined]
    return memoryview(memory).cast("B")
