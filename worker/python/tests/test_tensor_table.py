"""Headers that an arena's cannot be, by the words of the refusal."""

from __future__ import annotations

import json
import struct
import unittest

from layercast import ArenaInvalid
from layercast.tensor_table import TableEntry, parse_header

from .rank_writer import header_of

A = {"dtype": "F32", "shape": [64], "data_offsets": [0, 256]}
B = {"dtype": "BF16", "shape": [2, 64], "data_offsets": [256, 512]}


def raw_header(text: bytes) -> bytes:
    return struct.pack("<Q", len(text)) + text


class Header(unittest.TestCase):
    def refused(self, header: bytes, data_bytes: int, words: str) -> None:
        with self.assertRaisesRegex(ArenaInvalid, words):
            parse_header(header, data_bytes, "FILE")

    def test_is_read_in_the_order_of_the_bytes(self) -> None:
        table = parse_header(header_of({"b": B, "a": A}), 512, "FILE")
        expected = [("a", TableEntry("F32", (64,), 0, 256)), ("b", TableEntry("BF16", (2, 64), 256, 512))]
        self.assertEqual(list(table.items()), expected)

    def test_must_have_the_length_that_it_says(self) -> None:
        self.refused(b"\0\0\0", 0, "fewer than its length prefix")
        self.refused(header_of({"a": A})[:-1], 256, "says that it has 4088 bytes, there are 4087")
        self.refused(struct.pack("<Q", 1 << 63) + b"{}", 0, "says that it has 9223372036854775808 bytes")

    def test_must_be_one_json_object_of_utf8(self) -> None:
        for text in (b"", b"[]", b"{}x", b'{"a": ', b'{"\xff": 1}', b"[" * 100_000, b'{"a": NaN}', b"1" * 10_000):
            self.refused(raw_header(text), 0, "FILE: the header")

    def test_must_not_name_anything_twice(self) -> None:
        entry = json.dumps(A)
        self.refused(raw_header(f'{{"a": {entry}, "a": {entry}}}'.encode()), 256, "'a' twice")
        self.refused(raw_header(b'{"a": {"dtype": "F32", "dtype": "U8"}}'), 256, "'dtype' twice")

    def test_must_describe_each_tensor_completely(self) -> None:
        flaws: tuple[object, ...] = (1, [], {}, {"dtype": "F32", "shape": [64]}, {**A, "more": 1})
        for flaw in flaws:
            self.refused(header_of({"a": flaw}), 256, "exactly dtype, shape and data_offsets")

    def test_must_have_dtypes_that_kernel_tensors_have(self) -> None:
        for dtype in ("F64", "f32", None, ["F32"]):
            self.refused(header_of({"a": {**A, "dtype": dtype}}), 256, "has dtype")

    def test_must_have_counts_for_shapes_and_offsets(self) -> None:
        for shape in (64, "64", [-64], [64.0], [True], [2**63], [None]):
            self.refused(header_of({"a": {**A, "shape": shape}}), 256, "has shape")
        for offsets in ([0], [0, 256, 512], [-256, 0], [0, 256.0], ["0", "256"], None):
            self.refused(header_of({"a": {**A, "data_offsets": offsets}}), 256, "has data_offsets")

    def test_must_give_each_tensor_the_bytes_of_its_shape(self) -> None:
        self.refused(header_of({"a": {**A, "shape": [65]}}), 256, "takes 260")
        self.refused(header_of({"a": {**A, "data_offsets": [256, 0]}}), 256, "bytes 256 to 0")
        self.refused(header_of({"a": {**A, "shape": [2**62, 2**62]}}), 256, "takes")

    def test_must_align_kernel_tensors(self) -> None:
        entries = {"__pad__.0": {"dtype": "U8", "shape": [4], "data_offsets": [0, 4]}}
        entries["a"] = {**A, "data_offsets": [4, 260]}
        self.refused(header_of(entries), 260, "begins at byte 4, which is no multiple of 256")

    def test_must_cover_every_byte_once(self) -> None:
        self.refused(header_of({"a": A, "b": {**B, "data_offsets": [0, 256]}}), 512, "overlaps")
        self.refused(header_of({"a": A, "b": {**B, "data_offsets": [512, 768]}}), 768, "leaves a hole")
        self.refused(header_of({"a": A}), 512, "end at byte 256, the tensor bytes at 512")
        self.refused(header_of({"a": A, "b": B}), 256, "end at byte 512, the tensor bytes at 256")
        self.refused(header_of({}), 256, "end at byte 0")

    def test_may_have_tensors_without_elements(self) -> None:
        empty = {"dtype": "BF16", "shape": [0, 7], "data_offsets": [256, 256]}
        self.assertEqual(parse_header(header_of({"a": A, "e": empty}), 256, "FILE")["e"].shape, (0, 7))
