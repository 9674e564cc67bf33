"""
What the gate needs of vLLM's engine core, in one place: attributes and methods that are vLLM's own business.

The same in 0.25.1 to 0.33 unless said otherwise. Every function here runs in the thread of the core's busy loop.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from queue import Empty
from typing import Any, Protocol

from .log import log

# As long as vLLM waits for a step. A rank that does not answer for so long hangs, and the engine ends as it would in a step.
RANKS_ANSWER_S = 300.0
# What a client may ask of an engine that stands still: nothing here computes, or writes what steps read.
ANSWERED_WHILE_STILL = frozenset(
    ("pause_scheduler", "resume_scheduler", "is_scheduler_paused", "is_sleeping", "get_weight_version", "get_supported_tasks")
)

Core = Any
"""An `EngineCoreProc`."""
Request = tuple[Any, Any]
"""As it lies in the core's input queue: kind and what belongs to it."""


class Attends(Protocol):
    """What is put between a core's steps."""

    def settle(self) -> None: ...

    def attend(self) -> None: ...

    def close(self) -> None: ...


class _Knock:
    """The kind of a request that no client can send."""


KNOCK: Request = (_Knock(), None)


def put_gate_between_steps(core_class: Any, open_gate: Callable[[Core], Attends | None]) -> None:
    """Once a class. `open_gate` is called when a core's busy loop begins; None leaves it alone."""
    if getattr(core_class, "_layercast_gated", False):
        return
    run_busy_loop, handle_request = core_class.run_busy_loop, core_class._handle_client_request

    def run_with_gate(core: Core) -> Any:
        gate = core._layercast_gate = open_gate(core)
        if gate is None:
            return run_busy_loop(core)
        try:
            gate.settle()
            return run_busy_loop(core)
        finally:
            gate.close()

    def handle_with_gate(core: Core, kind: Any, request: Any) -> None:
        gate: Attends | None = getattr(core, "_layercast_gate", None)
        if kind is KNOCK[0]:
            if gate is not None:
                gate.attend()
            return
        handle_request(core, kind, request)
        if gate is not None and _is_weight_update(kind, request):
            gate.settle()

    core_class.run_busy_loop = run_with_gate
    core_class._handle_client_request = handle_with_gate
    core_class._layercast_gated = True


def knock(core: Core) -> None:
    """From any thread: the gate attends before the next step."""
    core.input_queue.put_nowait(KNOCK)


def next_request(core: Core, timeout_s: float) -> Request | None:
    """None after `timeout_s`."""
    try:
        request: Request = core.input_queue.get(timeout=max(0.0, timeout_s))
    except Empty:
        return None
    return request


def may_answer_while_still(request: Request) -> bool:
    """Adding and aborting requests only changes lists. A utility may compute, so all but a few wait."""
    kind, what = request
    return getattr(kind, "name", "") != "UTILITY" or what[2] in ANSWERED_WHILE_STILL


def _is_weight_update(kind: Any, request: Any) -> bool:
    """A call in which ranks may have stood still by themselves, and not all come back with the same weights."""
    if getattr(kind, "name", "") != "UTILITY" or request[2] != "collective_rpc":
        return False
    return bool(request[3]) and request[3][0] == "update_weights"


def begin_in_every_rank(core: Core, function: Callable[[Any], Any]) -> Future[list[Any]]:
    """Behind all that the ranks were given before. `function` belongs to a module; it is given the rank's vLLM worker."""
    future: Future[list[Any]] = core.model_executor.collective_rpc(function, timeout=RANKS_ANSWER_S, non_block=True)
    return future


def in_every_rank(core: Core, function: Callable[[Any], Any]) -> list[Any]:
    return begin_in_every_rank(core, function).result()


def collect_failures_of_ranks(core: Core) -> None:
    """
    Makes a client's call in all ranks wait for all of them, and then fail. vLLM's own raises at the first rank's failure, leaves
    the answers of the others unread, and takes them for those of the next call: an engine of several ranks ends.
    """
    theirs = core.collective_rpc

    def collective_rpc(
        method: str | Callable[..., Any],
        timeout: float | None = None,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> list[Any]:
        if not isinstance(method, str):
            # Functions travel in a way of their own, which only reaches the method itself.
            result: list[Any] = theirs(method, timeout, args, kwargs)
            return result
        answers = core.model_executor.collective_rpc(call_in_rank, timeout, (method, tuple(args), kwargs or {}))
        failures = [f"rank {rank}: {failure}" for rank, (_, failure) in enumerate(answers) if failure is not None]
        if failures:
            raise RuntimeError("; ".join(failures))
        return [result for result, _ in answers]

    # The core looks it up on itself at each call.
    core.collective_rpc = collective_rpc


def call_in_rank(worker: Any, method: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, str | None]:
    """The result, or what went wrong."""
    try:
        return getattr(worker, method)(*args, **kwargs), None
    except Exception as error:
        log.exception("A call of %s failed in this rank.", method)
        return None, f"{type(error).__name__}: {error}"


def finish_queued_steps(core: Core) -> None:
    """Takes in the steps that ranks were given ahead, sends their tokens, and gives no new one."""
    if not core.batch_queue:
        return
    from_before = core.scheduler.pause_state
    # All there is of it: only then a step gives no work to the ranks.
    core.scheduler.set_pause_state(type(from_before).PAUSED_ALL)
    try:
        while core.batch_queue:
            core._process_engine_step()
    finally:
        core.scheduler.set_pause_state(from_before)


def reset_caches(core: Core) -> None:
    """
    Forgets keys and values of the old weights; running requests begin again with the tokens that they have. What
    images were encoded to is of the weights too; their preprocessed pixels are not, and stay.
    """
    try:
        if not core.reset_prefix_cache(reset_running_requests=True, reset_connector=True):
            log.warning("The prefix cache could not be cleared: requests go on with keys and values of the old weights.")
        if core.vllm_config.model_config.is_multimodal_model:
            core.reset_encoder_cache()
    except RuntimeError as error:
        log.warning("The caches could not be cleared (%s): requests go on with what the old weights made.", error)


def tell_version(core: Core, weight_version: str) -> None:
    """From 0.28 on the server answers it in `/weight_info` and beside each output."""
    if hasattr(core, "set_weight_version"):
        core.set_weight_version(weight_version)


def is_told_to_end(core: Core) -> bool:
    """SIGTERM or SIGINT came: the handler notes it and wakes the loop."""
    return bool(core.shutdown_state.name != "RUNNING")


def drain_time_s(core: Core) -> float:
    """How long requests may take to end after that."""
    return float(core.vllm_config.shutdown_timeout)


def end_now(core: Core) -> None:
    """Aborts what is left, tells the clients, and ends the process as the busy loop does. Raises SystemExit."""
    core.vllm_config.shutdown_timeout = 0
    core.shutdown_state = type(core.shutdown_state).REQUESTED
    core._handle_shutdown()
    raise SystemExit
