"""
Streams of completions against an OpenAI-compatible server, and when each of their tokens arrived.

    python load_client.py URL MODEL --streams 32 --seconds 30 --out gaps.json

Writes `{"requests", "tokens", "errors", "seconds", "gaps": [[stream, end, gap], ...]}`: for each pause between two tokens of one
request longer than `--least-ms`, its stream, when it ended (seconds since the epoch) and how long it was (seconds).
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import time
from typing import Any

import aiohttp

PROMPT_TOKENS = 64
NEW_TOKENS = 256
RETRY_S = 0.2


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("url")
    parser.add_argument("model")
    parser.add_argument("--streams", type=int, default=32)
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--vocabulary", type=int, required=True)
    parser.add_argument("--least-ms", type=float, default=5)
    parser.add_argument("--out", required=True)
    settings = parser.parse_args()
    result = asyncio.run(load(settings))
    with open(settings.out, "w") as file:
        json.dump(result, file)


async def load(settings: argparse.Namespace) -> dict[str, Any]:
    result: dict[str, Any] = {"requests": 0, "tokens": 0, "errors": [], "gaps": []}
    started = time.time()
    until = started + settings.seconds
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=None), connector=connector) as session:
        await asyncio.gather(*[stream(session, settings, number, until, result) for number in range(settings.streams)])
    result["seconds"] = time.time() - started
    return result


async def stream(
    session: aiohttp.ClientSession, settings: argparse.Namespace, number: int, until: float, result: dict[str, Any]
) -> None:
    """One request after the other, each with a prompt of its own."""
    choose = random.Random(number)
    while time.time() < until:
        prompt = [choose.randrange(10, settings.vocabulary) for _ in range(PROMPT_TOKENS)]
        try:
            await one_request(session, settings, number, prompt, result)
        except (aiohttp.ClientError, OSError, asyncio.TimeoutError) as error:
            result["errors"].append(f"{type(error).__name__}: {error}")
            await asyncio.sleep(RETRY_S)


async def one_request(
    session: aiohttp.ClientSession,
    settings: argparse.Namespace,
    number: int,
    prompt: list[int],
    result: dict[str, Any],
) -> None:
    body = {
        "model": settings.model,
        "prompt": prompt,
        "max_tokens": NEW_TOKENS,
        "temperature": 0,
        "ignore_eos": True,
        "stream": True,
    }
    async with session.post(f"{settings.url}/v1/completions", json=body) as response:
        if response.status != 200:
            result["errors"].append(f"{response.status}: {(await response.text())[:200]}")
            await asyncio.sleep(RETRY_S)
            return
        last, is_whole = None, False
        async for line in response.content:
            if not line.startswith(b"data:"):
                continue
            now = time.time()
            if b"[DONE]" in line:
                is_whole = True
                break
            if b'"error"' in line:
                result["errors"].append(line.decode(errors="replace")[:200])
                return
            result["tokens"] += 1
            if last is not None and (now - last) * 1e3 >= settings.least_ms:
                result["gaps"].append([number, now, now - last])
            last = now
        if not is_whole:
            result["errors"].append("a stream ended early")
        result["requests"] += 1


if __name__ == "__main__":
    main()
