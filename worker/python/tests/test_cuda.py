"""Laws of an arena in a GPU's memory that another process holds; they need torch and a GPU."""

from __future__ import annotations

import gc
import subprocess
import sys
import unittest
from pathlib import Path

import layercast

from .optional_torch import torch
from .rank_writer import TENSORS, header_of
from .test_arena import ArenaTest

HAS_GPU = torch is not None and torch.cuda.is_available()
HEADER_NAME = "live.safetensors.header"
ATTACH_S = 30


@unittest.skipUnless(HAS_GPU, "there is no torch with a GPU")
class CudaTensors(ArenaTest):
    def setUp(self) -> None:
        super().setUp()
        command = [sys.executable, "-m", "tests.device_writer", str(self.directory)]
        folder = Path(__file__).parent.parent
        self.holder = subprocess.Popen(command, cwd=folder, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert self.holder.stdout is not None
        self.said = self.holder.stdout
        self.addCleanup(self.holder.communicate, timeout=ATTACH_S)
        self.tell("start 1 63")

    def tell(self, line: str) -> None:
        print(line, file=self.holder.stdin, flush=True)
        self.assertEqual(self.said.readline(), "done\n")

    def attach(self) -> layercast.Arena:
        arena = layercast.attach(self.run_dir, timeout_s=ATTACH_S)
        self.addCleanup(arena.close)
        return arena

    def test_have_the_dtypes_shapes_and_values_of_the_table(self) -> None:
        arena = self.attach()
        tensors = arena.tensors()
        self.assertEqual(arena.device, "cuda:0")
        self.assertEqual({str(tensor.device) for tensor in tensors.values()}, {"cuda:0"})
        shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
        self.assertEqual(shapes, {name: tuple(shape) for name, (_, shape) in TENSORS.items()})
        self.assertEqual(tensors["norm.weight"].tolist(), [0.74609375] * 5)
        self.assertEqual(set(tensors["qkv_proj.weight"].float().flatten().tolist()), {1.875})

    def test_a_graph_captured_before_a_swap_computes_with_the_new_weights(self) -> None:
        arena = self.attach()
        weight = arena.tensors()["norm.weight"]
        address = weight.data_ptr()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            doubled = weight * 2

        def replay(version: str) -> tuple[str, list[float]]:
            graph.replay()
            return version, doubled.tolist()

        self.assertEqual(arena.read(replay), ("1", [1.4921875] * 5))
        self.tell("swap 2 64")
        self.assertEqual(arena.read(replay), ("2", [6.0] * 5))
        self.assertEqual(arena.tensors()["norm.weight"].data_ptr(), address)

    def test_a_swap_within_a_block_is_told(self) -> None:
        arena = self.attach()
        with self.assertRaises(layercast.Changed), arena.reading():
            self.tell("swap 2 64")

    def test_outlive_the_arena_and_its_second_attaching(self) -> None:
        first, second = self.attach(), self.attach()
        kept = first.tensors()["norm.weight"]
        first.close()
        del first
        gc.collect()
        self.assertEqual(second.tensors()["norm.weight"].tolist(), [0.74609375] * 5)
        second.close()
        gc.collect()
        self.assertEqual(kept.tolist(), [0.74609375] * 5)

    def test_are_not_to_be_had_as_buffers(self) -> None:
        with self.assertRaisesRegex(layercast.DeviceUnavailable, "use tensors"):
            self.attach().buffers()

    def test_whose_holder_has_ended_are_waited_for(self) -> None:
        self.holder.communicate(timeout=ATTACH_S)
        with self.assertRaisesRegex(layercast.Timeout, "memory on cuda:0 cannot be opened"):
            layercast.attach(self.run_dir, timeout_s=0)

    def test_sizes_that_the_allocation_does_not_have_are_refused(self) -> None:
        size = 1 << 40
        header = header_of({"a": {"dtype": "U8", "shape": [size], "data_offsets": [0, size]}})
        (self.directory / HEADER_NAME).write_bytes(header)
        control = self.directory / "control"
        page = bytearray(control.read_bytes())
        page[432:448] = len(header).to_bytes(8, "little") + size.to_bytes(8, "little")
        with open(control, "r+b") as file:
            file.write(page)
        with self.assertRaisesRegex(layercast.ArenaInvalid, "device memory behind it has"):
            self.attach()


class Refusing(ArenaTest):
    def test_an_arena_on_a_gpu_that_this_process_does_not_see(self) -> None:
        self.writer.device_kind, self.writer.device_uuid = 1, bytes(range(16))
        (self.directory / HEADER_NAME).write_bytes(self.writer.header)
        self.writer.swap("1", lambda: None)
        with self.assertRaisesRegex(layercast.DeviceUnavailable, "the arena is on (a GPU and|the GPU with UUID)"):
            self.attach()
