"""
The gate between two steps of an engine: in its core, which alone can say that no rank computes.

On a worker's `stop` all ranks finish what they were given and give their run locks back; they compute again when no stop
is open and all of them show the same whole weights. Correctness is the lock's; messages only make it quick.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from ..control_page import PageFile
from ..errors import ArenaInvalid
from . import compat_core as compat
from .link import Link
from .log import log
from .messages import Hello, Message
from .seat import RankPage, ranks_go_on, ranks_stand_still
from .stops import OpenStops

LOOK_AGAIN_S = 0.02
TROUBLE_AFTER_S = 1.0
LOG_EVERY_S = 5.0


@dataclass(frozen=True)
class RankPlace:
    """Where a rank's worker is, and how the core introduces itself there."""

    directory: Path
    hello: Hello


class Gate:
    """Made when the core's busy loop begins; every method but the links' callbacks runs in that loop's thread."""

    def __init__(self, core: compat.Core, places: Sequence[RankPlace], *, clear_cache: bool) -> None:
        self._core = core
        self._clear_cache = clear_cache
        self._epoch: int | None = None
        self._stopped: set[tuple[int, int]] = set()
        self._trouble = Trouble(self._tell)
        self._stops = OpenStops(wake=partial(compat.knock, core))
        self._pages = [PageAt(place.directory) for place in places]
        self._links = [self._open_link(rank, place) for rank, place in enumerate(places)]

    def attend(self) -> None:
        """Something was heard: stands still until all is well, if that was a stop."""
        heard = self._stops.take_first()
        if heard is not None:
            self._stand_still(heard, swap_expected=True)

    def settle(self) -> None:
        """Goes by the same rules without a stop: at the start, and after calls in which ranks may have swapped by themselves."""
        heard = self._stops.take_first()
        self._stand_still(time.monotonic() if heard is None else heard, swap_expected=heard is not None)

    def close(self) -> None:
        for link in self._links:
            link.close()

    def _open_link(self, rank: int, place: RankPlace) -> Link:
        return Link(
            place.directory,
            place.hello,
            state="ready",
            on_message=partial(self._stops.hear, rank),
            on_welcome=self._introduce,
            on_lost=lambda _link: self._stops.lose(rank),
        )

    def _introduce(self, link: Link) -> None:
        """After each welcome: a worker that started in between has heard nothing."""
        link.send({"state": "ready"})
        if self._trouble.said is not None:
            link.send({"trouble": self._trouble.said})

    def _tell(self, message: Message) -> None:
        for link in self._links:
            link.send(message)

    def _stand_still(self, since: float, *, swap_expected: bool) -> None:
        """All that happens between two steps. `since`: when the first stop was heard."""
        core = self._core
        standing = compat.begin_in_every_rank(core, ranks_stand_still)
        compat.finish_queued_steps(core)
        last_step = time.monotonic()
        wrong = next((answer for answer in standing.result() if answer is not None), None)
        if wrong is not None:
            raise RuntimeError(wrong)
        self._stopped.clear()
        self._say_stopped(self._stops.open())
        clear = self._clear_cache and swap_expected
        if clear:
            compat.reset_caches(core)
        put_off: list[compat.Request] = []
        page = self._wait_until_all_run(put_off)
        if self._clear_cache and not clear and self._epoch not in (None, page.epoch):
            compat.reset_caches(core)
        self._report(page, since, last_step, was_asked=swap_expected or bool(self._stopped))
        for request in put_off:
            core._handle_client_request(*request)

    def _say_stopped(self, stops: dict[int, int]) -> None:
        """Once for each, also for those that are heard while this engine stands still already."""
        for rank, epoch in stops.items():
            if (rank, epoch) not in self._stopped:
                self._stopped.add((rank, epoch))
                self._links[rank].send({"stopped": epoch})

    def _wait_until_all_run(self, put_off: list[compat.Request]) -> RankPage:
        """Serves what needs no step meanwhile, and collects the rest."""
        end = EndOfStandingStill(self._core)
        self._trouble.begin()
        while True:
            end.raise_if_over()
            stops = self._stops.open()
            if stops:
                self._say_stopped(stops)
                why = self._name_open_stops(stops)
            else:
                page, why = self._try_to_run()
                if page is not None:
                    self._trouble.end()
                    return page
            self._trouble.look(why)
            # A go wakes the loop. Without an open stop nobody may ever say that a page has become right.
            patience_s = min(self._trouble.next_in_s(), end.left_s())
            request = compat.next_request(self._core, patience_s if stops else min(patience_s, LOOK_AGAIN_S))
            if request is None or request is compat.KNOCK:
                continue
            if compat.may_answer_while_still(request):
                self._core._handle_client_request(*request)
            else:
                put_off.append(request)

    def _try_to_run(self) -> tuple[RankPage | None, str]:
        """The page that all ranks run with, or why not; then none of them holds its lock."""
        pages = [page.show() for page in self._pages]
        wrong = next((page for page in pages if isinstance(page, str)), None)
        wrong = wrong or _differ([page for page in pages if isinstance(page, int)])
        if wrong:
            return None, wrong
        # What was heard until now needs no other standing still: no step has been computed since.
        self._stops.take_first()
        answers: list[tuple[RankPage | None, str | None]] = compat.in_every_rank(self._core, ranks_go_on)
        running = [page for page, _ in answers if page is not None]
        wrong = next((trouble for page, trouble in answers if page is None), None) or _differ([page.epoch for page in running])
        # What was heard since asks for the locks again, and a step in between would only be in its way.
        if wrong or self._stops.open():
            compat.in_every_rank(self._core, ranks_stand_still)
            return None, wrong or "A worker has just asked this engine to stand still."
        return running[0], ""

    def _report(self, page: RankPage, since: float, last_step: float, *, was_asked: bool) -> None:
        now = time.monotonic()
        stop_ms, still_ms = ((now - at) * 1000 for at in (since, last_step))
        if self._epoch != page.epoch:
            compat.tell_version(self._core, page.weight_version)
            log.info(
                "Runs with weight version %s, epoch %d; stood still %.1f ms, %.1f ms after it was asked to.",
                *(page.weight_version, page.epoch, still_ms, stop_ms),
            )
        # The start is nobody's stop.
        if was_asked or self._epoch not in (None, page.epoch):
            times = {"stop_ms": round(stop_ms, 3), "still_ms": round(still_ms, 3)}
            self._tell({"running": page.epoch, **times, "weight_version": page.weight_version})
        self._epoch = page.epoch

    def _name_open_stops(self, stops: dict[int, int]) -> str:
        rank, epoch = min(stops.items())
        directory = self._pages[rank].directory
        return f"The worker of {directory} asked this engine to stand still for epoch {epoch} and has not said go."


class PageAt:
    """The control page of a rank, for looking from outside of it."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._file: PageFile | None = None

    def show(self) -> int | str:
        """The epoch of whole weights, or why there are none."""
        try:
            if self._file is None or not self._file.is_at_its_path():
                self._file = PageFile(self.directory / "control")
            page = self._file.read()
        except (OSError, ArenaInvalid) as error:
            return f"The control page of {self.directory} cannot be read: {error}."
        if page is None or page.state != "live":
            return f"The weights of {self.directory} are not whole: {self._file.describe()}."
        return page.epoch


class Trouble:
    """Why an engine cannot run: said after a second, logged each five, and said again when it is over."""

    def __init__(self, tell: Callable[[Message], None]) -> None:
        self._tell = tell
        self.said: str | None = None
        self._next = 0.0
        self._began = 0.0

    def begin(self) -> None:
        self._began = time.monotonic()
        self._next = self._began + TROUBLE_AFTER_S

    def next_in_s(self) -> float:
        return self._next - time.monotonic()

    def look(self, why: str) -> None:
        now = time.monotonic()
        if now < self._next:
            return
        why = as_one_line(why)
        self._next = now + LOG_EVERY_S
        log.error("This engine has stood still for %.1f s. %s", now - self._began, why)
        if self.said != why:
            self.said = why
            self._tell({"trouble": why})

    def end(self) -> None:
        if self.said is not None:
            self.said = None
            log.warning("This engine runs again after %.1f s.", time.monotonic() - self._began)
            self._tell({"trouble": None})


class EndOfStandingStill:
    """An engine that is told to end does: at once, or when the time is over that its requests were given to end by themselves."""

    def __init__(self, core: compat.Core) -> None:
        self._core = core
        self._at: float | None = None

    def raise_if_over(self) -> None:
        """Raises SystemExit."""
        if self._at is None and compat.is_told_to_end(self._core):
            self._at = time.monotonic() + compat.drain_time_s(self._core)
        if self.left_s() <= 0:
            compat.end_now(self._core)

    def left_s(self) -> float:
        return float("inf") if self._at is None else self._at - time.monotonic()


def as_one_line(text: str) -> str:
    """What the link takes for a sentence: no control characters, at most 4096 of all."""
    return " ".join("".join(character if character.isprintable() else " " for character in text).split())[:4096]


def _differ(epochs: list[int]) -> str:
    """Empty when all ranks have the same weights."""
    if len(set(epochs)) <= 1:
        return ""
    named = ", ".join(f"rank {rank} epoch {epoch}" for rank, epoch in enumerate(epochs))
    return f"The ranks of this engine hold weights of different epochs ({named}): a worker has to catch up."
