"""The link of an engine's process to the worker of a rank: a unix socket in the rank's directory, opened again for ever."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from ..errors import Refused, Timeout
from .log import log
from .messages import Hello, LineReader, Malformed, Message, Welcome, encode, parse_welcome

NAME = "engines.sock"
AGAIN_S = 0.5
# A worker that answers nothing for so long is stopped or hangs; its socket is still there.
CONNECT_S = 5.0
RECEIVE_BYTES = 64 * 1024


def ignore(_what: object) -> None:
    """For a process that only wants to be known."""


class Link:
    """
    One thread that connects, says hello, and hands on what it hears; after the connection's end it begins again every
    0.5 s. The three callbacks run in that thread and must not wait: `on_message` with what is neither welcome nor
    refusal (it may raise Malformed), `on_welcome` after each welcome, `on_lost` after the end of each connection.
    """

    def __init__(
        self,
        directory: Path,
        hello: Hello,
        *,
        state: str,
        on_message: Callable[[Message], None] = ignore,
        on_welcome: Callable[[Link], None] = ignore,
        on_lost: Callable[[Link], None] = ignore,
    ) -> None:
        self.directory = directory
        self.state = state
        """What the next hello says: `starting` or `ready`."""
        self._hello = hello
        self._on_message, self._on_welcome, self._on_lost = on_message, on_welcome, on_lost
        self._answered = threading.Condition()
        self._answer: Welcome | Refused | None = None
        self._socket: socket.socket | None = None
        self._sending = threading.Lock()
        self._over = threading.Event()
        self._reported = ""
        os.register_at_fork(after_in_child=self._leave_to_parent)
        threading.Thread(target=self._keep_open, name=f"layercast-link-{hello.role}", daemon=True).start()

    def wait_for_welcome(self, timeout_s: float) -> Welcome:
        """Raises Refused, which holds until a later connection is welcome, and Timeout."""
        with self._answered:
            if not self._answered.wait_for(lambda: self._answer is not None, timeout_s):
                raise Timeout(
                    f"waited {timeout_s:g} s for the worker of {self.directory} to take this engine in "
                    f"({self._reported or 'it is connected and says nothing'}): is `layercast worker` running there?"
                )
            answer = self._answer
        if isinstance(answer, Refused):
            raise answer
        assert answer is not None
        return answer

    def send(self, message: Message) -> bool:
        """Never waits. False where there is no connection, or where it is full: then it ends, and another is opened."""
        with self._sending:
            if self._socket is None:
                return False
            data = encode(message)
            try:
                whole = self._socket.send(data, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL) == len(data)
            except OSError:
                whole = False
            if not whole:
                with suppress(OSError):
                    self._socket.shutdown(socket.SHUT_RDWR)
            return whole

    def close(self) -> None:
        """For good. The thread ends by itself."""
        self._over.set()
        with self._sending:
            if self._socket is not None:
                with suppress(OSError):
                    self._socket.shutdown(socket.SHUT_RDWR)

    def _keep_open(self) -> None:
        while not self._over.is_set():
            try:
                self._converse()
                self._report(f"The worker of {self.directory} ended the connection.")
            except (OSError, Malformed) as error:
                self._report(f"No connection to the worker of {self.directory}: {error}.")
            except Exception:
                log.exception("A mistake in the plugin ended the connection to the worker of %s.", self.directory)
            self._over.wait(AGAIN_S)

    def _converse(self) -> None:
        connection = connect(self.directory)
        try:
            # The hello goes first: nobody else may send before the socket is known.
            connection.sendall(encode(self._hello.message(self.state)))
            with self._sending:
                self._socket = connection
            reader = LineReader()
            while data := connection.recv(RECEIVE_BYTES):
                for message in reader.feed(data):
                    self._hear(message)
        finally:
            self._drop_socket()
            connection.close()
            self._on_lost(self)

    def _hear(self, message: Message) -> None:
        if "welcome" in message:
            self._take_answer(parse_welcome(message))
            if self._reported:
                log.info("Connected to the worker of %s.", self.directory)
            self._reported = ""
            self._on_welcome(self)
        elif "refused" in message:
            code, text = str(message["refused"]), str(message.get("message", ""))
            self._take_answer(Refused(text, code=code, retryable=False, details={}, retry_after_s=None))
            raise Malformed(f"it refuses this engine ({code}): {text}")
        else:
            self._on_message(message)

    def _take_answer(self, answer: Welcome | Refused) -> None:
        with self._answered:
            self._answer = answer
            self._answered.notify_all()

    def _drop_socket(self) -> None:
        with self._sending:
            self._socket = None

    def _leave_to_parent(self) -> None:
        """In a forked child, which has no thread of ours: its copy of the socket would outlive the engine."""
        connection, self._socket = self._socket, None
        if connection is not None:
            connection.close()

    def _report(self, text: str) -> None:
        """Once for each reason, not twice a second."""
        if text != self._reported and not self._over.is_set():
            log.warning("%s Trying again every %g s.", text, AGAIN_S)
            self._reported = text


def connect(directory: Path) -> socket.socket:
    """Through a descriptor of the directory, because a socket's address has room for 107 bytes. Raises OSError."""
    folder = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        connection.settimeout(CONNECT_S)
        connection.connect(f"/proc/self/fd/{folder}/{NAME}")
        connection.settimeout(None)
        return connection
    except BaseException:
        connection.close()
        raise
    finally:
        os.close(folder)
