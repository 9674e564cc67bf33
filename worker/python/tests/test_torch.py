"""Laws of the tensors of an arena on the CPU; they need torch."""

from __future__ import annotations

import gc
import unittest
import warnings

from .optional_torch import torch
from .rank_writer import TENSORS, RankWriter
from .test_arena import ArenaTest, mapped_files

HAS_FLOAT8 = hasattr(torch, "float8_e4m3fn")
PLAIN_TENSORS = {name: (dtype, shape) for name, (dtype, shape) in TENSORS.items() if dtype != "F8_E4M3"}


@unittest.skipIf(torch is None, "torch is not installed")
class CpuTensors(ArenaTest):
    def setUp(self) -> None:
        super().setUp()
        self.writer = RankWriter(self.directory, PLAIN_TENSORS)
        self.writer.start("1", fill=0x3F)

    def test_have_the_dtypes_shapes_and_values_of_the_table(self) -> None:
        tensors = self.attach().tensors()
        self.assertEqual(
            {name: (tensor.dtype, tuple(tensor.shape), tensor.device.type) for name, tensor in tensors.items()},
            {
                "norm.weight": (torch.bfloat16, (5,), "cpu"),
                "qkv_proj.weight_scale": (torch.float32, (16, 1), "cpu"),
                "experts.w13_weight_scale": (torch.float32, (3, 4, 1), "cpu"),
                "experts.none_here": (torch.bfloat16, (0, 4, 32), "cpu"),
                "attn.k_scale": (torch.float32, (), "cpu"),
                "half": (torch.float16, (3, 2), "cpu"),
            },
        )
        self.assertEqual(tensors["norm.weight"].tolist(), [0.74609375] * 5)

    def test_are_the_arenas_bytes_and_not_a_copy(self) -> None:
        arena = self.attach()
        tensors = arena.tensors()
        addresses = {name: tensor.data_ptr() for name, tensor in tensors.items()}
        self.writer.swap("2", self.writer.fill(0x40))
        self.assertEqual(arena.wait_for_version("2", timeout_s=0), "2")
        self.assertEqual(tensors["norm.weight"].tolist(), [3.0] * 5)
        self.assertEqual({name: tensor.data_ptr() for name, tensor in arena.tensors().items()}, addresses)

    def test_come_without_a_warning(self) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            self.attach().tensors()

    def test_keep_the_memory_mapped_until_the_last_is_gone(self) -> None:
        arena = self.attach()
        kept = arena.tensors()["norm.weight"]
        arena.close()
        self.writer.live = None
        gc.collect()
        self.assertIn(str(self.directory / "live.safetensors"), mapped_files())
        self.assertEqual(kept.tolist(), [0.74609375] * 5)
        del kept
        gc.collect()
        self.assertNotIn(str(self.directory / "live.safetensors"), mapped_files())


@unittest.skipUnless(HAS_FLOAT8, "torch, with float8_e4m3fn, is not installed")
class Float8Tensors(ArenaTest):
    def test_have_the_values_of_their_codes(self) -> None:
        self.writer.start("1", fill=0x3F)
        codes = self.attach().tensors()["qkv_proj.weight"]
        self.assertEqual((codes.dtype, tuple(codes.shape)), (torch.float8_e4m3fn, (16, 32)))
        self.assertEqual(set(codes.float().flatten().tolist()), {1.875})
        experts = self.attach().tensors()["experts.w13_weight"]
        self.assertEqual((experts.dtype, tuple(experts.shape)), (torch.float8_e4m3fn, (3, 4, 32)))
        self.assertEqual(experts[2].float()[0, 0].item(), 1.875)


@unittest.skipIf(HAS_FLOAT8, "torch with float8_e4m3fn is installed")
class WithoutTorch(ArenaTest):
    def test_tensors_say_what_is_missing(self) -> None:
        self.writer.start("1", fill=1)
        with self.assertRaisesRegex(ImportError, "torch"):
            self.attach().tensors()
