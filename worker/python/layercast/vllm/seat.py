"""
The seat of a rank's process at its arena: the link to the worker, for life, and the run lock while it may compute.

One a process. The engine's core reaches it with `ranks_stand_still` and `ranks_go_on`, which it runs in every rank.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..control_page import ControlPage, PageFile
from ..deadline import Deadline
from ..errors import LayercastError, Timeout
from .device import wait_for_device
from .link import Link
from .messages import Hello, Welcome
from .run_lock import RunLock

if TYPE_CHECKING:
    from ..arena import Arena

# The worker unlocks before it says go; another one may just look.
GO_ON_S = 0.005


@dataclass(frozen=True)
class RankPage:
    """What a rank will compute with."""

    epoch: int
    generation: int
    weight_version: str


class RankSeat:
    """Made by `take_seat`. Used by the thread that computes."""

    def __init__(self, directory: Path, hello: Hello, link: Link, welcome: Welcome, lock: RunLock) -> None:
        self.directory = directory
        self.hello = hello
        self.welcome = welcome
        """What the worker said when the seat was taken: epoch, weight_version, recipe."""
        self.trouble: str | None = None
        """Why the last `go_on()` was of no use."""
        self._link = link
        self._lock = lock
        self._page_file: PageFile | None = None
        self._arena_id: str | None = None
        self._audit: Callable[[], None] | None = None

    def loaded(self, arena: Arena, audit: Callable[[], None]) -> None:
        """
        Says what is computed with from now on. `audit` is called before each first step after a swap, so it must be
        quick; it raises when a parameter is not what and where it was.
        """
        self._arena_id = arena.arena_id
        self._audit = audit
        self._link.state = "ready"

    @property
    def runs(self) -> bool:
        """Whether this process may compute now."""
        return self._lock.held

    def audit(self) -> None:
        """Raises what is wrong with the parameters."""
        if self._audit is not None:
            self._audit()

    def stand_still(self) -> None:
        """Waits for what is queued on the device and gives the run lock back."""
        wait_for_device()
        self._lock.give_back()

    def go_on(self) -> RankPage | None:
        """Takes the run lock again, and looks whether there are whole weights. None, without the lock, and `trouble` says why."""
        try:
            if not self._lock.take_soon(GO_ON_S):
                raise Timeout(f"the worker of {self.directory} has the run lock: a swap is under way")
            page = self._whole_page()
            self.audit()
        except Exception as error:
            self._lock.give_back()
            self.trouble = f"Rank {self.hello.rank} cannot run: {error}"
            return None
        self.trouble = None
        return RankPage(page.epoch, page.generation, page.weight_version)

    @contextmanager
    def standing_still(self, timeout_s: float) -> Iterator[None]:
        """
        For a call in which this process only waits: a swap may happen. At the end it may compute again, or raises
        Timeout after `timeout_s` more; the process then has no lock, and its core must not let it compute.
        """
        self.stand_still()
        try:
            yield
        finally:
            deadline = Deadline(timeout_s)
            while self.go_on() is None:
                deadline.pause(lambda: f"this rank to run again: {self.trouble}")

    def close(self) -> None:
        self._lock.close()
        self._link.close()
        if self._page_file is not None:
            self._page_file.close()
            self._page_file = None

    def _whole_page(self) -> ControlPage:
        if self._page_file is None or not self._page_file.is_at_its_path():
            self._page_file = PageFile(self.directory / "control")
        page = self._page_file.read()
        if page is None or page.state != "live":
            raise LayercastError(f"the weights of {self.directory} are not whole: {self._page_file.describe()}")
        if self._arena_id is not None and page.arena_id != self._arena_id:
            raise LayercastError(
                f"{self.directory} holds arena {page.arena_id} and this engine has mapped {self._arena_id}: start the engine again"
            )
        return page


_seat: RankSeat | None = None


def take_seat(directory: Path, hello: Hello, timeout_s: float) -> RankSeat:
    """
    Connects to the worker of the rank with this directory (the one where `control` lies), is taken in, and takes the run
    lock: from then on no swap happens until the engine's core has this process stand still.

    Raises Timeout, and Refused with what the worker says. A second call for the same directory answers the same seat.
    """
    global _seat
    directory = directory.absolute()
    if _seat is not None:
        if _seat.directory == directory:
            return _seat
        raise LayercastError(f"This process computes with the arena of {_seat.directory} and cannot take {directory} too.")
    deadline = Deadline(timeout_s)
    link, lock = Link(directory, hello, state="starting"), RunLock(directory)
    try:
        welcome = link.wait_for_welcome(deadline.left_s())
        lock.take(deadline.left_s())
    except BaseException:
        link.close()
        lock.close()
        raise
    _seat = RankSeat(directory, hello, link, welcome, lock)
    return _seat


def current_seat() -> RankSeat | None:
    """The seat of this process; None where it has none, as with an engine that loaded its own weights."""
    return _seat


def leave_seat() -> None:
    """Gives it up, where a load has failed and the process goes on."""
    global _seat
    seat, _seat = _seat, None
    if seat is not None:
        seat.close()


NO_SEAT = "A rank's process has no seat at an arena: its weights were not loaded by the layercast loader."


def ranks_engine(_worker: Any) -> str:
    """In every rank, from the core: what the ranks call their engine. Raises LayercastError."""
    seat = current_seat()
    if seat is None:
        raise LayercastError(NO_SEAT)
    return seat.hello.engine


def ranks_stand_still(_worker: Any) -> str | None:
    """In every rank, from the core: None, or why it does not stand still."""
    seat = current_seat()
    if seat is None:
        return NO_SEAT
    seat.stand_still()
    return None


def ranks_go_on(_worker: Any) -> tuple[RankPage | None, str | None]:
    """In every rank, from the core: what it will compute with, or why it cannot."""
    seat = current_seat()
    if seat is None:
        return None, NO_SEAT
    return seat.go_on(), seat.trouble
