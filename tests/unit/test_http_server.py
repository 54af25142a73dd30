"""The server of completions: who may ask, who has gone, what has failed, and how it ends."""

from __future__ import annotations

import json
import socket
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

over_http = pytest.importorskip(
    "over_http", reason="the extra serve, httpx or openai is not installed", exc_type=ImportError
)
import httpx  # noqa: E402
import openai  # noqa: E402
from click.testing import CliRunner  # noqa: E402

from hyparflow.cli.main import main  # noqa: E402
from hyparflow.serving.http.app import HttpSettings  # noqa: E402
from hyparflow.serving.http.run import bound  # noqa: E402
from hyparflow.serving.scheduling.request import EndReason  # noqa: E402

LONG = {"prompt": "hello", "max_tokens": 240, "temperature": 0}  # sixty slow windows


@pytest.fixture(scope="module")
def model() -> Any:
    """With all compiled that tests need, so that windows take as long as they say."""
    model = over_http.letters_model()
    with over_http.slowly(model, rest=0.0) as server:
        server.submit("hello", max_new_tokens=240, sampler="greedy").tokens()
    return model


def ask(http: Any, **fields: Any) -> httpx.Response:
    return httpx.post(f"{http.address}/v1/completions", json={**LONG, **fields}, timeout=60)


def in_thread(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """A future of a call."""
    pool = ThreadPoolExecutor(1)
    try:
        return pool.submit(function, *args, **kwargs)
    finally:
        pool.shutdown(wait=False)


def open_stream(http: Any, **fields: Any) -> socket.socket:
    """A stream over a plain connection, whose first answer is there."""
    host, port = http.address.removeprefix("http://").split(":")
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    connection.connect((host, int(port)))
    body = json.dumps({**LONG, **fields}).encode()
    head = f"POST /v1/completions HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n"
    connection.sendall(head.encode() + b"Content-Length: %d\r\n\r\n" % len(body) + body)
    return connection


def metric(http: Any, name: str) -> float:
    lines = httpx.get(f"{http.address}/metrics").text.splitlines()
    return sum(float(line.split()[-1]) for line in lines if line.startswith(f"{name} "))


@pytest.mark.parametrize("is_stream", [True, False], ids=["stream", "whole"])
def test_who_goes_away_frees_the_row(model: Any, is_stream: bool) -> None:
    with over_http.slowly(model) as server, over_http.answering(server) as http:
        connection = open_stream(http, stream=is_stream, n=3)
        over_http.until(lambda: server.stats().tokens >= 12)
        connection.close()
        over_http.until(lambda: server.stats().ended == {EndReason.CANCELLED: 3}, seconds=1.0)
        assert server.stats().running == 0 and http.service.is_idle
        assert metric(http, "hyparflow_requests_running") == 0
        assert metric(http, 'hyparflow_requests_ended_total{reason="cancelled"}') == 3
        assert metric(http, "hyparflow_time_to_first_token_seconds_count") == 3


def test_who_does_not_read_is_given_up(model: Any) -> None:
    """Its answer is larger than what systems keep for connections."""
    with (
        over_http.slowly(model, rest=0.0) as server,
        over_http.answering(server, patience=0.5, keeps=4096) as http,
        open_stream(http, stream=True, logprobs=5, n=4) as connection,
    ):
        over_http.until(lambda: not http.service.is_idle)
        # Others are served meanwhile.
        assert ask(http, max_tokens=8).json()["usage"]["completion_tokens"] == 8
        over_http.until(lambda: http.service.is_idle, seconds=10)
        received = b"".join(iter(lambda: connection.recv(10**5), b""))
        assert received.startswith(b"HTTP/1.1 200") and b"[DONE]" not in received


def test_who_does_not_ask_is_given_up(model: Any) -> None:
    with over_http.slowly(model) as server, over_http.answering(server, patience=0.3) as http:
        host, port = http.address.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port)), timeout=5) as connection:
            connection.sendall(b"POST /v1/completions HTTP/1.1\r\n")
            assert connection.recv(100) == b""
        with httpx.Client(base_url=http.address) as client:  # which keeps its connection
            for _ in range(2):
                assert client.post("/v1/completions", json={**LONG, "max_tokens": 40}).is_success


def test_no_more_may_wait_than_there_is_room_for(model: Any) -> None:
    settings = HttpSettings("letters", max_waiting=2)
    with (
        over_http.slowly(model) as server,
        over_http.answering(server, settings=settings) as http,
        open_stream(http, stream=True, n=5),
    ):
        over_http.until(lambda: server.stats().running == 4)
        assert metric(http, "hyparflow_requests_waiting") == 1
        refused = ask(http, n=2)
        assert refused.status_code == 429 and refused.headers["Retry-After"] == "1"
        assert "There may be 6 completions" in refused.json()["error"]["message"]
        with pytest.raises(openai.RateLimitError):
            over_http.client_of(http).completions.create(model="letters", prompt="a", n=2)
        with open_stream(http, stream=True):
            over_http.until(lambda: server.stats().waiting == 2)


def test_the_key(model: Any) -> None:
    with over_http.listening(model, key="sécret") as http:
        assert httpx.get(f"{http.address}/health").json() == {"status": "ok"}
        for path in ("/metrics", "/v1/models", "/openapi.json", "/nothing"):
            assert httpx.get(http.address + path).status_code == 401
        for value in ("Bearer", "Bearer other", "Basic sécret", "sécret"):
            answer = httpx.get(
                f"{http.address}/v1/models", headers={"Authorization": value.encode()}
            )
            assert answer.status_code == 401
            assert answer.json()["error"]["code"] == "invalid_api_key"
        with pytest.raises(openai.AuthenticationError):
            over_http.client_of(http, key="other").models.list()
        right = {"Authorization": "Bearer sécret".encode()}
        assert httpx.get(f"{http.address}/v1/models", headers=right).status_code == 200


def test_a_failure_ends_all_by_errors(model: Any, caplog: pytest.LogCaptureFixture) -> None:
    with (
        over_http.slowly(model, max_batch=2, fails_in=10) as server,
        over_http.answering(server) as http,
    ):
        assert httpx.get(f"{http.address}/health").status_code == 200
        whole = in_thread(ask, http)
        waits = in_thread(ask, http, n=2)
        lines = []
        with httpx.stream(
            "POST", f"{http.address}/v1/completions", json={**LONG, "stream": True}, timeout=60
        ) as stream:
            lines = [line for line in stream.iter_lines() if line]
        assert json.loads(lines[-1].removeprefix("data: "))["error"] == {
            "message": "The engine has failed.",
            "type": "server_error",
            "param": None,
            "code": "engine_failed",
        }
        for answer in (whole.result(20), waits.result(20)):
            assert answer.status_code == 500
            assert answer.json()["error"]["code"] == "engine_failed"
        assert httpx.get(f"{http.address}/health").status_code == 503
        assert ask(http).status_code == 503
        assert metric(http, 'hyparflow_requests_ended_total{reason="failed"}') == 4
        assert metric(http, "hyparflow_requests_running") == 0
        assert http.service.is_idle
    (told,) = [record for record in caplog.records if record.name == "hyparflow"]
    assert "the accelerator is gone" in str(told.exc_info)


def test_streams_of_openai_s_client_raise(model: Any) -> None:
    with (
        over_http.slowly(model, fails_in=5) as server,
        over_http.answering(server) as http,
        pytest.raises(openai.APIError, match="The engine has failed"),
    ):
        for _ in over_http.client_of(http).completions.create(model="letters", stream=True, **LONG):
            pass


def test_the_end_waits_for_requests_but_not_for_ever(model: Any) -> None:
    with over_http.slowly(model, rest=0.02) as server, over_http.answering(server) as http:
        short = in_thread(ask, http, max_tokens=40)
        long = in_thread(ask, http)
        stream = in_thread(lambda: ask(http, stream=True).text)
        over_http.until(lambda: server.stats().running == 3)
        begun = time.monotonic()
        http.stop(grace=0.5)
        assert time.monotonic() - begun < 5
        assert short.result(5).json()["choices"][0]["finish_reason"] == "length"
        assert long.result(5).status_code == 503
        assert long.result(5).json()["error"]["code"] == "server_is_going"
        last = stream.result(5).strip().splitlines()[-1]
        assert json.loads(last.removeprefix("data: "))["error"]["code"] == "server_is_going"
        with pytest.raises(httpx.ConnectError):
            ask(http)


def test_without_a_template_chats_are_refused(model: Any) -> None:
    with (
        over_http.listening(model) as http,
        pytest.raises(openai.BadRequestError, match="--chat-template FILE"),
    ):
        over_http.client_of(http).chat.completions.create(
            model="letters", messages=[{"role": "user", "content": "a"}]
        )


def test_nothing_is_global(model: Any) -> None:
    """Two servers of a process count apart."""
    with over_http.listening(model) as one, over_http.listening(model) as other:
        ask(one, max_tokens=3)
        assert metric(one, "hyparflow_tokens_total") == 3
        assert metric(other, "hyparflow_tokens_total") == 0


def test_a_missing_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    (tmp_path / "model.keras").touch()
    result = CliRunner().invoke(main, ["serve", str(tmp_path / "model.keras")])
    assert result.exit_code == 2
    assert "without uvicorn. Install them by: pip install" in result.output


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["{tmp}/nothing.keras"], "does not exist"),
        (["{tmp}/text.keras"], "Keras says"),
        (["{tmp}/folder"], "a preset of KerasHub. Received"),
        (["{tmp}/dense.keras"], "must have a preprocessor"),
        (["{tmp}/text.keras", "--port", "{taken}"], "in use"),
        (["{tmp}/text.keras", "--host", "nowhere.invalid"], "Error: "),
        (["{tmp}/text.keras", "--grace", "-1"], "--grace"),
        (["{tmp}/text.keras", "--chat-template", "{tmp}/chat.jinja"], "line 2 is none"),
    ],
)
def test_mistakes_are_explained(tmp_path: Path, arguments: list[str], text: str) -> None:
    import keras

    (tmp_path / "text.keras").write_text("weights")
    (tmp_path / "folder").mkdir()
    (tmp_path / "chat.jinja").write_text("{{ messages }}\n{% if %}")
    keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)]).save(tmp_path / "dense.keras")
    with bound("127.0.0.1", 0) as taken:
        taken.listen()
        port = taken.getsockname()[1]
        words = ["serve", "--port", "0"]
        words += [word.format(tmp=tmp_path, taken=port) for word in arguments]
        result = CliRunner().invoke(main, words)
    assert result.exit_code == 2, result.output
    assert text in result.output and "Traceback" not in result.output
