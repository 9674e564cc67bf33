"""
A trainer's tensors -> a fleet's weights, without a checkpoint in between.

    with layercast.push(url, config, weight_version="120", recipe={"scheme": "fp8-channel"}) as session:
        for tensors in buckets_of(model):            # dict[str, torch.Tensor], grouped by module
            session.send(tensors)

The block's end finishes the push and waits for its commit; an exception in the block cancels it, and no weight changes.
"""

from __future__ import annotations

import json
import math
import time
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from .bucket_bytes import BucketBytes, Sent, Tensor, describe
from .errors import PushFailed, Refused, Timeout
from .rest import Rest, path_of, patiently

Bucket = Mapping[str, Sent]

DEFAULT_PENDING_BUCKETS = 8
TERMINAL = ("committed", "failed", "cancelled", "superseded")
NOT_OPEN = ("queued", "planning")
POLL_S = 0.05
WAIT_S = 20
WANTED_WAIT_S = 1


def push(
    url: str,
    config: Mapping[str, Any],
    *,
    tensors: Mapping[str, Tensor | tuple[str, list[int]]] | None = None,
    options: Mapping[str, Any] | None = None,
    again: Callable[[int], Bucket] | None = None,
    token: str | None = None,
    timeout_s: float = 600.0,
    **request: Any,
) -> PushSession:
    """
    Opens a push when its block is entered. `config` is the model's config.json. `tensors` names what will be sent, as
    tensors or as (dtype, shape); without it the config tells. `options` are further fields of the source, such as
    {"retain": "trainer"}; `request` are those of the request: fleet, weight_version, recipe and so on. `again` gives
    the tensors of a bucket that is wanted again, which happens with retain "trainer" alone. `timeout_s` is the limit
    of each wait: for a turn, for room, for the commit.
    """
    source: dict[str, Any] = {"kind": "push", "config": _sendable(dict(config)), **(options or {})}
    if tensors is not None:
        source["tensors"] = [_declared(name, tensor) for name, tensor in tensors.items()]
    body = {"submission_id": str(uuid.uuid4()), **request, "source": source}
    return PushSession(Rest(url, token), body, again, timeout_s)


def _sendable(value: Any) -> Any:
    """The same, with NaN and infinities, for which JSON has no numbers, as the texts that stand for them in a config.json."""
    if isinstance(value, float) and not math.isfinite(value):
        return json.dumps(value)
    if isinstance(value, Mapping):
        return {name: _sendable(inner) for name, inner in value.items()}
    return [_sendable(inner) for inner in value] if isinstance(value, (list, tuple)) else value


def _declared(name: str, tensor: Tensor | tuple[str, list[int]]) -> dict[str, Any]:
    dtype, shape = tensor if isinstance(tensor, tuple) else describe(tensor)
    return {"name": name, "dtype": dtype, "shape": list(shape)}


class PushSession:
    """Made by `push()`. Not for several threads at once."""

    def __init__(
        self,
        rest: Rest,
        body: dict[str, Any],
        again: Callable[[int], Bucket] | None,
        timeout_s: float,
    ) -> None:
        self._rest = rest
        self._body = body
        self._again = again
        self._timeout_s = timeout_s
        self._room = int(body["source"].get("max_pending_buckets", DEFAULT_PENDING_BUCKETS))
        self._sent: list[int] = []
        self.reload: dict[str, Any] = {}
        """The reload's record, as it was last read."""

    def __enter__(self) -> PushSession:
        self.reload = self._patiently("opening a push", lambda: self._rest.ask("POST", "/v1/reloads", self._body))
        try:
            self._wait_until_open()
        except BaseException:
            self.cancel()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is not None:
            self.cancel()
            return
        try:
            self.finish()
        except Refused:  # For want of a tensor: nobody can send it any more.
            self.cancel()
            raise

    @property
    def id(self) -> str:
        return str(self.reload["reload_id"])

    def send(self, tensors: Bucket, *, bucket: int | None = None) -> int:
        """
        Streams a bucket, and waits for room when ranks are slower. The tensors' memory is the caller's again when it
        returns. `bucket` is the number of one that is sent again. Returns the number.
        """
        number = len(self._sent) if bucket is None else bucket
        if bucket is None:
            self._wait_for_room()
        body = BucketBytes(tensors)
        repeated = False

        def attempt() -> dict[str, Any]:
            nonlocal repeated
            if repeated and (known := self._known(number)) is not None and known["state"] != "wanted":
                return known  # Its answer was lost.
            repeated = True
            return self._rest.put(path_of(self.id, "buckets", number), body)

        self._patiently(f"sending bucket {number}", attempt)
        if bucket is None:
            self._sent.append(number)
        return number

    def post(self, path: str | Path, *, immutable: bool = False) -> int:
        """
        Names a bucket that is a file, in shared memory for example; see `wait_consumed`. `immutable`: nobody writes to
        it again. Send buckets this way or with `send`, not both. Returns the bucket's number.
        """
        self._wait_for_room()
        body = {"uri": Path(path).absolute().as_uri(), "immutable": immutable}
        answer = self._patiently(f"sending {path}", lambda: self._rest.ask("POST", path_of(self.id, "buckets"), body))
        self._sent.append(int(answer["bucket"]))
        return self._sent[-1]

    def wait_consumed(self, bucket: int) -> None:
        """Returns when the bucket's memory, or its file, is the caller's again."""
        end = time.monotonic() + self._timeout_s
        path = f"{path_of(self.id, 'buckets', bucket)}?wait={WAIT_S}s"
        while True:
            state = self._patiently(f"waiting for bucket {bucket}", lambda: self._rest.ask("GET", path))["state"]
            if state == "consumed":
                return
            if state == "wanted":
                self._send_again(bucket)
            elif self._read()["state"] in TERMINAL:
                raise self._failed()
            if time.monotonic() > end:
                raise Timeout(f"bucket {bucket} was not consumed for {self._timeout_s:g} s")

    def finish(self) -> dict[str, Any]:
        """All has been sent. Returns the record of the committed reload; raises PushFailed when it ended otherwise."""
        if self.reload.get("state") not in TERMINAL:
            self._patiently("finishing", lambda: self._rest.ask("POST", path_of(self.id, "finish")))
        end = time.monotonic() + self._timeout_s
        while self._read(WANTED_WAIT_S if self._again else WAIT_S)["state"] not in TERMINAL:
            for bucket in self.reload["push"]["buckets"]["wanted"]:
                self._send_again(bucket)
            if time.monotonic() > end:
                raise Timeout(f"reload {self.id} is {self.reload['state']} after {self._timeout_s:g} s; it goes on")
        if self.reload["state"] != "committed":
            raise self._failed()
        return self.reload

    def cancel(self) -> None:
        """As if it had not been opened. What is decided stays."""
        try:
            self._rest.ask("POST", path_of(self.id, "cancel"))
        except (Refused, OSError):
            pass  # It has ended, or its idle limit ends it.

    def _wait_until_open(self) -> None:
        end = time.monotonic() + self._timeout_s
        while self._read()["state"] in NOT_OPEN:
            if time.monotonic() > end:
                raise Timeout(f"reload {self.id} waited {self._timeout_s:g} s: {self.reload['pending_reason']}")
            time.sleep(POLL_S)
        if self.reload["state"] in TERMINAL:
            raise self._failed()

    def _wait_for_room(self) -> None:
        if len(self._sent) >= self._room:
            self.wait_consumed(self._sent[-self._room])

    def _send_again(self, bucket: int) -> None:
        if self._again is None:
            raise PushFailed(f"bucket {bucket} is wanted again, and push() was given no `again`", self.reload)
        known = self._known(bucket)
        if known is None or known["state"] == "wanted":
            self.send(self._again(bucket), bucket=bucket)

    def _known(self, bucket: int) -> dict[str, Any] | None:
        """None when the orchestrator has not got it."""
        try:
            return self._rest.ask("GET", path_of(self.id, "buckets", bucket))
        except Refused as error:
            if error.code == "not_found":
                return None
            raise

    def _read(self, wait_s: int = 0) -> dict[str, Any]:
        path = f"{path_of(self.id)}?wait={wait_s}s"
        self.reload = self._patiently("reading the reload", lambda: self._rest.ask("GET", path))
        return self.reload

    def _failed(self) -> PushFailed:
        error = self.reload.get("error") or {"code": self.reload["state"], "message": "it was ended"}
        return PushFailed(f"reload {self.id} {self.reload['state']}: {error['code']}: {error['message']}", self.reload)

    def _patiently(self, what: str, attempt: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        return patiently(what, self._timeout_s, attempt)
