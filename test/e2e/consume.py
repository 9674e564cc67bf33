"""A consumer for python-consumer.test.ts: attaches to a rank, then answers each line of stdin with a line of JSON.

    look              what the buffers taken at the last attaching hold, read under the lock
    wait VERSION      the same once that weight version is live
    follow VERSION    every weight version seen on the way to that one, each with what it held
    attach            attaches again
"""

import hashlib
import json
import sys

import layercast

WAIT_S = 60


class Consumer:
    def __init__(self, rank_directory):
        self.rank_directory = rank_directory
        self.attach()

    def attach(self):
        self.arena = layercast.attach(self.rank_directory, timeout_s=WAIT_S)
        self.buffers = self.arena.buffers()
        self.layout = self.arena.layout()
        return self.look()

    def look(self):
        version, tensors = self.arena.read(lambda version: (version, self.digests()), timeout_s=WAIT_S)
        return {"version": version, "tensors": tensors}

    def wait(self, version):
        self.arena.wait_for_version(version, timeout_s=WAIT_S)
        return self.look()

    def follow(self, version):
        seen: dict[str, object] = {}
        while version not in seen:
            found = self.look()
            before = seen.setdefault(found["version"], found["tensors"])
            if before != found["tensors"]:
                raise AssertionError(f"version {found['version']} was read twice and differed")
        return {"seen": seen}

    def digests(self):
        """Name -> dtype, shape, sha256, as in the goldens."""
        return {
            name: [dtype, shape, hashlib.sha256(self.buffers[name]).hexdigest()]
            for name, (dtype, shape) in self.layout.items()
        }


def main():
    consumer = Consumer(sys.argv[1])
    print(json.dumps({"attached": True}), flush=True)
    for line in sys.stdin:
        verb, *arguments = line.split()
        try:
            answer = getattr(consumer, verb)(*arguments)
        except layercast.LayercastError as error:
            answer = {"error": error.code, "message": str(error)}
        print(json.dumps(answer), flush=True)


main()
