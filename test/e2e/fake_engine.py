"""An engine for attached-engine.test.ts: computes with the arenas of all ranks of a replica, and stands still when it is told to.

    fake_engine.py ID REPLICA_DIRECTORY WORLD

Each step reads all live bytes twice, rank by rank, and notes what they were. Says what happens, a line of JSON each. On stdin:

    ready      it has started
    hold       from now on it does not give its locks back
    steps      says what it has seen: epoch -> digests, and steps that saw two different things
"""

import fcntl
import hashlib
import json
import mmap
import os
import select
import socket
import struct
import sys
import time

SILENCE_S = 0.02
AGAIN_S = 0.5
WAIT_S = 60
PIECES = 4


def say(**what):
    print(json.dumps(what), flush=True)


class Link:
    """One connection to a worker; opened again for ever once it has been open."""

    def __init__(self, directory, hello):
        self.directory, self.hello = directory, hello
        self.socket, self.rest, self.again_at = None, b"", 0.0

    def open(self):
        self.again_at = time.monotonic() + AGAIN_S
        descriptor = os.open(self.directory, os.O_RDONLY | os.O_DIRECTORY)
        made = socket.socket(socket.AF_UNIX)
        try:
            made.connect(f"/proc/self/fd/{descriptor}/engines.sock")
            self.socket, self.rest = made, b""
            self.send(self.hello)
        except OSError:
            made.close()
            self.socket = None
        finally:
            os.close(descriptor)

    def send(self, message):
        if self.socket is None:
            return
        try:
            self.socket.sendall(json.dumps(message).encode() + b"\n")
        except OSError:
            self.close()

    def close(self):
        if self.socket is not None:
            self.socket.close()
        self.socket = None

    def read(self):
        """Messages; None: the link has broken."""
        if self.socket is None:
            return None
        try:
            data = self.socket.recv(65536)
        except OSError:
            data = b""
        if data == b"":
            self.close()
            return None
        *lines, self.rest = (self.rest + data).split(b"\n")
        return [json.loads(line) for line in lines]


class Rank:
    def __init__(self, directory):
        self.directory = directory
        self.lock = os.open(os.path.join(directory, "running.lock"), os.O_RDONLY)
        self.page = self.map("control")
        self.arena_id = None

    def map(self, name):
        with open(os.path.join(self.directory, name), "rb") as file:
            return mmap.mmap(file.fileno(), 0, mmap.MAP_SHARED, mmap.PROT_READ)

    def take(self):
        try:
            fcntl.flock(self.lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def give_back(self):
        fcntl.flock(self.lock, fcntl.LOCK_UN)

    def look(self):
        """Epoch and weight version; None: nothing to compute with."""
        state, generation, epoch = struct.unpack_from("<IQQ", self.page, 12)
        if state != 1 or generation % 2 == 1:
            return None
        arena_id = self.page[32:48]
        if self.arena_id is None:
            self.arena_id, self.live = arena_id, self.map("live.safetensors")
        if arena_id != self.arena_id:
            return None
        return epoch, self.page[208:336].split(b"\0", 1)[0].decode()


class Engine:
    def __init__(self, identity, replica, world):
        self.directories = [os.path.join(replica, f"rank-{rank}") for rank in range(world)]
        about = {"hello": 1, "engine": identity, "name": "fake", "version": "0", "pid": os.getpid(), "host": "here"}
        about |= {"url": None, "world": world, "data_parallel_rank": 0, "state": "starting"}
        self.rank_links = [Link(d, about | {"role": "rank", "rank": r}) for r, d in enumerate(self.directories)]
        self.core_links = [Link(d, about | {"role": "core", "rank": r}) for r, d in enumerate(self.directories)]
        self.ranks = []
        self.is_ready = self.is_running = self.holds = False
        self.stops = {}
        self.stopped_at = self.still_at = self.trouble_at = None
        self.seen, self.mixes, self.epoch = {}, [], None

    def start(self):
        for rank, link in enumerate(self.rank_links):
            while link.socket is None:
                link.open()
                time.sleep(0 if link.socket else 0.05)
            say(hello=rank)
            answer = self.first_answer(link)
            if "refused" in answer:
                say(**answer)
                sys.exit(1)
        self.ranks = [Rank(directory) for directory in self.directories]
        while not self.go_on():
            time.sleep(SILENCE_S)
        say(state="starting", weight_version=self.version)

    def first_answer(self, link):
        link.socket.settimeout(WAIT_S)
        while not (messages := link.read()):
            if messages is None:
                raise SystemExit("the worker ended before it answered")
        link.socket.settimeout(None)
        return messages[0]

    def become_ready(self):
        for link in self.rank_links + self.core_links:
            link.hello |= {"state": "ready"}
        for link in self.core_links:
            link.hello |= {"state": "starting"}
            link.open()
            link.send({"state": "ready"})
            link.hello |= {"state": "ready"}
        self.is_ready = True
        say(state="ready")

    def go_on(self):
        """All locks, then a look at the pages: the same epoch everywhere, or nothing is held."""
        if all(rank.take() for rank in self.ranks):
            shown = [rank.look() for rank in self.ranks]
            if None not in shown and len(set(shown)) == 1:
                self.epoch, self.version = shown[0]
                self.is_running = True
                return True
        self.stand_still()
        return False

    def stand_still(self):
        for rank in self.ranks:
            rank.give_back()
        self.is_running = False

    def step(self):
        first = self.read_all()
        second = self.read_all()
        if first != second or len({rank.look() for rank in self.ranks}) != 1:
            self.mixes.append([self.epoch, first, second])
        self.seen.setdefault(f"{self.epoch} {self.version}", set()).update({first, second})

    def read_all(self):
        digest = hashlib.sha256()
        for rank in self.ranks:
            size = len(rank.live) // PIECES + 1
            for piece in range(PIECES):
                digest.update(rank.live[piece * size : (piece + 1) * size])
                time.sleep(0)
        return digest.hexdigest()

    def heed(self, rank, message):
        if "stop" in message and not self.holds:
            self.stopped_at = self.stopped_at or time.monotonic()
            self.stops[rank] = message["stop"]
            if self.is_running:
                self.stand_still()
                self.still_at = time.monotonic()
                say(still=message["stop"])
            self.core_links[rank].send({"stopped": message["stop"]})
        elif "go" in message:
            self.stops.pop(rank, None)

    def obey(self, line):
        if line == "ready":
            self.become_ready()
        elif line == "hold":
            self.holds = True
            say(holds=True)
        elif line == "steps":
            say(steps={key: sorted(digests) for key, digests in self.seen.items()}, mixes=self.mixes)

    def try_again(self):
        if self.stops or not self.go_on():
            return
        now = time.monotonic()
        stop_ms = (now - (self.stopped_at or now)) * 1000
        still_ms = (now - (self.still_at or now)) * 1000
        self.stopped_at = self.still_at = None
        for link in self.core_links:
            link.send({"running": self.epoch, "stop_ms": stop_ms, "still_ms": still_ms, "weight_version": self.version})
        say(running=self.epoch)

    def listen(self, timeout_s):
        links: list[tuple[Link, int | None]] = [(link, None) for link in self.rank_links]
        links += [(link, rank) for rank, link in enumerate(self.core_links) if self.is_ready]
        for link, _ in links:
            if link.socket is None and time.monotonic() >= link.again_at:
                link.open()
        is_open = {link.socket: (link, rank) for link, rank in links if link.socket is not None}
        readable, _, _ = select.select([sys.stdin, *is_open], [], [], timeout_s)
        for one in readable:
            if one is sys.stdin:
                line = sys.stdin.readline()
                if line == "":
                    sys.exit(0)
                self.obey(line.strip())
                continue
            link, rank = is_open[one]
            messages = link.read()
            if messages is None and rank is not None:
                self.stops.pop(rank, None)
            for message in messages or []:
                if rank is not None:
                    self.heed(rank, message)

    def run(self):
        self.start()
        while True:
            if self.is_running:
                self.step()
            else:
                self.try_again()
            self.listen(0.001 if self.is_running else SILENCE_S)


Engine(sys.argv[1], sys.argv[2], int(sys.argv[3])).run()
