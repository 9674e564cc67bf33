"""What this package raises. Each class has a stable `code`; each message says what was found and what to do next."""

from __future__ import annotations

from typing import Any


class LayercastError(Exception):
    """The base of all of them."""

    code = "layercast_error"


class ArenaInvalid(LayercastError):
    """The control page, the header or the sizes are not what docs/arena-format.md describes."""

    code = "arena_invalid"


class ArenaReplaced(LayercastError):
    """Another arena stands where the attached one stood, as after a new layout. Attach again."""

    code = "arena_replaced"


class ArenaClosed(LayercastError):
    """The arena was used after `close()`."""

    code = "arena_closed"


class Changed(LayercastError):
    """The weights changed while they were read: what was read is of no use. Read again."""

    code = "arena_changed"


class DeviceUnavailable(LayercastError):
    """The arena's device cannot be reached from this process."""

    code = "device_unavailable"


class Timeout(LayercastError, TimeoutError):
    """A wait has reached its deadline."""

    code = "timeout"


class Refused(LayercastError):
    """The orchestrator said no; `code` is one of docs/errors.md."""

    def __init__(
        self,
        message: str,
        *,
        code: str,
        retryable: bool,
        details: dict[str, Any],
        retry_after_s: float | None,
    ) -> None:
        super().__init__(f"{code}: {message}")
        self.code = code
        self.retryable = retryable
        self.details = details
        self.retry_after_s = retry_after_s


class PushFailed(LayercastError):
    """A push that did not come to its commit; `reload` is its record."""

    code = "push_failed"

    def __init__(self, message: str, reload: dict[str, Any]) -> None:
        super().__init__(message)
        self.reload = reload
