"""The command `hyparflow serve`, in one process and over ranks."""

from __future__ import annotations

import os
import signal
import socket
from pathlib import Path
from typing import Any

import pytest
from jobs.jobs import Job

over_http = pytest.importorskip(
    "over_http", reason="the extra serve, httpx or openai is not installed", exc_type=ImportError
)
import httpx  # noqa: E402

import hyparflow as hf  # noqa: E402

# Rank 0 tells which process it is: what a launcher does with signals is its own.
COMMAND = """
import os, sys
from hyparflow.cli.main import main
from hyparflow.comm import launcher

path = sys.argv.pop(1)
if not launcher.told_rank():
    with open(path, "w") as file:
        file.write(str(os.getpid()))
main()
"""
WARNS = {"TF_CPP_MIN_LOG_LEVEL": "2"}


@pytest.fixture(scope="module")
def model() -> Any:
    return over_http.letters_model()


@pytest.fixture(scope="module")
def saved(model: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models") / "letters.keras"
    model.save(path)
    (path.parent / "chat.jinja").write_text("{{ messages[0].content }}")
    return path


@pytest.mark.parametrize(
    ("ranks", "number"), [(0, signal.SIGTERM), (2, signal.SIGINT)], ids=["alone", "partitions"]
)
def test_it_answers_until_it_is_told_to_end(
    model: Any, saved: Path, tmp_path: Path, ranks: int, number: int
) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{free.getsockname()[1]}"
    words = ["serve", saved, "--port", address.split(":")[-1], "--max-batch", 2]
    words += ["--max-length", 48, "--chat-template", saved.parent / "chat.jinja"]
    words += ["--num-partitions", ranks] if ranks else []
    job = Job(ranks, "-c", COMMAND, tmp_path / "process", *words, **WARNS)
    over_http.until(lambda: is_well(address) or not job.is_running(), seconds=120)
    if job.is_running():
        asked = {"messages": [{"role": "user", "content": "hello"}], "temperature": 0}
        answer = httpx.post(
            f"{address}/v1/chat/completions", json={**asked, "max_tokens": 20}, timeout=60
        )
        wanted = hf.generate(model, "hello", 26, strip_prompt=True, sampler="greedy")
        assert answer.json()["choices"][0]["message"]["content"] == wanted
        os.kill(int((tmp_path / "process").read_text()), number)
    result = job.wait(60)
    assert (result.code, result.left) == (0, []), result.output
    line = f"hyparflow serves 'letters' at {address}: at most 2 completions at the same time, of 48"
    assert result.output.count(line) == 1, result.output
    assert "Traceback" not in result.output


@pytest.mark.parametrize("axis", ["--num-partitions", "--num-replicas"])
def test_a_rank_that_is_killed_ends_all_requests(saved: Path, tmp_path: Path, axis: str) -> None:
    """Clients that read a stream see it break off, and the job ends."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{free.getsockname()[1]}"
    words = ["serve", saved, "--port", address.split(":")[-1], axis, 2]
    job = Job(2, "-c", COMMAND.replace("if not", "if"), tmp_path / "process", *words, **WARNS)
    over_http.until(lambda: is_well(address) or not job.is_running(), seconds=180)
    asked = {"prompt": "abc", "max_tokens": 250, "stream": True, "stop": "never said", "n": 4}
    with (
        pytest.raises(httpx.TransportError),
        httpx.stream("POST", f"{address}/v1/completions", json=asked, timeout=60) as answer,
    ):
        for number, _ in enumerate(answer.iter_lines()):
            if number == 0:
                os.kill(int((tmp_path / "process").read_text()), signal.SIGKILL)
    result = job.wait(60)
    assert result.code != 0
    assert result.left == []


def is_well(address: str) -> bool:
    try:
        return httpx.get(f"{address}/health", timeout=5).status_code == 200
    except httpx.TransportError:
        return False


def test_ranks_end_if_the_port_is_taken(saved: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        words = ["serve", saved, "--port", taken.getsockname()[1]]
        result = Job(2, "-m", "hyparflow.cli", *words).wait(60)
    assert result.code == 2, result.output
    assert result.output.count("Address already in use") == 1
