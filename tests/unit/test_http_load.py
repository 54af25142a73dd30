"""Many streams at a time for a minute: nothing is lost, and memory stays as it is."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import random
import time
from collections import Counter
from typing import Any

import psutil
import pytest

over_http = pytest.importorskip(
    "over_http", reason="the extra serve, httpx or openai is not installed", exc_type=ImportError
)
import httpx  # noqa: E402

import hyparflow as hf  # noqa: E402

CLIENTS, SECONDS, WARM = 64, 60, 20
PROMPTS = [f"{'hello' * (number % 5)} {number}" for number in range(16)]
LENGTHS = [20 + 5 * number for number in range(16)]
LEAST = 8 * 2**20  # bytes that memory may grow by, whatever is asked


@pytest.mark.slow
def test_a_minute_of_streams() -> None:
    model = over_http.letters_model()
    totals = [len(p) + 1 + count for p, count in zip(PROMPTS, LENGTHS, strict=True)]
    wanted = hf.generate(model, PROMPTS, totals, strip_prompt=True, sampler="greedy")
    with over_http.listening(model, max_batch=16, max_waiting=100) as http:
        counts, memory = asyncio.run(clients(http, wanted))
        asked, server = counts.total(), http.service.server
        over_http.until(lambda: sum(server.stats().ended.values()) == asked)
        assert http.service.is_idle
    assert counts["wrong"] == counts["failed"] == 0
    assert counts["whole"] > 5 * CLIENTS and counts["left"] > CLIENTS / 2
    assert memory[-1] - memory[0] < LEAST


async def clients(http: Any, wanted: list[str]) -> tuple[Counter[str], list[int]]:
    """What became of requests, and the memory from when all is compiled."""
    counts, begun, memory = Counter[str](), time.monotonic(), list[int]()
    process = psutil.Process()
    limits = httpx.Limits(max_connections=CLIENTS)
    async with httpx.AsyncClient(base_url=http.address, timeout=60, limits=limits) as client:

        async def one(draws: random.Random) -> None:
            while time.monotonic() < begun + SECONDS:
                place = draws.randrange(len(PROMPTS))
                leaves = draws.random() < 0.1
                counts[await stream(client, place, wanted[place], leaves)] += 1

        tasks = [asyncio.ensure_future(one(random.Random(seed))) for seed in range(CLIENTS)]
        while any(not task.done() for task in tasks):
            await asyncio.sleep(1)
            if begun + WARM < time.monotonic() < begun + SECONDS:  # later, smaller batches compile
                gc.collect()
                memory.append(process.memory_info().rss)
        for task in tasks:
            task.result()
    return counts, memory


async def stream(client: httpx.AsyncClient, place: int, wanted: str, leaves: bool) -> str:
    """One request, and what became of it."""
    body = {"prompt": PROMPTS[place], "max_tokens": LENGTHS[place], "temperature": 0}
    text, is_done = "", False
    async with client.stream("POST", "/v1/completions", json={**body, "stream": True}) as answer:
        if answer.status_code != 200:
            return "failed"
        async with contextlib.aclosing(answer.aiter_lines()) as lines:
            async for line in lines:
                if line == "data: [DONE]":
                    is_done = True
                elif line:
                    text += json.loads(line.removeprefix("data: "))["choices"][0]["text"]
                    if leaves:
                        return "left"
    return "whole" if is_done and text == wanted else "wrong"
