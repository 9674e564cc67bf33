"""Attaching to a rank's arena, and reading it while its worker may swap."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, TypeVar

from .control_page import ControlPage, PageFile, fit_version
from .cuda import HandleRefused, LiveMemory
from .deadline import Deadline
from .errors import ArenaClosed, ArenaReplaced, Changed, LayercastError
from .live_file import LiveFile
from .torch_tensors import view_tensors

if TYPE_CHECKING:
    import torch

Result = TypeVar("Result")
DEFAULT_TIMEOUT_S = 30.0
_WHOLE_NUMBER = re.compile(r"[0-9]+")


def attach(
    run_dir: str | Path,
    *,
    fleet: str = "default",
    replica: int = 0,
    rank: int = 0,
    timeout_s: float = DEFAULT_TIMEOUT_S,
) -> Arena:
    """
    Maps the arena of a rank, once it holds weights. `run_dir` is the run directory of `layercast up`, or the rank's
    own directory; then the other names are not looked at.

    Raises Timeout, ArenaInvalid, DeviceUnavailable.
    """
    deadline = Deadline(timeout_s)
    page_file = _open_page(Path(run_dir), Path(fleet, f"replica-{replica}", f"rank-{rank}"), deadline)
    try:
        while True:
            page = _live_page(page_file, deadline)
            live, reason = _open_live(page_file, page)
            if live is not None:
                return Arena(page_file, page, live)
            deadline.pause(lambda: f"the arena of {page_file.path} ({reason}; {page_file.describe()})")
    except BaseException:
        page_file.close()
        raise


def _open_page(run_dir: Path, below: Path, deadline: Deadline) -> PageFile:
    while True:
        for directory in (run_dir / below, run_dir):
            try:
                return PageFile(directory / "control")
            except FileNotFoundError:
                pass
        deadline.pause(lambda: f"a control page at {run_dir / below} or {run_dir}: is the worker up?")


def _live_page(page_file: PageFile, deadline: Deadline) -> ControlPage:
    while True:
        page = page_file.read()
        if page is not None and page.state == "live":
            return page
        deadline.pause(lambda: f"{page_file.path} to show live weights: {page_file.describe()}")


def _open_live(page_file: PageFile, page: ControlPage) -> tuple[LiveFile | LiveMemory | None, str]:
    """None, and why, where trying again may help. Raises what it cannot."""
    open_live = LiveMemory if page.device_kind == "cuda" else LiveFile
    try:
        live = open_live(page_file.path.parent, page)
    except HandleRefused as error:
        return None, str(error)
    except (OSError, LayercastError) as error:
        if page_file.generation() == page.generation:
            raise
        return None, str(error)
    # Another arena may have come between the page and the file.
    return (live, "") if page_file.generation() == page.generation else (None, "it was being replaced")


class Arena:
    """
    A rank's kernel tensors, at addresses that stay as they are until `ArenaReplaced`. Made by `attach`. Every method
    raises ArenaClosed after `close()`; those that look at the control page raise ArenaReplaced and ArenaInvalid.
    """

    def __init__(self, page_file: PageFile, page: ControlPage, live: LiveFile | LiveMemory) -> None:
        self.arena_id = page.arena_id
        """32 hex digits. Another one stands for another layout."""
        self.device = live.device
        """`cpu`, or `cuda:N` as this process counts."""
        self.directory = page_file.path.parent
        self._page_file: PageFile | None = page_file
        self._live: LiveFile | LiveMemory | None = live
        self._tensors: dict[str, torch.Tensor] | None = None

    @property
    def generation(self) -> int:
        """As it is now: odd while weights change, 2 more after each commit."""
        return self._require_page().generation()

    @property
    def weight_version(self) -> str:
        """What the live weights are called. Waits for a swap to end, 30 s at most (Timeout)."""
        return self._settled(Deadline(DEFAULT_TIMEOUT_S)).weight_version

    @property
    def epoch(self) -> int:
        """The number of the reload that swapped last. Waits like `weight_version`."""
        return self._settled(Deadline(DEFAULT_TIMEOUT_S)).epoch

    def tensors(self) -> dict[str, torch.Tensor]:
        """
        Every kernel tensor by name, over the arena itself: nothing is copied, and a commit changes what they show. On
        the CPU the memory is read-only: writing to one ends the process. It stays mapped as long as one of them lives.

        Names, shapes and dtypes: docs/kernel-tensors.md. Raises ImportError without torch.
        """
        live = self._require_live()
        if self._tensors is None:
            self._tensors = view_tensors(live.flat(), live.table)
        return dict(self._tensors)

    def buffers(self) -> dict[str, memoryview]:
        """The bytes of every kernel tensor, read-only, little-endian, without torch. CPU only (DeviceUnavailable)."""
        live = self._require_live()
        memory = live.memory()
        return {name: memory[entry.begin : entry.end] for name, entry in live.table.items()}

    def layout(self) -> dict[str, tuple[str, tuple[int, ...]]]:
        """dtype (`BF16`, `F16`, `F32`, `F8_E4M3`, `U8`) and shape of every kernel tensor, in the order of the bytes."""
        return {name: (entry.dtype, entry.shape) for name, entry in self._require_live().table.items()}

    def wait_for_version(self, version: str, timeout_s: float = DEFAULT_TIMEOUT_S) -> str:
        """
        Waits until the live weights are `version`, or a higher one where both are whole numbers. Returns what they are
        called. Raises Timeout.
        """
        wanted = fit_version(version)
        deadline = Deadline(timeout_s)
        while True:
            found = self._settled(deadline).weight_version
            if version_reaches(found, wanted):
                return found
            self._pause(deadline, lambda: f"weight version {wanted} in {self.directory}: it holds {found}")

    @contextmanager
    def reading(self, timeout_s: float = DEFAULT_TIMEOUT_S) -> Iterator[str]:
        """
        `with arena.reading() as version:` waits until no swap is under way (Timeout), and at the block's end raises
        Changed if one has begun, also in place of an exception of the block: what it read, and what it made of that, is
        then of no use. On CUDA the end waits for all that this process has queued on the device.
        """
        page = self._settled(Deadline(timeout_s))
        try:
            yield page.weight_version
        except Exception as error:
            self._require_unchanged(page, error)
            raise
        self._require_unchanged(page, None)

    def read(self, function: Callable[[str], Result], timeout_s: float = DEFAULT_TIMEOUT_S) -> Result:
        """
        Calls `function` with the weight version, again and again until no swap fell into the call, and returns its
        result. It must copy what it wants. Raises Timeout, and what `function` raises while nothing changed.
        """
        deadline = Deadline(timeout_s)
        while True:
            try:
                with self.reading(deadline.left_s()) as version:
                    return function(version)
            except Changed as changed:
                reason = str(changed)
            deadline.pause(lambda: f"a read without a swap in it: {reason}")

    def close(self) -> None:
        """Lets go. Tensors and buffers that are still there keep the memory mapped and stay valid."""
        page_file, self._page_file = self._page_file, None
        self._live = None
        self._tensors = None
        if page_file is not None:
            page_file.close()

    def __enter__(self) -> Arena:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _settled(self, deadline: Deadline) -> ControlPage:
        """The page at an even generation, of this arena."""
        page_file = self._require_page()
        while True:
            page = page_file.read()
            if page is not None and page.arena_id != self.arena_id:
                raise ArenaReplaced(f"{self.directory} holds arena {page.arena_id}, not {self.arena_id}: attach again")
            if page is not None and page.state == "live":
                return page
            self._pause(deadline, lambda: f"the swap in {self.directory} to end: {page_file.describe()}")

    def _pause(self, deadline: Deadline, waited_for: Callable[[], str]) -> None:
        page_file = self._require_page()
        if not page_file.is_at_its_path():
            raise ArenaReplaced(f"{page_file.path} is another file than the one attached to: attach again")
        deadline.pause(waited_for)

    def _require_unchanged(self, page: ControlPage, cause: Exception | None) -> None:
        self._require_live().finish_reads()
        generation = self._require_page().generation()
        if generation != page.generation:
            raise Changed(
                f"the weights of {self.directory} changed while they were read (generation {page.generation} "
                f"to {generation}): read again"
            ) from cause

    def _require_page(self) -> PageFile:
        if self._page_file is None:
            raise ArenaClosed(f"the arena of {self.directory} is closed: attach again")
        return self._page_file

    def _require_live(self) -> LiveFile | LiveMemory:
        self._require_page()
        assert self._live is not None
        return self._live


def version_reaches(found: str, wanted: str) -> bool:
    """Whether it is the one, or a higher one where both are whole numbers."""
    if found == wanted:
        return True
    both = _WHOLE_NUMBER.fullmatch(found) is not None and _WHOLE_NUMBER.fullmatch(wanted) is not None
    return both and int(found) >= int(wanted)
