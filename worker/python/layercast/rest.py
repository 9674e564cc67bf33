"""The orchestrator's REST API: a request -> its answer as JSON, or what the orchestrator said against it."""

from __future__ import annotations

import http.client
import json
import time
from collections.abc import Callable
from typing import Any
from urllib.parse import quote, urlsplit

from .bucket_bytes import BucketBytes
from .errors import Refused, Timeout

# Longer than the orchestrator's own longest wait.
ANSWER_WITHIN_S = 90.0
LONGEST_PAUSE_S = 1.0


class Rest:
    def __init__(self, url: str, token: str | None) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or parts.hostname is None:
            raise ValueError(f"{url!r} is no URL of an orchestrator, such as http://127.0.0.1:8600")
        self._url = url.rstrip("/")
        self._secure = parts.scheme == "https"
        self._host, self._port, self._path = parts.hostname, parts.port, parts.path.rstrip("/")
        self._headers = {} if token is None else {"Authorization": f"Bearer {token}"}

    def ask(self, method: str, path: str, body: Any = None) -> dict[str, Any]:
        """Raises Refused, and OSError when nobody answers."""
        content = None if body is None else json.dumps(body).encode()
        headers = {} if content is None else {"Content-Type": "application/json"}
        connection = self._connect()
        try:
            connection.request(method, self._path + path, content, {**self._headers, **headers})
            return self._answer(connection, f"{method} {path}")
        except http.client.HTTPException as error:
            raise ConnectionError(f"{self._url} does not answer in HTTP: {error!r}") from error
        finally:
            connection.close()

    def put(self, path: str, body: BucketBytes) -> dict[str, Any]:
        connection = self._connect()
        try:
            connection.putrequest("PUT", self._path + path)
            size = {"Content-Type": "application/octet-stream", "Content-Length": str(body.size)}
            for name, value in {**self._headers, **size}.items():
                connection.putheader(name, value)
            connection.endheaders()
            try:
                for chunk in body.chunks():
                    connection.send(chunk)
            except (BrokenPipeError, ConnectionResetError):
                pass  # It may have said why before it hung up.
            return self._answer(connection, f"PUT {path}")
        except http.client.HTTPException as error:
            raise ConnectionError(f"{self._url} hung up: {error!r}") from error
        finally:
            connection.close()

    def _connect(self) -> http.client.HTTPConnection:
        kind = http.client.HTTPSConnection if self._secure else http.client.HTTPConnection
        return kind(self._host, self._port, timeout=ANSWER_WITHIN_S)

    def _answer(self, connection: http.client.HTTPConnection, asked: str) -> dict[str, Any]:
        response = connection.getresponse()
        text = response.read()
        try:
            answer = json.loads(text)
        except ValueError:
            answer = None
        if not isinstance(answer, dict):
            raise ConnectionError(f"{asked} at {self._url} answered {response.status} without JSON: is it Layercast?")
        if response.status < 400:
            return answer
        raise Refused(
            str(answer.get("detail", f"{asked} answered {response.status}")),
            code=str(answer.get("code", "internal")),
            retryable=bool(answer.get("retryable", False)),
            details=answer.get("details") or {},
            retry_after_s=_seconds(response.getheader("Retry-After")),
        )


def _seconds(text: str | None) -> float | None:
    try:
        return None if text is None else float(text)
    except ValueError:
        return None


def patiently(what: str, timeout_s: float, attempt: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Tries again what may work later, when the answer says to; so `attempt` must be harmless to repeat."""
    end = time.monotonic() + timeout_s
    pause_s = 0.05
    while True:
        try:
            return attempt()
        except Refused as error:
            if not error.retryable:
                raise
            last: Exception = error
            wait_s = error.retry_after_s if error.retry_after_s is not None else pause_s
        except OSError as error:
            last, wait_s = error, pause_s
        if time.monotonic() + wait_s > end:
            raise Timeout(f"{what} did not work for {timeout_s:g} s: {last}") from last
        time.sleep(wait_s)
        pause_s = min(2 * pause_s, LONGEST_PAUSE_S)


def path_of(reload_id: str, *parts: object) -> str:
    return "/".join(["/v1/reloads", quote(reload_id, safe=""), *(quote(str(part), safe="") for part in parts)])
