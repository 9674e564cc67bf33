"""What goes over the link between an engine and a rank's worker: one JSON object a line, at most 64 KiB."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any

MAX_LINE_BYTES = 64 * 1024
Message = dict[str, Any]


class Malformed(Exception):
    """The other side does not keep to the format: the connection is of no use."""


@dataclass(frozen=True)
class Hello:
    """Who an engine's process is. `engine` is the same text in all processes of one engine, and in no other's."""

    engine: str
    role: str
    """`rank` for a process that computes with the arena, `core` for the one that can stop all of them."""
    version: str
    pid: int
    host: str
    world: int
    rank: int
    data_parallel_rank: int = 0
    url: str | None = None
    name: str = "vllm"

    def message(self, state: str) -> Message:
        """`state`: `starting` or `ready`."""
        return {"hello": 1, **asdict(self), "state": state}


@dataclass(frozen=True)
class Welcome:
    """What the worker says of its rank when it knows the engine."""

    epoch: int
    weight_version: str | None
    recipe: str | None


def encode(message: Message) -> bytes:
    return json.dumps(message, separators=(",", ":")).encode() + b"\n"


class LineReader:
    """Puts lines together from what a socket brings."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, data: bytes) -> list[Message]:
        """The messages that are now complete. Raises Malformed."""
        *lines, self._rest = (self._rest + data).split(b"\n")
        if len(self._rest) > MAX_LINE_BYTES or any(len(line) > MAX_LINE_BYTES for line in lines):
            raise Malformed(f"A message is longer than {MAX_LINE_BYTES} bytes.")
        return [_parse(line) for line in lines if line.strip()]


def _parse(line: bytes) -> Message:
    try:
        message = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise Malformed(f"A message is not JSON ({error}): {line[:80]!r}.") from error
    if not isinstance(message, dict):
        raise Malformed(f"A message is not an object: {line[:80]!r}.")
    return message


def parse_welcome(message: Message) -> Welcome:
    """Raises Malformed."""
    return Welcome(whole_number(message, "epoch"), _text(message, "weight_version"), _text(message, "recipe"))


def _text(message: Message, name: str) -> str | None:
    value = message.get(name)
    if value is None or isinstance(value, str):
        return value
    raise Malformed(f"{name} is {value!r}, not a text.")


def whole_number(message: Message, name: str) -> int:
    """Raises Malformed."""
    value = message.get(name)
    if type(value) is not int or value < 0:
        raise Malformed(f"{name} is {value!r}, not a whole number.")
    return value
