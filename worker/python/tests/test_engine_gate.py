"""Laws of the gate: a fake engine in processes of its own, and workers that stop it, swap, and die."""

from __future__ import annotations

import json
import logging
import signal
import subprocess
import sys
import threading
import time
import unittest
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import IO, Any

from layercast.vllm.gate import as_one_line

from .engine_worker import WAIT_S, EngineWorker
from .rank_writer import RankWriter

PYTHON = Path(__file__).parent.parent
logging.getLogger("vllm.layercast").setLevel(logging.CRITICAL)


class Sentences(unittest.TestCase):
    def test_trouble_is_one_line_that_the_worker_takes(self) -> None:
        self.assertEqual(as_one_line("Rank 0 cannot run:\n  a\tb\x1b[0m"), "Rank 0 cannot run: a b [0m")
        self.assertEqual(len(as_one_line("x" * 10_000)), 4096)


class Program:
    """A process that is told lines and answers with lines."""

    def __init__(self, *arguments: str) -> None:
        command = [sys.executable, "-B", "-m", *arguments]
        self.process = subprocess.Popen(command, cwd=PYTHON, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self.said: list[str] = []
        self.changed = threading.Condition()
        assert self.process.stdout is not None
        self.listener = threading.Thread(target=self._listen, args=(self.process.stdout,), daemon=True)
        self.listener.start()

    def tell(self, line: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()

    def wait_for(self, found: Callable[[str], bool], what: str) -> str:
        """Takes the first line of which that is true."""
        with self.changed:
            if not self.changed.wait_for(lambda: any(map(found, self.said)), WAIT_S):
                raise AssertionError(f"waited for {what}, heard {self.said}")
            line = next(filter(found, self.said))
            self.said.remove(line)
            return line

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()
        self.listener.join()
        for pipe in (self.process.stdin, self.process.stdout):
            assert pipe is not None
            with suppress(BrokenPipeError):
                pipe.close()

    def _listen(self, pipe: IO[str]) -> None:
        for line in pipe:
            with self.changed:
                self.said.append(line.strip())
                self.changed.notify_all()


class Engine(Program):
    def __init__(self, directories: list[Path], **options: Any) -> None:
        super().__init__("tests.engine_core", json.dumps(options), *map(str, directories))
        self.wait_for(lambda line: '"up"' in line, "the engine to be up")

    def ask(self, name: str) -> Any:
        self.tell(name)
        return json.loads(self.wait_for(lambda line: f'"{name}"' in line, f"the answer to {name}"))["result"]

    def is_silent_about(self, name: str) -> bool:
        with self.changed:
            return not any(f'"{name}"' in line for line in self.said)

    def steps_after_now(self) -> dict[str, Any]:
        """A report with a step later than this moment: it runs."""
        before = self.ask("report")["steps"]
        end = time.monotonic() + WAIT_S
        while (report := self.ask("report"))["steps"] <= before + 2:
            assert time.monotonic() < end, f"the engine does not step: {report}"
        return dict(report)

    def end(self) -> dict[str, Any]:
        return dict(json.loads(self.wait_for(lambda line: '"ended"' in line, "the engine's end"))["ended"])


class GateTest(unittest.TestCase):
    world = 1

    def setUp(self) -> None:
        scratch = TemporaryDirectory(prefix="layercast-gate-")
        self.addCleanup(scratch.cleanup)
        self.directories = [Path(scratch.name, f"rank-{rank}") for rank in range(self.world)]
        for directory in self.directories:
            RankWriter(directory).start("1", fill=1)
        self.workers = [self.worker(directory) for directory in self.directories]

    def worker(self, directory: Path) -> EngineWorker:
        worker = EngineWorker(directory)
        self.addCleanup(worker.close)
        return worker

    def engine(self, request: str | None = "r", **options: Any) -> Engine:
        engine = Engine(self.directories, **options)
        self.addCleanup(self.check_and_end, engine)
        for worker in self.workers:
            worker.wait_until_ready()
        if request is not None:
            engine.tell(f"ADD {request}")
            engine.steps_after_now()
        else:
            engine.ask("report")
        return engine

    def check_and_end(self, engine: Engine) -> None:
        engine.kill()
        wrong = [line for line in engine.said if '"wrong"' in line]
        self.assertEqual(wrong, [], "a step computed with a mix")

    def killable_worker(self, directory: Path, *lines: str) -> Program:
        """In place of the test's own, after these lines."""
        self.workers[self.directories.index(directory)].close()
        program = Program("tests.engine_worker", str(directory))
        self.addCleanup(program.kill)
        program.wait_for(lambda line: line == "up", "the worker to be up")
        for line in lines:
            program.tell(line)
            program.wait_for(lambda line: line == "done", f"the end of {line}")
        return program


class Stopping(GateTest):
    def test_a_thousand_swaps_under_load_meet_no_step_and_each_is_computed_with_or_passed_by(self) -> None:
        engine = self.engine(clear_cache=True)
        worker = self.workers[0]
        for epoch in range(2, 1002):
            worker.swap(epoch)
            # The running engine is what the next stop must stop.
            worker.wait_until_running(epoch)
            worker.forget("running")
        report = engine.steps_after_now()
        self.assertEqual((report["epochs"][-1], report["version"], report["resets"]), (1001, "1001", 1000))
        self.assertGreater(report["steps"], 500)

    def test_an_idle_engine_is_stopped_and_runs_again(self) -> None:
        engine = self.engine(request=None)
        self.workers[0].swap(2)
        said = self.workers[0].wait_until_running(2)
        self.assertEqual(said["weight_version"], "2")
        self.assertGreaterEqual(said["stop_ms"], said["still_ms"])
        engine.tell("ADD late")
        self.assertEqual(engine.steps_after_now()["epochs"], [2])

    def test_says_stopped_when_the_lock_is_free(self) -> None:
        self.engine()
        worker = self.workers[0]
        worker.send({"stop": 2})
        self.assertEqual(worker.wait_for("stopped"), {"stopped": 2})
        self.assertTrue(worker.try_lock())

    def test_a_stop_that_was_given_up_runs_again_with_what_was(self) -> None:
        engine = self.engine(clear_cache=False)
        worker = self.workers[0]
        worker.send({"stop": 2})
        worker.wait_for("stopped")
        worker.forget("running")
        worker.send({"go": 2})
        worker.wait_until_running(1)
        report = engine.steps_after_now()
        self.assertEqual((report["epochs"], report["resets"]), ([1], 0))

    def test_what_arrives_while_still_is_kept_answered_or_put_off(self) -> None:
        engine = self.engine()
        worker = self.workers[0]
        worker.send({"stop": 2})
        worker.wait_for("stopped")
        for line in ("ADD second", "ADD third", "ABORT r", "report"):
            engine.tell(line)
        self.assertIs(engine.ask("is_scheduler_paused"), False)
        self.assertTrue(engine.is_silent_about("report"), "what may compute waits")
        worker.send({"go": 2})
        answered = json.loads(engine.wait_for(lambda line: '"report"' in line, "what was put off"))["result"]
        self.assertEqual(answered["requests"], ["second", "third"])
        engine.steps_after_now()

    def test_malformed_messages_end_the_link_and_a_stop_with_it(self) -> None:
        engine = self.engine()
        worker = self.workers[0]
        worker.send({"stop": 2})
        worker.wait_for("stopped")
        worker.send({"stop": "three"})
        worker.wait_for("gone")
        self.assertEqual(engine.steps_after_now()["epochs"], [1])
        worker.wait_for("hello", count=3)


class Dying(GateTest):
    def test_a_lost_link_is_no_open_stop(self) -> None:
        engine = self.engine()
        worker = self.workers[0]
        worker.send({"stop": 2})
        worker.wait_for("stopped")
        worker.drop_connections()
        engine.steps_after_now()
        worker.wait_for("hello", count=4)
        worker.swap(2)
        worker.wait_until_running(2)
        self.assertEqual(engine.steps_after_now()["epochs"], [1, 2])

    def test_a_worker_killed_before_its_swap_leaves_the_engine_with_the_old_weights(self) -> None:
        engine = self.engine()
        dying = self.killable_worker(self.directories[0], "wait_until_ready", "stop 2", "wait stopped", "lock")
        dying.kill()
        self.assertEqual(engine.steps_after_now()["epochs"], [1])

    def test_a_worker_killed_in_its_swap_leaves_it_still_until_a_successor_is_done(self) -> None:
        engine = self.engine()
        lines = ("wait_until_ready", "stop 2", "wait stopped", "lock", "begin 2")
        self.killable_worker(self.directories[0], *lines).kill()
        successor = self.worker(self.directories[0])
        said = successor.wait_for("trouble")
        self.assertIn("not whole", said["trouble"])
        successor.lock()
        successor.end("2")
        successor.unlock()
        successor.wait_until_running(2)
        successor.wait_for("trouble", count=2)
        self.assertEqual(engine.steps_after_now()["epochs"], [1, 2])

    def test_a_rank_that_dies_gives_its_lock_back_with_it(self) -> None:
        engine = self.engine()
        engine.kill()
        self.workers[0].lock()

    def test_a_failed_executor_ends_a_still_engine_as_it_ends_a_running_one(self) -> None:
        engine = self.engine()
        self.workers[0].send({"stop": 2})
        self.workers[0].wait_for("stopped")
        engine.tell("fail")
        engine.end()
        self.assertNotEqual(engine.process.wait(WAIT_S), 0)


class Ending(GateTest):
    def test_sigterm_ends_a_still_engine_at_once(self) -> None:
        engine = self.engine()
        self.workers[0].send({"stop": 2})
        self.workers[0].wait_for("stopped")
        engine.process.send_signal(signal.SIGTERM)
        self.assertEqual(engine.end()["aborted"], 1)
        engine.process.wait(WAIT_S)

    def test_an_engine_that_drains_gets_its_time_and_ends_with_it_while_still(self) -> None:
        engine = self.engine(shutdown_timeout=0.3)
        self.workers[0].send({"stop": 2})
        self.workers[0].wait_for("stopped")
        engine.process.send_signal(signal.SIGTERM)
        self.assertEqual(engine.end()["aborted"], 1)
        engine.process.wait(WAIT_S)

    def test_an_engine_that_drains_goes_on_when_it_may(self) -> None:
        engine = self.engine(shutdown_timeout=60)
        self.workers[0].send({"stop": 2})
        self.workers[0].wait_for("stopped")
        engine.process.send_signal(signal.SIGTERM)
        self.workers[0].send({"go": 2})
        engine.steps_after_now()


class TwoRanks(GateTest):
    world = 2

    def test_runs_when_both_are_done_and_says_what_it_waits_for(self) -> None:
        engine = self.engine()
        first, second = self.workers
        first.swap(2)
        self.assertIn("rank 0 epoch 2, rank 1 epoch 1", first.wait_for("trouble")["trouble"])
        second.swap(2)
        first.wait_until_running(2)
        self.assertEqual(first.wait_for("trouble", count=2), {"trouble": None})
        self.assertEqual(engine.steps_after_now()["epochs"], [1, 2])

    def test_swaps_of_both_in_any_order_meet_no_step(self) -> None:
        engine = self.engine()
        for epoch in range(2, 102):
            threads = [threading.Thread(target=worker.swap, args=(epoch,)) for worker in self.workers]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        report = engine.steps_after_now()
        self.assertEqual(report["epochs"][-1], 101)

    def test_a_worker_killed_between_stop_and_go_keeps_a_mix_away_until_its_successor_is_level(self) -> None:
        engine = self.engine()
        dying = self.killable_worker(self.directories[1], "wait_until_ready", "stop 2", "wait stopped", "lock")
        self.workers[0].swap(2)
        dying.kill()
        self.workers[0].wait_for("trouble")
        successor = self.worker(self.directories[1])
        successor.wait_for("trouble")
        successor.swap(2)
        successor.wait_until_running(2)
        self.assertEqual(engine.steps_after_now()["epochs"], [1, 2])

    def test_after_a_weight_update_in_which_one_rank_stayed_behind_it_waits(self) -> None:
        engine = self.engine(clear_cache=True)
        engine.tell("update_weights 10 0.3")
        first, second = self.workers
        # Nobody says stop or go: what the ranks show is enough.
        first.lock()
        first.begin(2)
        first.end("2")
        first.unlock()
        self.assertIn("rank 1: Timeout", self.failure_of_update(engine))
        first.wait_for("trouble")
        second.swap(2)
        second.wait_until_running(2)
        report = engine.steps_after_now()
        self.assertEqual(report["epochs"], [1, 2])
        self.assertGreaterEqual(report["resets"], 1)

    def test_a_weight_update_that_ends_without_the_weights_leaves_all_ranks_with_the_old(self) -> None:
        engine = self.engine()
        engine.tell("update_weights 0.2 0.1")
        failure = self.failure_of_update(engine)
        self.assertIn("rank 0: Timeout", failure)
        self.assertIn("rank 1: Timeout", failure)
        self.assertEqual(engine.steps_after_now()["epochs"], [1])

    def failure_of_update(self, engine: Engine) -> str:
        return str(json.loads(engine.wait_for(lambda line: "collective_rpc" in line, "the update's answer"))["failure"])
