"""
An engine of the shape that the gate knows of vLLM's: a core with a busy loop, and ranks in processes of their own.

As a program: `python -m tests.engine_core OPTIONS DIRECTORY...`, a directory for each rank. Its standard input brings
requests as a client's would come, a line each; what the core answers goes to the standard output, a JSON object a line.
"""

from __future__ import annotations

import enum
import json
import logging
import multiprocessing
import os
import queue
import signal
import sys
import threading
import time
from collections import deque
from concurrent.futures import Future
from multiprocessing.connection import Connection
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from layercast.control_page import PageFile
from layercast.vllm.compat_core import collect_failures_of_ranks, put_gate_between_steps
from layercast.vllm.gate import Gate, RankPlace
from layercast.vllm.messages import Hello
from layercast.vllm.seat import RankSeat, current_seat, take_seat
from layercast.vllm.weight_update import Followed, UpdateInfo

Kind = enum.Enum("Kind", "ADD ABORT UTILITY EXECUTOR_FAILED WAKEUP")
ShutdownState = enum.IntEnum("ShutdownState", "RUNNING REQUESTED SHUTTING_DOWN")
PauseState = enum.IntEnum("PauseState", "UNPAUSED PAUSED_NEW PAUSED_ALL")
STEP_S = 0.0002


def hello(role: str, rank: int, world: int) -> Hello:
    return Hello(engine="e-0", role=role, version="0.26.0", pid=os.getpid(), host="here", world=world, rank=rank)


def serve_rank(pipe: Connection, directory: Path, rank: int, world: int) -> None:
    """A rank's process: what comes is a function of a module with its arguments, done in the order in which it came."""
    logging.getLogger("vllm.layercast").setLevel(logging.CRITICAL)
    seat = take_seat(directory, hello("rank", rank, world), timeout_s=10)
    seat.loaded(SimpleNamespace(arena_id=PageFile(directory / "control").read().arena_id), lambda: None)  # type: ignore
    worker = Worker(seat)
    pipe.send("up")
    while True:
        try:
            function, arguments = pipe.recv()
            try:
                pipe.send((function(worker, *arguments), None))
            except RuntimeError as error:
                pipe.send((None, str(error)))
        except (EOFError, BrokenPipeError, ConnectionResetError):
            return


class Worker:
    """What a core's calls are given in a rank."""

    def __init__(self, seat: RankSeat) -> None:
        self.seat = seat
        self.update = Followed(seat)

    def update_weights(self, limits_s: list[float]) -> None:
        """With another limit in each rank."""
        self.update.start()
        self.update.receive(UpdateInfo("2", limits_s[self.seat.hello.rank]))


def step(worker: Worker, duration_s: float) -> str | int:
    """Computes with what lies in the arena: its epoch, or what is wrong with it."""
    seat = worker.seat
    assert seat is current_seat()
    page = PageFile(seat.directory / "control")
    before = page.generation()
    found = page.read()
    time.sleep(duration_s)
    if not seat.runs or before % 2 == 1 or found is None or page.generation() != before:
        return f"a step began at generation {before} and ended at {page.generation()}, lock held: {seat.runs}"
    return found.epoch


class Answer(Future[list[Any]]):
    """Done in the order in which ranks were asked."""

    def __init__(self, executor: Executor) -> None:
        super().__init__()
        self.executor = executor

    def result(self, timeout: float | None = None) -> list[Any]:
        while not self.done():
            oldest = self.executor.asked.popleft()
            found = []
            for pipe in self.executor.pipes:
                result, failure = pipe.recv()
                if failure is not None:
                    # As vLLM does it: what the other ranks answer stays unread.
                    oldest.set_exception(RuntimeError(failure))
                    break
                found.append(result)
            else:
                oldest.set_result(found)
        return super().result()


class Executor:
    def __init__(self, directories: list[Path]) -> None:
        self.asked: deque[Answer] = deque()
        self.pipes: list[Connection] = []
        context = multiprocessing.get_context("spawn")
        for rank, directory in enumerate(directories):
            ours, theirs = context.Pipe()
            context.Process(target=serve_rank, args=(theirs, directory, rank, len(directories)), daemon=True).start()
            theirs.close()
            self.pipes.append(ours)
        for pipe in self.pipes:
            assert pipe.recv() == "up"

    def collective_rpc(
        self, method: Any, timeout: float | None = None, args: tuple[Any, ...] = (), non_block: bool = False
    ) -> Any:
        for pipe in self.pipes:
            pipe.send((method, args))
        answer = Answer(self)
        self.asked.append(answer)
        return answer if non_block else answer.result()


class Scheduler:
    def __init__(self) -> None:
        self.pause_state = PauseState.UNPAUSED
        self.requests: list[str] = []

    def set_pause_state(self, state: Any) -> None:
        self.pause_state = state

    def has_requests(self) -> bool:
        return self.pause_state is PauseState.UNPAUSED and bool(self.requests)


class Core:
    """Two steps are under way at a time, as with vLLM's asynchronous scheduling."""

    def __init__(self, directories: list[Path], step_s: float, shutdown_timeout: float) -> None:
        self.input_queue: queue.Queue[tuple[Any, Any]] = queue.Queue()
        self.batch_queue: deque[Future[list[Any]]] = deque()
        self.scheduler = Scheduler()
        self.shutdown_state = ShutdownState.RUNNING
        self.vllm_config = SimpleNamespace(
            shutdown_timeout=shutdown_timeout, model_config=SimpleNamespace(is_multimodal_model=False)
        )
        self.model_executor = Executor(directories)
        self.step_s = step_s
        self.counts = {"steps": 0, "resets": 0, "aborted": 0}
        self.epochs: list[int] = []
        self.weight_version = ""

    def run_busy_loop(self) -> None:
        while self._handle_shutdown():
            while not (self.scheduler.has_requests() or self.batch_queue) and self.shutdown_state is ShutdownState.RUNNING:
                self._handle_client_request(*self.input_queue.get())
            while not self.input_queue.empty():
                self._handle_client_request(*self.input_queue.get_nowait())
            self._process_engine_step()
        raise SystemExit

    def _process_engine_step(self) -> None:
        if self.scheduler.has_requests():
            self.batch_queue.appendleft(self.model_executor.collective_rpc(step, args=(self.step_s,), non_block=True))
            if len(self.batch_queue) < 2:
                return
        if not self.batch_queue:
            return
        found = self.batch_queue.pop().result()
        wrong = [one for one in found if isinstance(one, str)]
        if wrong or len(set(found)) != 1:
            tell(wrong=wrong or f"ranks computed with epochs {found}")
        self.counts["steps"] += 1
        if not self.epochs or self.epochs[-1] != found[0]:
            self.epochs.append(found[0])

    def _handle_client_request(self, kind: Any, request: Any) -> None:
        if kind is Kind.ADD:
            self.scheduler.requests.append(request)
        elif kind is Kind.ABORT:
            self.scheduler.requests.remove(request)
        elif kind is Kind.UTILITY:
            client, call, name, arguments = request
            try:
                tell(answer=name, result=getattr(self, name)(*arguments))
            except RuntimeError as error:
                tell(answer=name, failure=str(error))
        elif kind is Kind.EXECUTOR_FAILED:
            raise RuntimeError("Executor failed.")

    def _handle_shutdown(self) -> bool:
        if self.shutdown_state is ShutdownState.REQUESTED:
            if self.vllm_config.shutdown_timeout == 0:
                self.counts["aborted"] = len(self.scheduler.requests)
                self.scheduler.requests.clear()
            self.shutdown_state = ShutdownState.SHUTTING_DOWN
        return self.shutdown_state is ShutdownState.RUNNING or self.scheduler.has_requests() or bool(self.batch_queue)

    def reset_prefix_cache(self, reset_running_requests: bool, reset_connector: bool) -> bool:
        assert reset_running_requests and reset_connector and not self.batch_queue
        self.counts["resets"] += 1
        return True

    def set_weight_version(self, version: str) -> None:
        self.weight_version = version

    # What a client may ask.
    def collective_rpc(self, method: Any, timeout: float | None, args: tuple[Any, ...], kwargs: None) -> Any:
        return self.model_executor.collective_rpc(method, timeout, args)

    def is_scheduler_paused(self) -> bool:
        return self.scheduler.pause_state is not PauseState.UNPAUSED

    def report(self) -> dict[str, Any]:
        return {**self.counts, "epochs": self.epochs, "requests": list(self.scheduler.requests), "version": self.weight_version}


def tell(**what: Any) -> None:
    print(json.dumps(what), flush=True)


def take_requests(core: Core) -> None:
    for line in sys.stdin:
        name, *arguments = line.split()
        if name in ("ADD", "ABORT"):
            core.input_queue.put((Kind[name], arguments[0]))
        elif name == "update_weights":
            core.input_queue.put((Kind.UTILITY, (0, 0, "collective_rpc", (name, None, (list(map(float, arguments)),), None))))
        elif name == "fail":
            core.input_queue.put((Kind.EXECUTOR_FAILED, b""))
        else:
            core.input_queue.put((Kind.UTILITY, (0, 0, name, ())))
    # Whoever started this is gone.
    os._exit(1)


def main() -> None:
    options = json.loads(sys.argv[1])
    directories = [Path(argument) for argument in sys.argv[2:]]
    logging.getLogger("vllm.layercast").setLevel(logging.CRITICAL)
    core = Core(directories, options.get("step_s", STEP_S), options.get("shutdown_timeout", 0))
    collect_failures_of_ranks(core)
    places = [RankPlace(directory, hello("core", rank, len(directories))) for rank, directory in enumerate(directories)]
    put_gate_between_steps(Core, lambda one: Gate(one, places, clear_cache=options.get("clear_cache", True)))

    def end(*_: object) -> None:
        core.shutdown_state = ShutdownState.REQUESTED
        # Not here: the queue's lock may be held by the code that this interrupts.
        threading.Thread(target=lambda: core.input_queue.put((Kind.WAKEUP, None))).start()

    signal.signal(signal.SIGTERM, end)
    threading.Thread(target=take_requests, args=(core,), daemon=True).start()
    tell(up=True)
    try:
        core.run_busy_loop()
    except RuntimeError as error:
        sys.exit(str(error))
    finally:
        tell(ended=core.report())


if __name__ == "__main__":
    main()
