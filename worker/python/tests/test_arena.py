"""Laws of attaching, waiting and reading under the lock, with a writer that swaps."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
import unittest
from pathlib import Path
from tempfile import TemporaryDirectory

import layercast

from .rank_writer import TENSORS, RankWriter

SHORT_S = 0.05
PAGE_BYTES = 4096


class ArenaTest(unittest.TestCase):
    def setUp(self) -> None:
        scratch = TemporaryDirectory(prefix="layercast-python-")
        self.addCleanup(scratch.cleanup)
        self.run_dir = Path(scratch.name)
        self.directory = self.run_dir / "default" / "replica-0" / "rank-0"
        self.writer = RankWriter(self.directory)

    def attach(self) -> layercast.Arena:
        arena = layercast.attach(self.run_dir, timeout_s=SHORT_S)
        self.addCleanup(arena.close)
        return arena


class Attaching(ArenaTest):
    def test_gives_every_kernel_tensor_and_no_pad(self) -> None:
        self.writer.start("7", fill=3)
        arena = self.attach()
        self.assertEqual(arena.layout(), {name: (dtype, tuple(shape)) for name, (dtype, shape) in TENSORS.items()})
        buffers = arena.buffers()
        self.assertEqual(list(buffers), list(TENSORS))
        self.assertEqual(bytes(buffers["norm.weight"]), b"\3" * 10)
        self.assertEqual(len(buffers["qkv_proj.weight"]), 16 * 32)
        self.assertEqual((arena.weight_version, arena.epoch, arena.generation), ("7", 1, 2))
        self.assertEqual((arena.device, arena.arena_id), ("cpu", self.writer.arena_id.hex()))

    def test_takes_the_ranks_own_directory_too(self) -> None:
        self.writer.start("7", fill=3)
        with layercast.attach(self.directory, timeout_s=SHORT_S) as arena:
            self.assertEqual(arena.weight_version, "7")

    def test_waits_until_there_are_live_weights(self) -> None:
        timer = threading.Timer(SHORT_S, lambda: self.writer.start("1", fill=1))
        timer.start()
        self.addCleanup(timer.join)
        with layercast.attach(self.run_dir, timeout_s=10) as arena:
            self.assertEqual(arena.weight_version, "1")

    def test_says_what_it_waited_for(self) -> None:
        with self.assertRaisesRegex(layercast.Timeout, "rank-0/control to show live weights: generation 0"):
            self.attach()
        with self.assertRaisesRegex(layercast.Timeout, "control page .*replica-0/rank-5 .*is the worker up"):
            layercast.attach(self.run_dir, rank=5, timeout_s=SHORT_S)
        self.writer.start("1", fill=1)
        self.writer.begin()
        with self.assertRaisesRegex(layercast.Timeout, "generation 3, epoch 2: odd"):
            self.attach()

    def test_refuses_a_timeout_that_never_ends(self) -> None:
        for timeout_s in (float("inf"), float("nan"), -1):
            with self.assertRaisesRegex(ValueError, "timeout_s"):
                layercast.attach(self.run_dir, timeout_s=timeout_s)

    def test_leaves_no_way_to_write(self) -> None:
        self.writer.start("1", fill=1)
        buffer = self.attach().buffers()["norm.weight"]
        with self.assertRaises(TypeError):
            buffer[0] = 1


class Refusing(ArenaTest):
    """A page or a file that is not an arena's, by the words of the refusal."""

    def refused(self, words: str) -> None:
        with self.assertRaisesRegex(layercast.ArenaInvalid, words):
            self.attach()

    def test_another_magic_or_abi_version(self) -> None:
        self.writer.start("1", fill=1)
        self.writer.write_fields(state=1, version="1", magic=b"SOMETHNG")
        self.refused("begins with b'SOMETHNG'")
        self.writer.write_fields(state=1, version="1", abi=2)
        self.refused("ABI version 2, this package reads 1")

    def test_a_state_or_device_it_does_not_know(self) -> None:
        self.writer.start("1", fill=1)
        self.writer.write_fields(state=9, version="1")
        self.refused("state 9")
        self.writer.write_fields(state=1, version="1", device_kind=7)
        self.refused("device kind 7")

    def test_a_page_of_another_size(self) -> None:
        (self.directory / "control").write_bytes(b"LAYRCAST")
        self.refused("has 8 bytes")

    def test_sizes_that_the_file_does_not_have(self) -> None:
        self.writer.start("1", fill=1)
        for sizes in ({"data_bytes": 1 << 63}, {"data_bytes": self.writer.data_bytes + 256}, {"data_offset": 4095}):
            self.writer.write_fields(state=1, version="1", **sizes)
            self.refused("has .* bytes, its control page says")
        for sizes in ({"data_bytes": 0}, {"data_offset": 8}, {"data_offset": 1 << 62}):
            self.writer.write_fields(state=1, version="1", **sizes)
            self.refused("the control page says")

    def test_a_file_that_ends_early(self) -> None:
        self.writer.start("1", fill=1)
        with open(self.directory / "live.safetensors", "r+b") as file:
            file.truncate(PAGE_BYTES + 1)
        self.refused("has 4097 bytes")

    def test_what_is_no_regular_file_at_once(self) -> None:
        kinds = (("a FIFO", os.mkfifo), ("a directory", os.mkdir))
        for name in ("control", "live.safetensors"):
            for kind, make in kinds:
                RankWriter(self.directory).start("1", fill=1)
                path = self.directory / name
                path.unlink()
                make(path)
                self.refused(f"{name} is {kind}, not a regular file")
                if path.is_dir():
                    path.rmdir()
                else:
                    path.unlink()

    def test_a_file_that_is_not_there(self) -> None:
        self.writer.swap("1", lambda: None)
        with self.assertRaises(FileNotFoundError):
            self.attach()


class Versions(ArenaTest):
    def setUp(self) -> None:
        super().setUp()
        self.writer.start("9", fill=1)

    def test_the_one_that_is_live_is_there_at_once(self) -> None:
        self.assertEqual(self.attach().wait_for_version("9", timeout_s=0), "9")

    def test_whole_numbers_are_compared_as_such(self) -> None:
        arena = self.attach()
        self.assertEqual(arena.wait_for_version("8", timeout_s=0), "9")
        with self.assertRaisesRegex(layercast.Timeout, "weight version 10 in .*: it holds 9"):
            arena.wait_for_version("10", timeout_s=SHORT_S)

    def test_any_other_must_be_the_same(self) -> None:
        arena = self.attach()
        self.writer.swap("step-9", lambda: None)
        self.assertEqual(arena.wait_for_version("step-9", timeout_s=0), "step-9")
        for other in ("step-8", "8", "٨"):
            with self.assertRaises(layercast.Timeout):
                arena.wait_for_version(other, timeout_s=0)

    def test_one_that_the_page_had_to_cut_is_recognized(self) -> None:
        version = "v" * 127 + "ü"
        arena = self.attach()
        self.writer.swap("v" * 127, lambda: None)
        self.assertEqual(arena.wait_for_version(version, timeout_s=0), "v" * 127)

    def test_a_coming_one_is_waited_for_and_shows_in_the_same_buffers(self) -> None:
        arena = self.attach()
        buffer = arena.buffers()["qkv_proj.weight"]
        timer = threading.Timer(SHORT_S, lambda: self.writer.swap("10", self.writer.fill(2)))
        timer.start()
        self.addCleanup(timer.join)
        self.assertEqual(arena.wait_for_version("10", timeout_s=10), "10")
        self.assertEqual(bytes(buffer), b"\2" * 512)


class Reading(ArenaTest):
    def setUp(self) -> None:
        super().setUp()
        self.writer.start("1", fill=1)
        self.arena = self.attach()

    def swap(self) -> None:
        self.writer.swap("2", self.writer.fill(2))

    def test_a_block_without_a_swap_ends_quietly(self) -> None:
        with self.arena.reading(timeout_s=0) as version:
            self.assertEqual(version, "1")

    def test_a_swap_within_the_block_is_told(self) -> None:
        with self.assertRaisesRegex(layercast.Changed, "generation 2 to 4"), self.arena.reading(timeout_s=0):
            self.swap()

    def test_a_swap_that_has_begun_is_told(self) -> None:
        with self.assertRaisesRegex(layercast.Changed, "generation 2 to 3"), self.arena.reading(timeout_s=0):
            self.writer.begin()

    def test_what_torn_bytes_made_of_the_block_is_not_its_error(self) -> None:
        with self.assertRaises(layercast.Changed) as caught, self.arena.reading(timeout_s=0):
            self.swap()
            raise ZeroDivisionError
        self.assertIsInstance(caught.exception.__cause__, ZeroDivisionError)
        with self.assertRaises(ZeroDivisionError), self.arena.reading(timeout_s=0):
            raise ZeroDivisionError

    def test_a_swap_under_way_is_waited_for(self) -> None:
        self.writer.begin()
        with self.assertRaisesRegex(layercast.Timeout, "the swap in .* to end: generation 3"):
            with self.arena.reading(timeout_s=SHORT_S):
                self.fail("the block must not run")

    def test_read_calls_again_until_nothing_changed(self) -> None:
        versions: list[str] = []

        def function(version: str) -> bytes:
            versions.append(version)
            if version == "1":
                self.swap()
            return bytes(self.arena.buffers()["norm.weight"])

        self.assertEqual(self.arena.read(function, timeout_s=10), b"\2" * 10)
        self.assertEqual(versions, ["1", "2"])

    def test_read_gives_up_at_its_deadline(self) -> None:
        with self.assertRaisesRegex(layercast.Timeout, "a read without a swap in it"):
            self.arena.read(lambda _: self.swap(), timeout_s=SHORT_S)

    def test_a_writer_process_that_swaps_all_the_time_is_never_seen_torn(self) -> None:
        swapper = subprocess.Popen(
            [sys.executable, "-m", "tests.swapper", str(self.directory), str(PAGE_BYTES)],
            cwd=Path(__file__).parent.parent,
        )
        self.addCleanup(swapper.wait)
        self.addCleanup(swapper.kill)
        buffers = self.arena.buffers()
        seen: set[str] = set()
        end = time.monotonic() + 2
        while time.monotonic() < end:
            version, values = self.arena.read(lambda version: (version, {*b"".join(buffers.values())}), timeout_s=20)
            self.assertEqual(values, {int(version) % 251})
            seen.add(version)
        self.assertGreater(len(seen), 2)


class Replacing(ArenaTest):
    def setUp(self) -> None:
        super().setUp()
        self.writer.start("1", fill=1)
        self.arena = self.attach()

    def replace(self) -> None:
        self.writer.arena_id = bytes(range(16))
        self.writer.start("2", fill=2)

    def test_every_look_at_the_page_tells_of_another_arena(self) -> None:
        self.replace()
        for look in (
            lambda: self.arena.weight_version,
            lambda: self.arena.epoch,
            lambda: self.arena.wait_for_version("2", timeout_s=SHORT_S),
            lambda: self.arena.read(lambda _: None, timeout_s=SHORT_S),
        ):
            with self.assertRaisesRegex(layercast.ArenaReplaced, "attach again"):
                look()

    def test_attaching_again_gives_the_new_one_and_old_buffers_stay_readable(self) -> None:
        before = self.arena.buffers()["norm.weight"]
        self.replace()
        self.assertEqual(bytes(self.attach().buffers()["norm.weight"]), b"\2" * 10)
        self.assertEqual(bytes(before), b"\1" * 10)

    def test_a_directory_made_anew_is_told_while_waiting(self) -> None:
        (self.directory / "control").unlink()
        RankWriter(self.directory).start("2", fill=2)
        with self.assertRaisesRegex(layercast.ArenaReplaced, "another file"):
            self.arena.wait_for_version("2", timeout_s=10)


class Closing(ArenaTest):
    def setUp(self) -> None:
        super().setUp()
        self.writer.start("1", fill=1)

    def test_every_use_afterwards_is_refused(self) -> None:
        arena = self.attach()
        arena.close()
        for use in (arena.tensors, arena.buffers, arena.layout, lambda: arena.generation, lambda: arena.epoch):
            with self.assertRaises(layercast.ArenaClosed):
                use()
        arena.close()

    def test_buffers_outlive_it_and_the_last_one_unmaps_the_file(self) -> None:
        arena = self.attach()
        buffer = arena.buffers()["norm.weight"]
        arena.close()
        self.assertEqual(bytes(buffer), b"\1" * 10)
        self.assertIn(str(self.directory / "live.safetensors"), mapped_files())
        del buffer
        # The writer's own mapping of it is the one that may stay.
        self.writer.live = None
        self.assertNotIn(str(self.directory / "live.safetensors"), mapped_files())


def mapped_files() -> str:
    return Path("/proc/self/maps").read_text()
