"""A tiny language model over letters, and a server of it on a free port, for tests of HTTP."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from socket import SO_SNDBUF, SOL_SOCKET
from typing import Any

import keras
import keras_hub
import openai
from byte_text import END, byte_preprocessor

from hyparflow.serving.http.app import HttpSettings
from hyparflow.serving.http.chat_template import ChatTemplate
from hyparflow.serving.http.run import HttpServer, bound
from hyparflow.serving.prepare import prepared_replicas
from hyparflow.serving.ranks.replicas import OneReplica
from hyparflow.serving.ranks.serving_grid import serving_grid
from hyparflow.serving.scheduling.limits import Limits
from hyparflow.serving.serve import serve
from hyparflow.serving.server import Server


def letters_model(num_positions: int = 256, seed: int = 3) -> Any:
    """GPT-2 over bytes, with nothing to download; it seldom ends its texts."""
    keras.utils.set_random_seed(seed)
    preprocessor = byte_preprocessor(num_positions)
    backbone = keras_hub.models.GPT2Backbone(
        vocabulary_size=END + 1,
        num_layers=2,
        num_heads=2,
        hidden_dim=32,
        intermediate_dim=64,
        max_sequence_length=num_positions,
    )
    model = keras_hub.models.GPT2CausalLM(backbone=backbone, preprocessor=preprocessor)
    model.compile(sampler="greedy")
    return model


@contextlib.contextmanager
def listening(
    model: Any, *, max_batch: int = 8, max_length: int = 256, **settings: Any
) -> Iterator[HttpServer]:
    """A server of completions, which ends with its block."""
    settings = {"name": "letters", **settings}
    if "template" in settings:
        settings["template"] = ChatTemplate(settings["template"])
    with (
        serve(model, max_batch=max_batch, max_length=max_length, warm_up=False) as server,
        answering(server, settings=HttpSettings(**settings)) as http,
    ):
        yield http


@contextlib.contextmanager
def answering(
    server: Server,
    patience: float = 60.0,
    settings: HttpSettings | None = None,
    keeps: int | None = None,
) -> Iterator[HttpServer]:
    """HTTP in front of a server; the system keeps so many bytes for each client."""
    with contextlib.closing(bound("127.0.0.1", 0)) as socket:
        if keeps is not None:
            socket.setsockopt(SOL_SOCKET, SO_SNDBUF, keeps)
        http = HttpServer(server, settings or HttpSettings("letters"), socket, patience)
        http.start()
        try:
            yield http
        finally:
            http.stop(grace=0)
            assert not http.is_running


class SlowRunner:
    """Computes as another does, with a rest before each window, and fails in one of them."""

    def __init__(self, runner: Any, rest: float, fails_in: int | None = None) -> None:
        self._runner, self._rest, self._left = runner, rest, fails_in

    def __getattr__(self, name: str) -> Any:
        return getattr(self._runner, name)

    def run(self, window: Any) -> Any:
        """See `Runner.run`."""
        time.sleep(self._rest)
        if self._left is not None:
            self._left -= 1
            if self._left < 0:
                raise OSError("the accelerator is gone")
        return self._runner.run(window)


@contextlib.contextmanager
def slowly(model: Any, rest: float = 0.05, max_batch: int = 4, **slow: Any) -> Iterator[Server]:
    """A server whose windows take a while."""
    limits = Limits(max_batch=max_batch, max_length=256, window=4, fewest=4, shortest=256)
    replicas = prepared_replicas(model, serving_grid(1, None, None, None), None)
    assert isinstance(replicas, OneReplica)
    server = Server(model, OneReplica(SlowRunner(replicas.runner, rest, **slow)), limits)
    try:
        yield server
    finally:
        server.close()


def until(has_come: Any, seconds: float = 20.0) -> None:
    """Wait for something."""
    end = time.monotonic() + seconds
    while not has_come():
        assert time.monotonic() < end, "it did not come"
        time.sleep(0.02)


def client_of(http: HttpServer, key: str = "none") -> openai.OpenAI:
    """OpenAI's own client, which asks once."""
    return openai.OpenAI(base_url=f"{http.address}/v1", api_key=key, max_retries=0, timeout=60)
