"""`hyparflow.serve` in one process: requests from any thread, pieces, stops, ends."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
from byte_text import byte_model, new_byte_model

import hyparflow as hf
from hyparflow.serving.requests.stop_strings import StopStrings
from hyparflow.serving.scheduling.request import EndReason
from hyparflow.serving.server import Server


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with hf.serve(byte_model(), max_batch=4, window=4, warm_up=False) as found:
        yield found


def right(text: str, count: int) -> str:
    """What KerasHub gives for one prompt."""
    length = len(text.encode()) + 1 + count
    made: str = byte_model().generate(text, max_length=length, strip_prompt=True)
    return made


def test_requests_of_many_threads(server: Server) -> None:
    texts = [f"prompt {number}" for number in range(12)]
    found: dict[str, str] = {}

    def ask(text: str) -> None:
        found[text] = server.submit(text, max_new_tokens=21).text(timeout=60)

    threads = [threading.Thread(target=ask, args=(text,)) for text in texts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {text: right(text, 21) for text in texts}


def test_pieces(server: Server) -> None:
    """Whole characters, in order; the same by iterating and in an event loop."""
    whole = server.submit("wörld", max_new_tokens=30).text()
    request = server.submit("wörld", max_new_tokens=30)
    pieces = list(request.pieces())
    assert "".join(piece.text for piece in pieces) == whole
    assert [token for piece in pieces for token in piece.tokens] == request.tokens()
    assert len(pieces) >= 30 // 4
    assert all(len(piece.tokens) <= 4 for piece in pieces)
    assert "".join(server.stream("wörld", max_new_tokens=30)) == whole

    async def several() -> list[str]:
        async def one() -> str:
            request = server.stream("wörld", max_new_tokens=30)
            return "".join([piece async for piece in request])

        return await asyncio.gather(*(one() for _ in range(9)))

    assert asyncio.run(several()) == [whole] * 9


def test_stop_strings(server: Server) -> None:
    whole = server.submit("abc", max_new_tokens=60).text()
    stop = whole[11:13]
    request = server.submit("abc", max_new_tokens=60, stop=[stop, "never there"])
    assert request.text() == whole[: whole.index(stop)]
    assert request.end_reason is EndReason.STOP


def test_requests_that_end_early(server: Server) -> None:
    cancelled = server.submit("abc", max_new_tokens=100)
    cancelled.cancel()
    assert len(cancelled.tokens()) < 100
    assert cancelled.end_reason is EndReason.CANCELLED
    late = server.submit("abc", max_new_tokens=100, timeout=0.0)
    assert len(late.tokens()) < 100
    assert late.end_reason is EndReason.DEADLINE
    with pytest.raises(TimeoutError, match="has not ended in 0 seconds"):
        server.submit("abc", max_new_tokens=100).text(timeout=0)


def test_logprobs(server: Server) -> None:
    request = server.submit("abc", max_new_tokens=5, num_logprobs=3)
    likely = [one for piece in request.pieces() for one in piece.logprobs]
    assert len(likely) == 5
    for token, one in zip(request.tokens(), likely, strict=True):
        assert one.likeliest[0] == (token, one.chosen)  # the sampler is greedy
        assert len(one.likeliest) == 3
        assert 0 > one.likeliest[0][1] >= one.likeliest[1][1] >= one.likeliest[2][1]
    plain = server.submit("abc", max_new_tokens=5)
    assert not any(piece.logprobs for piece in plain.pieces())


def test_seeds(server: Server) -> None:
    given: dict[str, Any] = {"max_new_tokens": 20, "sampler": "random"}
    texts = [server.submit("abc", seed=seed, **given).text() for seed in (1, 2, 1)]
    assert texts[0] == texts[2] != texts[1]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"max_new_tokens": 500}, "may have 128 tokens.*max_new_tokens=500"),
        ({"max_new_tokens": -1}, "max_new_tokens=-1"),
        ({"sampler": "contrastive"}, "ContrastiveSampler"),
        ({"prompt": []}, "a prompt of a token or more"),
        ({"prompt": "x" * 200}, "may have 128 tokens.*Received: 129 tokens"),
        ({"max_new_tokens": 1.5}, "`max_new_tokens` must be an integer.*max_new_tokens=1.5"),
        ({"max_new_tokens": True}, "`max_new_tokens` must be an integer"),
        ({"seed": 1.5}, "`seed` must be an integer.*seed=1.5"),
        ({"seed": "x"}, "`seed` must be an integer"),
        ({"stop": [b"x"]}, "`stop` must be a string or several"),
        ({"stop": 5}, "`stop` must be a string or several.*stop=5"),
        ({"stop": ""}, "`stop` must be a string or several"),
        ({"num_logprobs": "a"}, "`num_logprobs` must be an integer"),
        ({"num_logprobs": -1}, "`num_logprobs` must be a positive integer"),
        ({"prompt": 5}, "`prompt` must be integers.*prompt=5"),
        ({"prompt": ["a", "b"]}, "`prompt` must be an integer.*'a'"),
        ({"prompt": b"ab"}, "`prompt` must be integers"),
        ({"prompt": [999]}, "`prompt` must be tokens from 0 to 256. Received: 999"),
        ({"prompt": [-1]}, "`prompt` must be tokens from 0 to 256. Received: -1"),
        ({"prompt": [1.5]}, "`prompt` must be an integer"),
        ({"timeout": float("nan")}, "`timeout` must be a number of seconds"),
        ({"timeout": "x"}, "`timeout` must be a number of seconds"),
        ({"stop_token_ids": [999]}, "`stop_token_ids` must be tokens from 0 to 256"),
        ({"stop_token_ids": ["a"]}, "`stop_token_ids` must be an integer"),
        ({"sampler": "nosuch"}, "`sampler` must be the name of one.*sampler='nosuch'"),
        ({"sampler": 5}, "`sampler` must be the name of one.*sampler=5"),
    ],
)
def test_what_is_refused(server: Server, arguments: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        server.submit(**{"prompt": "abc"} | arguments)
    assert server.submit("abc", max_new_tokens=1).tokens()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"window": 17}, "`window` must be at most 16.*window=17"),
        (
            {"max_cached_tokens": 100},
            "`max_cached_tokens` must be 128 or more, for a batch of 1",
        ),
        ({"max_cached_tokens": -1}, "`max_cached_tokens` must be a positive integer"),
        ({"max_length": "a"}, "`max_length` must be a positive integer"),
        ({"max_length": 129}, "128 positions that the model has learned"),
    ],
)
def test_servers_that_are_refused(arguments: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        hf.serve(byte_model(), warm_up=False, **arguments)


def test_leaving_the_block_serves_what_was_asked_for() -> None:
    with hf.serve(byte_model(), max_batch=2, warm_up=False) as server:
        requests = [server.submit("abc", max_new_tokens=40) for _ in range(3)]
    assert [len(request.tokens()) for request in requests] == [40] * 3
    assert server.stats().tokens == 120
    with pytest.raises(RuntimeError, match="the server is closed"):
        server.submit("abc")


def test_an_error_in_the_block_cancels() -> None:
    with (
        contextlib.suppress(KeyError),
        hf.serve(byte_model(), max_batch=1, warm_up=False) as server,
    ):
        request = server.submit("abc", max_new_tokens=100)
        raise KeyError
    assert request.end_reason is EndReason.CANCELLED


def test_a_server_that_fails_ends_all_requests(monkeypatch: pytest.MonkeyPatch) -> None:
    server = hf.serve(new_byte_model(), max_batch=1, warm_up=False)
    monkeypatch.setattr(server._replicas.runner, "run", lambda window: 1 / 0)
    requests = []
    with contextlib.suppress(RuntimeError):
        requests = [server.submit("abc") for _ in range(3)]
    for request in requests:
        with pytest.raises(RuntimeError, match="the server failed: division by zero"):
            request.text(timeout=30)
    with pytest.raises(RuntimeError, match="the server failed"):
        server.submit("abc")
    server.close()


def test_statistics(server: Server) -> None:
    before = server.stats()
    request = server.submit("abc", max_new_tokens=9)
    request.tokens()
    while (after := server.stats()).running:
        time.sleep(0.01)
    assert after.tokens - before.tokens == 9
    assert after.ended[EndReason.LENGTH] - before.ended[EndReason.LENGTH] == 1
    assert after.time_to_first_token.p99 >= after.time_to_first_token.p50 > 0
    assert after.counts[0].issued >= after.counts[0].useful
    assert request.times.first is not None


def test_stop_strings_in_pieces() -> None:
    """What may begin a stop string is held back until that is known."""
    for strings, pieces, given in (
        (["end"], ["a e", "n", "d b"], ["a ", "", ""]),
        (["end"], ["a e", "n", "ot"], ["a ", "", "enot"]),
        (["xx", "abc"], ["ab", "xab", "x", "xy"], ["", "abx", "", ""][:0] + ["", "abx", "ab"]),
        ([], ["a", "b"], ["a", "b"]),
    ):
        stops = StopStrings(strings)
        for piece, right_piece in zip(pieces, given, strict=False):
            assert stops.add(piece) == right_piece
    held = StopStrings(["abc"])
    assert held.add("xab") == "x"
    assert held.add("", is_last=True) == "ab"
