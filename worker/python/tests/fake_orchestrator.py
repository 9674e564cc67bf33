"""An orchestrator of one push: takes buckets, keeps what came, and says what a test tells it to say."""

from __future__ import annotations

import json
import struct
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit
from urllib.request import url2pathname

RELOAD = "/v1/reloads/r1"


class FakeOrchestrator:
    def __init__(self) -> None:
        self.asked: list[str] = []
        self.submitted: list[dict[str, Any]] = []
        self.authorization: str | None = None
        self.state = "planning"
        self.error: dict[str, Any] | None = None
        self.ends_as = "committed"
        # What finishing is refused for.
        self.lacks: str | None = None
        self.buckets: dict[int, bytes] = {}
        self.states: dict[int, str] = {}
        self.wanted: list[int] = []
        self.most_pending = 0
        # Each answers a PUT or POST of a bucket in the place of the usual answer; see `refusal` and `lost`.
        self.instead: list[Callable[[_Handler], bool]] = []
        handler = type("Handler", (_Handler,), {"fake": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def view(self) -> dict[str, Any]:
        buckets = {"accepted": len(self.buckets), "consumed": 0, "wanted": self.wanted}
        push = {"buckets": buckets, "finished": False}
        return {"reload_id": "r1", "state": self.state, "error": self.error, "pending_reason": None, "push": push}

    def keep(self, number: int, content: bytes) -> dict[str, Any]:
        self.buckets[number] = content
        self.states[number] = "pending"
        self.wanted = [one for one in self.wanted if one != number]
        self.most_pending = max(self.most_pending, list(self.states.values()).count("pending"))
        return self.bucket(number)

    def bucket(self, number: int) -> dict[str, Any]:
        return {"bucket": number, "state": "wanted" if number in self.wanted else self.states[number]}


def refusal(status: int, code: str, **headers: str) -> Callable[[_Handler], bool]:
    def answer(handler: _Handler) -> bool:
        body = {"code": code, "detail": f"{code} it is", "retryable": status in (429, 503), "details": {"n": 1}}
        handler.reply(status, body, {name.replace("_", "-"): value for name, value in headers.items()})
        return True

    return answer


def lost(handler: _Handler) -> bool:
    """The work is done, the answer does not arrive."""
    handler.take()
    handler.close_connection = True
    return True


class _Handler(BaseHTTPRequestHandler):
    fake: FakeOrchestrator
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        pass

    def do_GET(self) -> None:
        fake, path = self.fake, urlsplit(self.path).path
        fake.asked.append(f"GET {path}")
        if path == RELOAD:
            self.reply(200, fake.view())
            if fake.state == "planning":
                fake.state = "loading"
            return
        number = int(path.rsplit("/", 1)[1])
        if number not in fake.buckets:
            self.reply(404, {"code": "not_found", "detail": "no such bucket", "details": {}})
            return
        if "wait=" in self.path and fake.states[number] == "pending":
            fake.states[number] = "consumed"
        self.reply(200, fake.bucket(number))

    def do_POST(self) -> None:
        fake, path = self.fake, urlsplit(self.path).path
        fake.asked.append(f"POST {path}")
        if path == "/v1/reloads":
            fake.authorization = self.headers.get("Authorization")
            fake.submitted.append(json.loads(self.content()))
            self.reply(202, fake.view())
        elif path == f"{RELOAD}/buckets":
            self.take_or_not()
        elif path.endswith("/finish") and fake.lacks is not None:
            self.content()
            self.reply(422, {"code": "tensor_missing", "detail": fake.lacks, "details": {}})
        else:
            self.content()
            fake.state = "cancelled" if path.endswith("/cancel") else fake.ends_as
            self.reply(202, fake.view())

    def do_PUT(self) -> None:
        self.fake.asked.append(f"PUT {urlsplit(self.path).path}")
        self.take_or_not()

    def take_or_not(self) -> None:
        if not (self.fake.instead and self.fake.instead.pop(0)(self)):
            self.reply(202, self.take())

    def take(self) -> dict[str, Any]:
        content = self.content()
        if self.command == "PUT":
            return self.fake.keep(int(self.path.rsplit("/", 1)[1]), content)
        with open(url2pathname(urlsplit(json.loads(content)["uri"]).path), "rb") as file:
            return self.fake.keep(100 + len(self.fake.buckets), file.read())

    def content(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def reply(self, status: int, body: dict[str, Any], headers: dict[str, str] | None = None) -> None:
        content = json.dumps(body).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **(headers or {})}.items():
            self.send_header(name, value)
        # What was not read of the request would be taken for the next one.
        self.close_connection = True
        self.end_headers()
        self.wfile.write(content)


def tensors_of(file: bytes) -> tuple[dict[str, tuple[str, list[int], bytes]], dict[str, str]]:
    """(dtype, shape, bytes) by name, and the metadata."""
    (length,) = struct.unpack_from("<Q", file)
    header = json.loads(file[8 : 8 + length])
    metadata = header.pop("__metadata__", {})
    begin = 8 + length
    found = {
        name: (entry["dtype"], entry["shape"], file[slice(*(begin + offset for offset in entry["data_offsets"]))])
        for name, entry in header.items()
    }
    return found, metadata
