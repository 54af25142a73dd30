"""Many streams at once, for minutes, by the client that OpenAI publishes: is anything lost?

    python benchmarks/serving/streams.py --minutes 10 --streams 64
    python benchmarks/serving/streams.py --ranks 2 --words=--num-replicas=2

It starts `hyparflow serve` with a small model of bytes, and keeps so many streams open: each asks
for 20 to 200 tokens, and when its last piece has come, asks again. One of twenty goes away in the
middle. At the end: completions, those that broke off or had another number of tokens than was
asked for, and the memory of the server every half minute.
"""

import argparse
import asyncio
import json
import os
import random
import shlex
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import httpx
import openai

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[1] / "tests"))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--streams", type=int, default=64)
    parser.add_argument("--ranks", type=int, default=1)
    parser.add_argument("--words", default="", help="more of the command hyparflow serve")
    parser.add_argument("--save", type=Path)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, socket.socket() as free:
        path = Path(folder) / "letters.keras"
        save_model(path)
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
        free.close()
        words = ["-m", "hyparflow.cli", "serve", path, "--port", port, "--max-length", 256]
        words += shlex.split(args.words)
        launcher = []
        if args.ranks > 1:
            launcher = shlex.split("mpirun --map-by :OVERSUBSCRIBE --bind-to none -n")
            launcher.append(str(args.ranks))
        server = subprocess.Popen([*launcher, sys.executable, *map(str, words)])
        try:
            found = asyncio.run(Load(f"http://127.0.0.1:{port}", server.pid).run(args))
        finally:
            server.send_signal(signal.SIGINT)
            found_code = server.wait(60)
    found["exit_code"] = found_code
    print(json.dumps(found, indent=1))
    if args.save:
        args.save.write_text(json.dumps(found, indent=1) + "\n")


def save_model(path: Path) -> None:
    """Write the model, in a process of its own: TensorFlow does not stay in this one."""
    code = "import sys, over_http; over_http.letters_model().save(sys.argv[1])"
    paths = [str(HERE.parents[1] / "tests"), os.environ.get("PYTHONPATH", "")]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths))}
    subprocess.run([sys.executable, "-c", code, path], check=True, env=environment)


class Load:
    """Streams, and what became of them.

    Args:
        address: of the server.
        process: its number.
    """

    def __init__(self, address: str, process: int) -> None:
        self._address, self._process = address, process
        self._done, self._left, self._tokens = 0, 0, 0
        self._lost: list[str] = []
        self._first: list[float] = []

    async def run(self, args: argparse.Namespace) -> dict:
        """Keep streams open for the time that is asked for."""
        await self._until_well()
        begun = time.monotonic()
        end = begun + 60 * args.minutes
        limits = httpx.Limits(max_connections=args.streams)
        async with openai.AsyncOpenAI(
            base_url=f"{self._address}/v1",
            api_key="none",
            max_retries=0,
            http_client=httpx.AsyncClient(limits=limits, timeout=120),
        ) as client:
            streams = [self._stream(client, number, end) for number in range(args.streams)]
            memory, *_ = await asyncio.gather(self._memory(end), *streams)
        return {
            "minutes": args.minutes,
            "streams": args.streams,
            "ranks": args.ranks,
            "completions": self._done,
            "left_by_clients": self._left,
            "tokens_a_second": self._tokens / (time.monotonic() - begun),
            "lost": self._lost,
            "seconds_to_first_token": {
                "median": statistics.median(self._first),
                "largest": max(self._first),
            },
            "memory_mib": memory,
        }

    async def _until_well(self) -> None:
        async with httpx.AsyncClient() as client:
            for _ in range(600):
                try:
                    if (await client.get(f"{self._address}/health")).status_code == 200:
                        return
                except httpx.TransportError:
                    pass
                await asyncio.sleep(0.5)
        raise SystemExit("the server has not started")

    async def _stream(self, client: openai.AsyncOpenAI, number: int, end: float) -> None:
        draw = random.Random(number)
        while time.monotonic() < end:
            wanted = draw.randrange(20, 201)
            leaves = draw.random() < 0.05
            prompt = "".join(draw.choices("abcdefgh ", k=draw.randrange(1, 50)))
            try:
                await self._ask(client, prompt, wanted, leaves)
            except openai.OpenAIError as error:
                self._lost.append(f"{type(error).__name__}: {error}")

    async def _ask(
        self, client: openai.AsyncOpenAI, prompt: str, wanted: int, leaves: bool
    ) -> None:
        begun = time.monotonic()
        stream = await client.completions.create(
            model="letters", prompt=prompt, max_tokens=wanted, stream=True, temperature=0,
            stream_options={"include_usage": True},
        )  # fmt: skip
        pieces, reason, usage = 0, None, None
        async for event in stream:
            if not pieces:
                self._first.append(time.monotonic() - begun)
            pieces += 1
            usage = event.usage or usage
            reason = next((x.finish_reason for x in event.choices if x.finish_reason), reason)
            if leaves and pieces == 3:
                await stream.close()
                self._left += 1
                return
        made = usage.completion_tokens if usage else 0
        whole = made == wanted if reason == "length" else reason == "stop"
        if not whole:
            self._lost.append(f"asked for {wanted}, got {made}: {reason}")
        self._done += 1
        self._tokens += made

    async def _memory(self, end: float) -> list[int]:
        """Of the server's processes, every half minute."""
        found = []
        while time.monotonic() < end:
            found.append(memory_mib(self._process))
            await asyncio.sleep(min(30, max(0.1, end - time.monotonic())))
        return [*found, memory_mib(self._process)]


def memory_mib(process: int) -> int:
    """Of a process and those that it has started."""
    children = Path(f"/proc/{process}/task/{process}/children").read_text().split()
    lines = Path(f"/proc/{process}/status").read_text().splitlines()
    mine = next(int(line.split()[1]) for line in lines if line.startswith("VmRSS"))
    return mine // 1024 + sum(memory_mib(int(child)) for child in children)


if __name__ == "__main__":
    main()
