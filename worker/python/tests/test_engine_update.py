"""Laws of a weight update in a rank's process, waiting for a commit and copying, against a worker's part."""

from __future__ import annotations

import logging
import os
import threading
import unittest
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any

import layercast
from layercast.vllm import seat as seats
from layercast.vllm.copying import plan_copies
from layercast.vllm.errors import LayoutMismatch
from layercast.vllm.messages import Hello
from layercast.vllm.run_lock import RunLock
from layercast.vllm.weight_update import Copied, Followed, UpdateInfo, read_update_info

from .engine_worker import EngineWorker
from .rank_writer import RankWriter

SHORT_S = 0.05
logging.getLogger("vllm.layercast").setLevel(logging.CRITICAL)


class UpdateTest(unittest.TestCase):
    def setUp(self) -> None:
        scratch = TemporaryDirectory(prefix="layercast-update-")
        self.addCleanup(scratch.cleanup)
        self.directory = Path(scratch.name)
        RankWriter(self.directory).start("1", fill=1)
        self.worker = EngineWorker(self.directory)
        self.addCleanup(self.worker.close)

    def swap_when_it_can(self, epoch: int) -> None:
        thread = threading.Thread(target=self.worker.swap, args=(epoch,))
        thread.start()
        self.addCleanup(thread.join)


class Following(UpdateTest):
    def setUp(self) -> None:
        super().setUp()
        hello = Hello(engine="e-0", role="rank", version="0.32.0", pid=os.getpid(), host="here", world=1, rank=0)
        self.seat = seats.take_seat(self.directory, hello, timeout_s=10)
        self.addCleanup(seats.leave_seat)
        self.update = Followed(self.seat)
        self.update.start()

    def test_a_version_that_is_live_is_no_wait(self) -> None:
        self.update.receive(UpdateInfo("1", SHORT_S))
        self.update.finish()

    def test_a_commit_happens_while_it_waits_and_the_rank_runs_with_it(self) -> None:
        self.assertFalse(self.worker.try_lock())
        self.swap_when_it_can(2)
        self.update.receive(UpdateInfo("2", 10))
        self.assertTrue(self.seat.runs)
        self.assertEqual(self.seat.go_on(), seats.RankPage(2, 4, "2"))

    def test_without_a_version_the_next_one_will_do(self) -> None:
        with self.assertRaises(layercast.Timeout):
            self.update.receive(UpdateInfo(None, SHORT_S))
        self.swap_when_it_can(2)
        self.update.receive(UpdateInfo(None, 10))

    def test_a_version_that_never_comes_is_an_error_and_the_old_one_runs(self) -> None:
        with self.assertRaises(layercast.Timeout) as caught:
            self.update.receive(UpdateInfo("7", SHORT_S))
        self.assertIn("weight version 7", str(caught.exception))
        self.assertTrue(self.seat.runs)
        self.assertEqual(self.seat.go_on(), seats.RankPage(1, 2, "1"))

    def test_finish_audits(self) -> None:
        def audit() -> None:
            raise layercast.LayercastError("lm_head.weight has moved")

        self.seat.loaded(SimpleNamespace(arena_id=""), audit)  # type: ignore[arg-type]
        with self.assertRaises(layercast.LayercastError):
            self.update.finish()


class Copying(UpdateTest):
    def setUp(self) -> None:
        super().setUp()
        self.copied: list[str] = []
        self.update = Copied(self.directory, self.copy)
        self.update.start()

    def copy(self) -> None:
        self.assertFalse(self.worker.try_lock(), "no swap while copying")
        self.copied.append("all")

    def test_copies_under_the_lock_and_gives_it_back(self) -> None:
        self.update.receive(UpdateInfo("1", 10))
        self.assertEqual(self.copied, ["all"])
        self.assertTrue(self.worker.try_lock())
        self.update.finish()

    def test_waits_for_the_version(self) -> None:
        self.swap_when_it_can(2)
        self.update.receive(UpdateInfo("2", 10))
        self.assertEqual(self.copied, ["all"])

    def test_a_version_that_never_comes_copies_nothing(self) -> None:
        with self.assertRaises(layercast.Timeout):
            self.update.receive(UpdateInfo("7", SHORT_S))
        self.assertEqual(self.copied, [])
        self.update.finish()

    def test_no_other_version_is_taken_for_it_as_each_rank_copies_for_itself(self) -> None:
        self.worker.swap(3)
        with self.assertRaises(layercast.LayercastError):
            self.update.receive(UpdateInfo("2", 10))
        with self.assertRaises(ValueError):
            self.update.receive(UpdateInfo(None, 10))
        self.assertEqual(self.copied, [])

    def test_a_copy_that_failed_is_said_at_finish_and_gives_the_lock_back(self) -> None:
        def fail() -> None:
            raise RuntimeError("out of memory")

        update = Copied(self.directory, fail)
        with self.assertRaises(RuntimeError):
            update.receive(UpdateInfo("1", 10))
        self.assertTrue(self.worker.try_lock())
        with self.assertRaises(layercast.LayercastError):
            update.finish()

    def test_a_swap_is_waited_for_within_the_limit(self) -> None:
        self.worker.lock()
        with self.assertRaises(layercast.Timeout):
            self.update.receive(UpdateInfo("1", SHORT_S))
        lock = RunLock(self.directory)
        self.assertFalse(lock.try_take())


class Asking(unittest.TestCase):
    def test_other_backends_fields_are_ignored_and_a_number_is_a_version(self) -> None:
        foreign = {"names": ["a"], "dtype_names": ["bfloat16"], "shapes": [[1]], "packed": True, "is_checkpoint_format": True}
        self.assertEqual(read_update_info(foreign), UpdateInfo(None, 300.0))
        self.assertEqual(read_update_info({**foreign, "weight_version": 7, "timeout_s": 2}), UpdateInfo("7", 2.0))

    def test_what_cannot_be_a_version_or_a_time_is_named(self) -> None:
        versions: list[dict[str, Any]] = [{"weight_version": value} for value in ("", [1], True)]
        for wrong in (*versions, {"timeout_s": 0}, {"timeout_s": "1"}):
            with self.subTest(wrong=wrong), self.assertRaises(ValueError) as caught:
                read_update_info(wrong)
            self.assertIn(next(iter(wrong)), str(caught.exception))


@dataclass(eq=False)
class Tensor:
    dtype: str
    shape: tuple[int, ...]

    def t(self) -> Tensor:
        return Tensor(self.dtype, self.shape[::-1])


class Module:
    def __init__(self, children: Mapping[str, Module] | None = None, method: object = None, **parameters: Tensor) -> None:
        self.children = children or {}
        self.quant_method = method
        self._parameters = parameters

    def named_modules(self, remove_duplicate: bool = True, prefix: str = "") -> Iterator[tuple[str, Module]]:
        yield prefix, self
        for name, child in self.children.items():
            yield from child.named_modules(remove_duplicate, f"{prefix}.{name}" if prefix else name)

    def named_parameters(self) -> Iterator[tuple[str, Tensor]]:
        seen: set[int] = set()
        for path, module in self.named_modules():
            for leaf, parameter in module._parameters.items():
                if id(parameter) not in seen:
                    seen.add(id(parameter))
                    yield f"{path}.{leaf}", parameter


class Fp8PtpcOnlineLinearMethod:
    """By its name: these codes lie transposed."""


class Planning(unittest.TestCase):
    def setUp(self) -> None:
        self.head = Tensor("bf16", (8, 4))
        self.codes = Tensor("fp8", (4, 4))
        linear = Module(None, Fp8PtpcOnlineLinearMethod(), weight=self.codes, weight_scale=Tensor("f32", (4, 1)))
        self.model = Module({"embed": Module(weight=self.head), "head": Module(weight=self.head), "linear": linear})
        self.tensors: dict[str, Any] = {
            "embed.weight": Tensor("bf16", (8, 4)),
            "linear.weight": Tensor("fp8", (4, 4)),
            "linear.weight_scale": Tensor("f32", (4, 1)),
            "attn.k_scale": Tensor("f32", ()),
        }

    def test_every_parameter_once_transposed_by_its_method_and_tied_ones_by_identity(self) -> None:
        copies = {copy.name: copy for copy in plan_copies(self.model, self.tensors)}
        self.assertEqual(sorted(copies), ["embed.weight", "linear.weight", "linear.weight_scale"])
        self.assertIs(copies["embed.weight"].target, self.head)
        self.assertIsNot(copies["linear.weight"].source, self.tensors["linear.weight"], "a square matrix is turned all the same")

    def test_what_does_not_fit_is_named_with_both_layouts(self) -> None:
        wrong = {
            "another shape": ("linear.weight_scale", Tensor("f32", (1,)), "f32 [1]"),
            "another dtype": ("embed.weight", Tensor("f16", (8, 4)), "f16 [8, 4]"),
            "missing": ("embed.weight", None, "no such tensor"),
            "one too many": ("norm.weight", Tensor("bf16", (4,)), "no such parameter"),
        }
        for name, (key, tensor, said) in wrong.items():
            tensors = {**self.tensors, key: tensor}
            if tensor is None:
                del tensors[key]
            with self.subTest(name), self.assertRaises(LayoutMismatch) as caught:
                plan_copies(self.model, tensors)
            self.assertIn(said, str(caught.exception))
            self.assertIn(key, str(caught.exception))
