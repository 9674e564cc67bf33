"""Laws of a rank's seat: the link to the worker and the run lock, against a worker's part."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import unittest
from pathlib import Path
from tempfile import TemporaryDirectory

import layercast
from layercast.vllm import seat as seats
from layercast.vllm.messages import MAX_LINE_BYTES, Hello, LineReader, Malformed
from layercast.vllm.run_lock import RunLock

from .engine_worker import EngineWorker
from .rank_writer import RankWriter

SHORT_S = 0.05
logging.getLogger("vllm.layercast").setLevel(logging.CRITICAL)


def hello(role: str = "rank", rank: int = 0, world: int = 1) -> Hello:
    return Hello(engine="e-0", role=role, version="0.26.0", pid=os.getpid(), host="here", world=world, rank=rank)


class SeatTest(unittest.TestCase):
    def setUp(self) -> None:
        scratch = TemporaryDirectory(prefix="layercast-seat-")
        self.addCleanup(scratch.cleanup)
        self.directory = Path(scratch.name)
        self.writer = RankWriter(self.directory)
        self.writer.start("1", fill=1)
        self.addCleanup(seats.leave_seat)

    def worker(self, answer: dict[str, object] | None = None) -> EngineWorker:
        worker = EngineWorker(self.directory, answer)
        self.addCleanup(worker.close)
        return worker

    def take(self) -> seats.RankSeat:
        return seats.take_seat(self.directory, hello(), timeout_s=10)


class Taking(SeatTest):
    def test_says_who_it_is_and_holds_the_lock(self) -> None:
        worker = self.worker()
        seat = self.take()
        said = worker.wait_for("hello")
        expected = {"hello": 1, "engine": "e-0", "role": "rank", "name": "vllm", "version": "0.26.0", "state": "starting"}
        self.assertEqual({**said, **expected}, said)
        self.assertEqual((seat.welcome.epoch, seat.welcome.recipe), (1, "none"))
        self.assertFalse(worker.try_lock())

    def test_a_second_take_of_the_same_rank_is_the_same_seat_and_of_another_an_error(self) -> None:
        self.worker()
        seat = self.take()
        self.assertIs(self.take(), seat)
        with self.assertRaises(layercast.LayercastError):
            seats.take_seat(self.directory / "other", hello(), timeout_s=1)

    def test_a_refusal_is_the_workers_sentence(self) -> None:
        worker = self.worker({"refused": "engine_attached", "message": "No new engine now."})
        with self.assertRaises(layercast.Refused) as caught:
            self.take()
        self.assertEqual(caught.exception.code, "engine_attached")
        self.assertIn("No new engine now.", str(caught.exception))
        self.assertIsNone(seats.current_seat())
        self.assertTrue(worker.try_lock())

    def test_no_worker_and_a_worker_that_says_nothing_end_with_the_deadline(self) -> None:
        with self.assertRaises(layercast.Timeout):
            seats.take_seat(self.directory, hello(), SHORT_S)
        self.worker({})
        with self.assertRaises(layercast.Timeout):
            seats.take_seat(self.directory, hello(), SHORT_S)

    def test_the_lock_is_not_taken_while_the_worker_has_it(self) -> None:
        worker = self.worker()
        worker.lock()
        with self.assertRaises(layercast.Timeout):
            seats.take_seat(self.directory, hello(), 1)
        worker.unlock()
        self.assertTrue(self.take().runs)

    def test_a_directory_of_any_length_has_a_socket(self) -> None:
        self.directory = self.directory / ("d" * 200)
        RankWriter(self.directory).start("1", fill=1)
        self.worker()
        self.assertTrue(self.take().runs)


class StandingStill(SeatTest):
    def test_gives_the_lock_and_takes_it_again_with_what_is_live(self) -> None:
        worker = self.worker()
        seat = self.take()
        seat.stand_still()
        worker.lock()
        self.assertIsNone(seat.go_on())
        worker.begin(2)
        worker.unlock()
        self.assertIsNone(seat.go_on())
        self.assertIn("not whole", seat.trouble or "")
        self.assertTrue(worker.try_lock(), "a rank that cannot run holds no lock")
        worker.end("2")
        worker.unlock()
        page = seat.go_on()
        self.assertEqual(page, seats.RankPage(epoch=2, generation=4, weight_version="2"))
        self.assertIsNone(seat.trouble)
        self.assertFalse(worker.try_lock())

    def test_an_audit_that_fails_keeps_it_still(self) -> None:
        worker = self.worker()
        seat = self.take()
        wrong: list[str] = ["qkv_proj.weight has moved"]

        def audit() -> None:
            if wrong:
                raise layercast.LayercastError(wrong[0])

        with layercast.attach(self.directory) as arena:
            seat.loaded(arena, audit)
        seat.stand_still()
        self.assertIsNone(seat.go_on())
        self.assertIn("has moved", seat.trouble or "")
        self.assertTrue(worker.try_lock())
        worker.unlock()
        wrong.clear()
        self.assertIsNotNone(seat.go_on())

    def test_another_arena_at_the_place_keeps_it_still(self) -> None:
        self.worker()
        seat = self.take()
        with layercast.attach(self.directory) as arena:
            seat.loaded(arena, lambda: None)
        seat.stand_still()
        self.writer.arena_id = os.urandom(16)
        self.writer.swap("2", lambda: None)
        self.assertIsNone(seat.go_on())
        self.assertIn("start the engine again", seat.trouble or "")

    def test_a_call_that_waits_lets_a_swap_happen(self) -> None:
        worker = self.worker()
        seat = self.take()
        with seat.standing_still(timeout_s=10):
            worker.swap(2)
        self.assertTrue(seat.runs)

    def test_a_call_that_waited_ends_where_the_lock_does_not_come_back(self) -> None:
        worker = self.worker()
        seat = self.take()
        with self.assertRaises(layercast.Timeout), seat.standing_still(timeout_s=SHORT_S):
            worker.lock()
        self.assertFalse(seat.runs)


class Links(SeatTest):
    def test_a_seat_outlives_its_worker_and_is_known_to_the_next(self) -> None:
        first = self.worker()
        seat = self.take()
        with layercast.attach(self.directory) as arena:
            seat.loaded(arena, lambda: None)
        first.close()
        second = self.worker()
        self.assertEqual(second.wait_for("hello")["state"], "ready")
        self.assertFalse(second.try_lock())

    def test_malformed_messages_end_the_connection_and_not_the_seat(self) -> None:
        worker = self.worker()
        seat = self.take()
        for count, data in enumerate((b"no json\n", b"[1]\n", b"x" * (MAX_LINE_BYTES + 1), b'{"welcome": 1}\n'), 1):
            with self.subTest(data=data[:20]):
                worker.wait_for("hello", count=count)
                worker.send_raw(data, role="rank")
                worker.wait_for("gone", count=count)
        worker.wait_for("hello", count=5)
        self.assertTrue(seat.runs)

    def test_fields_and_messages_that_are_not_known_are_ignored(self) -> None:
        worker = self.worker()
        self.take()
        worker.send_raw(b'{"later": 1}\n\n{"stop": 2, "new": []}\n', role="rank")
        worker.drop_connections()
        worker.wait_for("hello", count=2)

    def test_lines_are_put_together_from_any_pieces(self) -> None:
        data = b'{"a": 1}\n{"b": "\xc3\xa4"}\n'
        for size in range(1, len(data)):
            reader = LineReader()
            found = [message for at in range(0, len(data), size) for message in reader.feed(data[at : at + size])]
            self.assertEqual(found, [{"a": 1}, {"b": "ä"}])
        with self.assertRaises(Malformed):
            LineReader().feed(b"[" * MAX_LINE_BYTES + b"\n")


class Dying(SeatTest):
    def test_the_lock_and_the_link_are_gone_with_the_process_though_a_fork_of_it_lives(self) -> None:
        worker = self.worker()
        command = [sys.executable, "-c", HOLDER, str(self.directory)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[1])
        assert process.stdout is not None
        child = json.loads(process.stdout.readline())
        try:
            self.assertFalse(worker.try_lock())
            process.kill()
            process.wait()
            worker.wait_for("gone")
            worker.lock()
            os.kill(child, 0)
        finally:
            os.kill(child, signal.SIGKILL)
            process.stdout.close()

    def test_a_lock_file_that_was_made_again_is_opened_again(self) -> None:
        worker = self.worker()
        lock = RunLock(self.directory)
        lock.take(1)
        lock.give_back()
        (self.directory / "running.lock").unlink()
        other = self.worker()
        self.assertTrue(lock.try_take())
        self.assertTrue(worker.try_lock())
        self.assertFalse(other.try_lock())
        lock.close()


HOLDER = """
import os, sys, time
from pathlib import Path
from layercast.vllm.messages import Hello
from layercast.vllm.seat import take_seat
hello = Hello(engine="e-0", role="rank", version="1", pid=os.getpid(), host="here", world=1, rank=0)
take_seat(Path(sys.argv[1]), hello, 10)
child = os.fork()
if child == 0:
    time.sleep(60)
print(child, flush=True)
time.sleep(60)
"""

