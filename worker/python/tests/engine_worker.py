"""
A worker's part towards engines: the socket in a rank's directory, the run lock held alone, swaps of a page that is there.

As a program it does what its standard input says, a line each, and answers each with a line: a process that can be killed.
"""

from __future__ import annotations

import fcntl
import json
import mmap
import os
import socket
import struct
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

Message = dict[str, Any]
WAIT_S = 30.0


class EngineWorker:
    def __init__(self, directory: Path, answer: Message | None = None) -> None:
        """`answer`: what a hello gets; nothing where it is empty."""
        self.directory = directory
        self.answer = {"welcome": 1, "epoch": 1, "weight_version": "1", "recipe": "none"} if answer is None else answer
        self.heard: list[Message] = []
        self.changed = threading.Condition()
        self.connections: list[tuple[socket.socket, Message]] = []
        (directory / "running.lock").touch()
        self.lock_file = open(directory / "running.lock", "rb")
        self.server = listen(directory)
        threading.Thread(target=self._accept, daemon=True).start()

    def send(self, message: Message) -> None:
        """To every core that is connected."""
        self.send_raw(json.dumps(message).encode() + b"\n")

    def send_raw(self, data: bytes, role: str = "core") -> None:
        with self.changed:
            for connection, hello in self.connections:
                if hello["role"] == role:
                    connection.sendall(data)

    def wait_for(self, *names: str, count: int = 1) -> Message:
        """The `count`-th message that has one of these fields."""

        def found() -> list[Message]:
            return [message for message in self.heard if any(name in message for name in names)]

        with self.changed:
            if not self.changed.wait_for(lambda: len(found()) >= count, WAIT_S):
                raise AssertionError(f"waited for {count} of {names}, heard {self.heard}")
            return found()[count - 1]

    def wait_until_ready(self) -> None:
        """A core is connected and can be stopped."""
        with self.changed:
            if not self.changed.wait_for(lambda: {"state": "ready"} in self.heard, WAIT_S):
                raise AssertionError(f"waited for a core to be ready, heard {self.heard}")

    def wait_until_running(self, epoch: int) -> Message:
        def found() -> list[Message]:
            return [message for message in self.heard if message.get("running") == epoch]

        with self.changed:
            if not self.changed.wait_for(found, WAIT_S):
                raise AssertionError(f"waited for epoch {epoch} to run, heard {self.heard}")
            return found()[0]

    def forget(self, name: str) -> None:
        """Messages with this field, for who counts those that follow."""
        with self.changed:
            self.heard = [message for message in self.heard if name not in message]

    def try_lock(self) -> bool:
        try:
            fcntl.flock(self.lock_file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def lock(self) -> None:
        end = time.monotonic() + WAIT_S
        while not self.try_lock():
            if time.monotonic() > end:
                raise AssertionError(f"an engine still holds {self.directory}/running.lock, heard {self.heard}")
            time.sleep(0.0005)

    def unlock(self) -> None:
        fcntl.flock(self.lock_file, fcntl.LOCK_UN)

    def begin(self, epoch: int) -> None:
        with self._words() as words:
            words[2] += 1 - words[2] % 2
            words[3] = epoch

    def end(self, version: str) -> None:
        with open(self.directory / "control", "r+b") as file, mmap.mmap(file.fileno(), 0) as page:
            page[208 : 208 + 128] = version.encode().ljust(128, b"\0")
            page[12:16] = struct.pack("<I", 1)
        with self._words() as words:
            words[2] += words[2] % 2

    def swap(self, epoch: int) -> None:
        """With stop and go, as a worker does."""
        self.send({"stop": epoch, "reload": f"r{epoch}"})
        self.lock()
        self.begin(epoch)
        self.end(str(epoch))
        self.unlock()
        self.send({"go": epoch})

    def drop_connections(self) -> None:
        with self.changed:
            for connection, _ in self.connections:
                with suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        with suppress(OSError):
            self.server.shutdown(socket.SHUT_RDWR)
        self.server.close()
        self.drop_connections()
        self.lock_file.close()

    def _words(self) -> Words:
        return Words(self.directory / "control")

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self.server.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with connection, suppress(OSError), connection.makefile("rb") as lines:
            for line in lines:
                self._hear(connection, json.loads(line))
        with self.changed:
            gone = [hello for other, hello in self.connections if other is connection]
            self.connections = [one for one in self.connections if one[0] is not connection]
            self.heard.extend({"gone": hello["role"]} for hello in gone)
            self.changed.notify_all()

    def _hear(self, connection: socket.socket, message: Message) -> None:
        with self.changed:
            if "hello" in message:
                self.connections.append((connection, message))
            # Before it is known as heard, so that whoever waited for the hello may send what goes after the welcome.
            if "hello" in message and self.answer:
                connection.sendall(json.dumps(self.answer).encode() + b"\n")
            self.heard.append(message)
            self.changed.notify_all()


class Words:
    """The page's words, unmapped again at once."""

    def __init__(self, path: Path) -> None:
        with open(path, "r+b") as file:
            self.page = mmap.mmap(file.fileno(), 0)
        self.words = memoryview(self.page).cast("Q")

    def __enter__(self) -> memoryview[Any]:
        return self.words

    def __exit__(self, *_: object) -> None:
        self.words.release()
        self.page.close()


def listen(directory: Path) -> socket.socket:
    (directory / "engines.sock").unlink(missing_ok=True)
    folder = os.open(directory, os.O_PATH)
    server = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    server.bind(f"/proc/self/fd/{folder}/engines.sock")
    server.listen()
    os.close(folder)
    return server


def main() -> None:
    worker = EngineWorker(Path(sys.argv[1]))
    print("up", flush=True)
    for line in sys.stdin:
        name, *arguments = line.split()
        if name in ("begin", "swap"):
            getattr(worker, name)(int(arguments[0]))
        elif name in ("stop", "go"):
            worker.send({name: int(arguments[0])})
        elif name == "wait":
            worker.wait_for(*arguments)
        else:
            getattr(worker, name)(*arguments)
        print("done", flush=True)


if __name__ == "__main__":
    main()
