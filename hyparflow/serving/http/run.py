"""Listens, until a signal says that it is enough."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from hyparflow.serving.http.app import HttpSettings, application
from hyparflow.serving.http.service import Service
from hyparflow.serving.server import Server

__all__ = ["HttpServer", "bound", "until_signal"]

_PATIENCE = 60.0  # seconds in which a client must ask, and read what waits for it
_WAIT = 0.05  # seconds between two looks
_LAST = 5.0  # seconds that answers have to go out after requests were cancelled
_BACKLOG = 2048  # connections that wait to be accepted


def bound(host: str, port: int) -> socket.socket:
    """A socket with an address, which does not listen yet.

    Args:
        host: a name or an address.
        port: 0 for one that is free.

    Raises:
        OSError: if there is no such address, or somebody else has it.
    """
    family, kind, protocol, _, address = socket.getaddrinfo(
        host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )[0]
    made = socket.socket(family, kind, protocol)
    try:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind(address)
    except OSError:
        made.close()
        raise
    return made


class HttpServer:
    """Answers requests in a thread of its own.

    Attributes:
        service: has completions made.
        host: where it listens, in numbers.
        address: where clients find it.

    Args:
        server: makes completions.
        settings: what is told to clients, and asked of them.
        listening: see `bound`; is closed in the end.
        patience: seconds in which a client must ask, and read what waits for it.
    """

    def __init__(
        self,
        server: Server,
        settings: HttpSettings,
        listening: socket.socket,
        patience: float = _PATIENCE,
    ) -> None:
        self.service = Service(server, settings.name, settings.max_waiting)
        self.host, port = listening.getsockname()[:2]
        shown = f"[{self.host}]" if ":" in self.host else self.host
        self.address = f"http://{shown}:{port}"
        config = uvicorn.Config(
            application(self.service, settings),
            http=_patient(patience),
            loop="asyncio",
            ws="none",
            lifespan="off",
            backlog=_BACKLOG,
            log_level="warning",
            access_log=False,
            server_header=False,
        )
        self._server = uvicorn.Server(config)
        # Not the main thread's: there uvicorn would handle signals, and end the process by them.
        self._thread = threading.Thread(
            target=self._server.run,
            kwargs={"sockets": [listening]},
            name="hyparflow-http",
            daemon=True,
        )

    @property
    def is_running(self) -> bool:
        """Whether it answers requests."""
        return self._thread.is_alive() and self._server.started

    def start(self) -> None:
        """Listen.

        Raises:
            OSError: if it could not begin to.
        """
        self._thread.start()
        while not self._server.started:
            if not self._thread.is_alive():
                raise OSError("the HTTP server has not started; its log says why")
            time.sleep(_WAIT)

    def stop(self, grace: float, is_enough: Callable[[], bool] = lambda: False) -> None:
        """Take no more requests, and end those that there are.

        Args:
            grace: seconds that they may go on.
            is_enough: whether nobody wants to wait any longer.
        """
        self.service.close()
        self._server.should_exit = True
        self._wait(grace, lambda: self.service.is_idle or is_enough())
        self.service.cancel_all()
        self._wait(_LAST, lambda: not self._thread.is_alive())
        self._server.force_exit = True
        self._thread.join(_LAST)

    @staticmethod
    def _wait(seconds: float, has_come: Callable[[], bool]) -> None:
        end = time.monotonic() + seconds
        while time.monotonic() < end and not has_come():
            time.sleep(_WAIT)


def until_signal(http: HttpServer, say: Callable[[HttpServer], None], grace: float) -> int:
    """Answer requests until SIGTERM or SIGINT comes; a second one ends them at once.

    Args:
        http: answers them.
        say: is called when it does.
        grace: seconds that requests may go on after the signal.

    Returns:
        The exit status: 0, or 1 if the engine or the HTTP server has failed.
    """
    with _signals() as came:
        http.start()
        say(http)
        while not came and http.is_running:
            time.sleep(_WAIT)
        was_running = http.is_running
        http.stop(grace, lambda: len(came) > 1)
    return int(http.service.server.error is not None or not was_running)


@contextlib.contextmanager
def _signals() -> Iterator[list[int]]:
    """The signals that came, while they do nothing else."""
    came: list[int] = []
    before = {
        number: signal.signal(number, lambda number, _: came.append(number))
        for number in (signal.SIGTERM, signal.SIGINT)
    }
    try:
        yield came
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _patient(patience: float) -> type[asyncio.Protocol]:
    """A protocol that gives up a client who does not ask, or not read, for so many seconds."""

    class Patient(H11Protocol):
        """Without a limit, such a client would hold its connection or its answer for ever."""

        _giving_up: asyncio.TimerHandle | None = None

        def connection_made(self, transport: Any) -> None:
            """A client is there."""
            super().connection_made(transport)
            self._wait()

        def data_received(self, data: bytes) -> None:
            """Something came; whether it is a whole head of a request shows the cycle."""
            super().data_received(data)
            if self.cycle is not None and not self.flow.write_paused:
                self._stop_waiting()

        def pause_writing(self) -> None:
            """More waits to be read than may wait."""
            super().pause_writing()
            self._wait()

        def resume_writing(self) -> None:
            """Most of it was read."""
            super().resume_writing()
            self._stop_waiting()

        def connection_lost(self, exc: Any) -> None:
            """The client has gone, or was given up."""
            self._stop_waiting()
            super().connection_lost(exc)

        def _wait(self) -> None:
            self._stop_waiting()
            self._giving_up = self.loop.call_later(patience, self.transport.abort)

        def _stop_waiting(self) -> None:
            if self._giving_up is not None:
                self._giving_up.cancel()

    return Patient
