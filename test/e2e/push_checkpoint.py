"""
Pushes a checkpoint through the package: URL, directory, scheme, and how many rows a part has at most; prints the reload's record.
Tensors come as bytes, so that this runs without torch.
"""

from __future__ import annotations

import json
import struct
import sys
from collections.abc import Iterator
from pathlib import Path

import layercast
from layercast import RawTensor, Rows

PARTS_IN_BUCKET = 5


def tensors_in(directory: Path) -> dict[str, RawTensor]:
    found = {}
    for path in sorted(directory.glob("*.safetensors")):
        file = path.read_bytes()
        (length,) = struct.unpack_from("<Q", file)
        header = json.loads(file[8 : 8 + length])
        header.pop("__metadata__", None)
        for name, entry in header.items():
            begin, end = (8 + length + offset for offset in entry["data_offsets"])
            found[name] = RawTensor(entry["dtype"], entry["shape"], memoryview(file)[begin:end])
    return found


def parts_of(tensor: RawTensor, most_rows: int) -> Iterator[RawTensor | Rows]:
    if not tensor.shape or tensor.shape[0] <= most_rows:
        yield tensor
        return
    rows, *rest = tensor.shape
    row_bytes = len(tensor.buffer) // rows
    for first in range(0, rows, most_rows):
        last = min(first + most_rows, rows)
        part = RawTensor(tensor.dtype, [last - first, *rest], tensor.buffer[first * row_bytes : last * row_bytes])
        yield Rows(part, first, rows)


def buckets_of(tensors: dict[str, RawTensor], most_rows: int) -> Iterator[dict[str, RawTensor | Rows]]:
    bucket: dict[str, RawTensor | Rows] = {}
    for name, tensor in tensors.items():
        for part in parts_of(tensor, most_rows):
            if name in bucket or len(bucket) == PARTS_IN_BUCKET:
                yield bucket
                bucket = {}
            bucket[name] = part
    yield bucket


def main(url: str, directory: str, scheme: str, most_rows: str) -> None:
    tensors = tensors_in(Path(directory))
    config = json.loads(Path(directory, "config.json").read_text())
    install = {"allow_new_layout": True}
    with layercast.push(url, config, tensors=tensors, recipe={"scheme": scheme}, install=install) as session:
        for bucket in buckets_of(tensors, int(most_rows)):
            session.send(bucket)
    print(json.dumps(session.reload))


main(*sys.argv[1:])
