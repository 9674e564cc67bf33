"""
A weight update as trainers ask for it, in a rank's process: wait until a version is live, or copy it. Imports no vLLM.

Two ways, by how the engine got its weights. Out of an arena, an update is a commit that its fleet makes: the rank stands
still until it is there. With weights of its own, the rank copies the arena's tensors over them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from ..arena import version_reaches
from ..control_page import ControlPage, PageFile, fit_version
from ..deadline import Deadline
from ..errors import LayercastError
from .log import log
from .run_lock import RunLock
from .seat import RankSeat

DEFAULT_TIMEOUT_S = 300.0
# How long a rank tries to run again when its wait has failed: as long as a worker's swap may take, and more.
GO_ON_S = 30.0


@dataclass(frozen=True)
class UpdateInfo:
    """The body of `/update_weights`. What other backends' trainers send besides is not looked at."""

    weight_version: str | None = None
    """None: any that is later than what was live at `/start_weight_update`."""
    timeout_s: float = DEFAULT_TIMEOUT_S


def read_update_info(raw: Mapping[str, Any]) -> UpdateInfo:
    """Raises ValueError, which names the field."""
    version, timeout_s = raw.get("weight_version"), raw.get("timeout_s", DEFAULT_TIMEOUT_S)
    if type(version) is int:
        version = str(version)
    if version is not None and (not isinstance(version, str) or version == ""):
        raise ValueError(f"update_info has weight_version {version!r}: give the name of a reload's weights, or leave it out.")
    if type(timeout_s) not in (int, float) or not (math.isfinite(timeout_s) and timeout_s > 0):
        raise ValueError(f"update_info has timeout_s {timeout_s!r}: give seconds, more than 0.")
    return UpdateInfo(version, float(timeout_s))


class WeightUpdate(Protocol):
    """One rank's part. A session is start, receive (once or more), finish."""

    def start(self) -> None: ...

    def receive(self, info: UpdateInfo) -> None: ...

    def finish(self) -> None: ...


class Followed:
    """Of an engine that computes out of the arena."""

    def __init__(self, seat: RankSeat) -> None:
        self._seat = seat
        self._page = PageFile(seat.directory / "control")
        self._live_at_start = 0

    def start(self) -> None:
        # The rank holds its run lock, so nothing changes under this.
        self._live_at_start = _require_live(self._page).epoch

    def receive(self, info: UpdateInfo) -> None:
        """
        Returns when the weights that this rank computes with next are those. Raises Timeout, and the old ones are still
        there. When this ends without the run lock, which GO_ON_S makes unlikely, the core keeps the engine still.
        """
        if self._is_there(info):
            return
        deadline = Deadline(info.timeout_s)
        with self._seat.standing_still(GO_ON_S):
            while not self._is_there(info):
                deadline.pause(lambda: f"{_wanted(info)} in {self._seat.directory}: {self._page.describe()}")
        log.info("The weight update found %s live in %s.", _wanted(info), self._seat.directory)

    def finish(self) -> None:
        """Raises AuditFailed where a parameter is no longer the arena's."""
        self._seat.audit()

    def _is_there(self, info: UpdateInfo) -> bool:
        page = self._page.read()
        if page is None or page.state != "live":
            return False
        if info.weight_version is None:
            return page.epoch > self._live_at_start
        return version_reaches(page.weight_version, fit_version(info.weight_version))


class Copied:
    """Of an engine with weights of its own. Its trainer pauses it, as with every backend that writes weights."""

    def __init__(self, directory: Path, copy_all: Callable[[], None]) -> None:
        """`copy_all` copies all tensors of the arena in that directory, and returns when they are there."""
        self._lock = RunLock(directory)
        self._page = PageFile(directory / "control")
        self._directory = directory
        self._copy_all = copy_all
        self._unfinished = ""

    def start(self) -> None:
        """Nothing is to be prepared."""

    def receive(self, info: UpdateInfo) -> None:
        """
        Raises Timeout, with the old weights untouched, and ValueError without a version: each rank copies for itself, and
        they must not take different ones. Where copying itself fails the weights are of no use until an update succeeds.
        """
        if info.weight_version is None:
            raise ValueError("update_info has no weight_version: name the version that every rank of this engine shall copy.")
        wanted = fit_version(info.weight_version)
        deadline = Deadline(info.timeout_s)
        while True:
            self._lock.take(deadline.left_s())
            # With the lock the worker swaps nothing, so what is copied is of one version without looking twice.
            try:
                page = self._page.read()
                if page is not None and page.state == "live" and page.weight_version == wanted:
                    self._unfinished = wanted
                    self._copy_all()
                    self._unfinished = ""
                    return
            finally:
                self._lock.give_back()
            self._require_not_past(page, wanted)
            deadline.pause(lambda: f"{_wanted(info)} in {self._directory}: {self._page.describe()}")

    def finish(self) -> None:
        if self._unfinished:
            raise LayercastError(f"Copying weight version {self._unfinished} has failed: update again before resuming.")

    def _require_not_past(self, page: ControlPage | None, wanted: str) -> None:
        """A later version is live: waiting is of no use, and other ranks may have copied the one that was asked for."""
        found = "" if page is None else page.weight_version
        if found != wanted and version_reaches(found, wanted):
            raise LayercastError(f"{self._directory} holds weight version {found}, later than {wanted}: ask for that one.")


def _require_live(page_file: PageFile) -> ControlPage:
    page = page_file.read()
    if page is None or page.state != "live":
        raise LayercastError(f"The weights at {page_file.path} are not whole: {page_file.describe()}.")
    return page


def _wanted(info: UpdateInfo) -> str:
    return "a later weight version" if info.weight_version is None else f"weight version {info.weight_version}"
