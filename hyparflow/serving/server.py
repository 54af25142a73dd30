"""A server within Python: a thread runs windows as long as there are requests."""

from __future__ import annotations

import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from hyparflow.serving.decoding.samplers import sampling_of
from hyparflow.serving.engine import ServingEngine
from hyparflow.serving.ranks.replicas import Replicas
from hyparflow.serving.requests.given import (
    integer_of,
    logprobs_of,
    seconds_of,
    stop_strings_of,
    tokens_given,
)
from hyparflow.serving.requests.open_request import OpenRequest
from hyparflow.serving.requests.served_request import ServedPiece, ServedRequest
from hyparflow.serving.requests.statistics import Latencies, ServerStatistics
from hyparflow.serving.requests.stop_strings import StopStrings
from hyparflow.serving.requests.text import StreamedText, stop_tokens_of, tokens_of
from hyparflow.serving.scheduling.limits import Limits
from hyparflow.serving.scheduling.request import EndReason, Request, RequestProgress

__all__ = ["Server"]

_PATIENCE = 30.0  # seconds that closing waits for a window
_HEARTBEAT = 5.0  # seconds after which ranks that wait hear that nothing is to be done


class Server:
    """Takes requests from any thread, at any time; they compute together.

    Attributes:
        model: what is served.
        limits: what each replica may take.

    Args:
        model: a `keras_hub.models.CausalLM`.
        replicas: compute windows.
        limits: what each replica may take.
    """

    def __init__(self, model: Any, replicas: Replicas, limits: Limits) -> None:
        self.model, self.limits, self._replicas = model, limits, replicas
        self._engine = ServingEngine(replicas, limits)
        self._changed = threading.Condition()
        self._commands: list[Callable[[], None]] = []
        self._open: dict[int, OpenRequest] = {}
        self._is_closing = self._is_stopped = False
        self._error: BaseException | None = None
        self._number, self._tokens = 0, 0
        self._latencies, self._ended = Latencies(), Counter[EndReason]()
        self._thread = threading.Thread(target=self._serve, name="hyparflow-serving", daemon=True)
        self._thread.start()

    # --- what callers use ---

    @property
    def error(self) -> BaseException | None:
        """Why it has failed; None as long as it has not."""
        return self._error

    def submit(
        self,
        prompt: str | Sequence[int],
        *,
        max_new_tokens: int | None = None,
        sampler: Any = None,
        seed: int | None = None,
        stop: str | Sequence[str] = (),
        stop_token_ids: Any = "auto",
        num_logprobs: int | None = None,
        timeout: float | None = None,
    ) -> ServedRequest:
        """Ask for tokens that follow a prompt.

        Args:
            prompt: String, or its tokens.
            max_new_tokens: Integer or `None`. How many tokens may follow; as many as there is room
                for if it is `None`.
            sampler: A name, a `keras_hub.samplers.Sampler`, or `None` for the one that the model is
                compiled with.
            seed: Integer or `None`. The n-th token is drawn with the seed `[seed, n]`, so that it
                does not depend on other requests.
            stop: Strings, of which the first to come ends the text and is left out.
            stop_token_ids: As in KerasHub's `generate`: "auto", `None` or a list of tokens. For a
                model without a preprocessor "auto" is `None`.
            num_logprobs: Integer or `None`. Of how many of the likeliest tokens to give the
                logarithms of probabilities, beside that of each token itself.
            timeout: Seconds, or `None`. After them the request ends, with what there is.

        Returns:
            A `ServedRequest`, at once.

        Raises:
            ValueError: If the request could never run, or an argument is not valid.
            RuntimeError: If the server is closed, or has failed.
        """
        seed = random.randint(1, 10**9) if seed is None else integer_of("seed", seed)
        sampler = self.model.sampler if sampler is None else sampler
        tokens = self._tokens_of(prompt)
        if max_new_tokens is None:
            max_new_tokens = max(1, self.limits.max_length - len(tokens))
        if self.model.preprocessor is None and stop_token_ids == "auto":
            stop_token_ids = None
        request = Request(
            number=0,
            prompt=tokens,
            max_new_tokens=integer_of("max_new_tokens", max_new_tokens),
            stop_tokens=stop_tokens_of(self.model, stop_token_ids),
            sampling=sampling_of(sampler, seed, logprobs_of(num_logprobs)),
        )
        self.limits.require_possible(request)
        return self._admit(request, stop_strings_of(stop), seconds_of("timeout", timeout))

    def stream(self, prompt: str | Sequence[int], **kwargs: Any) -> ServedRequest:
        """As `submit`. Iterate over it, by ``for`` or ``async for``, for text as it comes."""
        return self.submit(prompt, **kwargs)

    def stats(self) -> ServerStatistics:
        """What it has done so far."""
        with self._changed:
            counts = [replace(x.counts) for x in self._engine.schedulers]
            # When it has failed none goes on, but schedulers still have their rows.
            running = min(len(self._open), sum(x.running for x in self._engine.schedulers))
            return ServerStatistics(
                running=running,
                waiting=len(self._open) - running,
                ended=dict(self._ended),
                tokens=self._tokens,
                counts=tuple(counts),
                time_to_first_token=self._latencies.to_first_token,
                time_per_token=self._latencies.per_token,
                bytes=self._replicas.bytes(),
            )

    def close(self, wait: bool = False) -> None:
        """Take no more requests.

        Args:
            wait: whether to serve those that there are to their ends; otherwise they are cancelled.
        """
        with self._changed:
            self._is_closing = True
            if not wait:
                self._is_stopped = True
            self._changed.notify_all()
        self._thread.join(None if wait else _PATIENCE)

    def __enter__(self) -> Server:
        return self

    def __exit__(self, kind: Any, *error: object) -> None:
        self.close(wait=kind is None)

    # --- requests ---

    def _tokens_of(self, prompt: str | Sequence[int]) -> tuple[int, ...]:
        """Of a prompt; more than there is room for is refused later, and not cut off."""
        if isinstance(prompt, str):
            return tuple(tokens_of(self.model, prompt, self.limits.max_length + 1))
        return tokens_given("prompt", prompt, int(self.model.backbone.vocabulary_size))

    def _admit(self, request: Request, stops: list[str], timeout: float | None) -> ServedRequest:
        has_text = self.model.preprocessor is not None
        if stops and not has_text:
            raise ValueError(
                "`stop` needs a model with a preprocessor, which makes text of tokens. Received: "
                f"stop={stops}, and a model without one. Pass stop_token_ids."
            )
        with self._changed:
            self._require_open()
            number, self._number = self._number, self._number + 1
            served = ServedRequest(
                number, request.prompt, lambda: self._command(self._cancel, number), has_text
            )
            self._open[number] = OpenRequest(
                served,
                StreamedText(self.model) if has_text else None,
                StopStrings(stops),
                None if timeout is None else time.monotonic() + timeout,
            )
            numbered = replace(request, number=number)
            self._commands.append(lambda: self._engine.submit(numbered))
            self._changed.notify_all()
        return served

    def _require_open(self) -> None:
        if self._error is not None:
            raise RuntimeError(f"the server failed: {self._error}") from self._error
        if self._is_closing:
            raise RuntimeError("the server is closed: it takes no more requests")

    def _command(self, function: Callable[..., None], *args: Any) -> None:
        """Have the thread call a function soon."""
        with self._changed:
            self._commands.append(lambda: function(*args))
            self._changed.notify_all()

    def _cancel(self, number: int, reason: EndReason = EndReason.CANCELLED) -> None:
        if number in self._open:
            self._engine.cancel(number, reason)

    # --- the thread ---

    def _serve(self) -> None:
        try:
            while self._take_commands():
                self._expire()
                for progress in self._engine.advance(self._is_wanted):
                    self._deliver(progress)
        except BaseException as error:
            self._fail(error)
        finally:
            self._replicas.close()

    def _take_commands(self) -> bool:
        """Wait until there is something to do; whether to go on."""
        with self._changed:
            while not (self._commands or self._is_closing or not self._engine.is_idle):
                if not self._changed.wait(_HEARTBEAT):
                    self._replicas.idle()
            commands, self._commands = self._commands, []
            if self._is_stopped:
                self._end_all()
                return False
            for command in commands:
                command()
            return not (self._is_closing and self._engine.is_idle)

    def _expire(self) -> None:
        now = time.monotonic()
        for number, entry in list(self._open.items()):
            if entry.deadline is not None and entry.deadline <= now:
                self._cancel(number, EndReason.DEADLINE)

    def _is_wanted(self) -> bool:
        """Whether a replica may have something new to do, or all shall end."""
        return bool(self._commands) or self._is_stopped

    def _deliver(self, progress: RequestProgress) -> None:
        entry = self._open.get(progress.number)
        if entry is None:
            return
        end = entry.take(progress)
        if end is not progress.end:
            self._engine.cancel(progress.number)
        self._note(progress, entry, end)

    def _note(self, progress: RequestProgress, entry: OpenRequest, end: EndReason | None) -> None:
        with self._changed:
            self._tokens += len(progress.tokens)
            if end is not None:
                del self._open[progress.number]
                self._ended[end] += 1
                self._latencies.add(entry.served.times, entry.count)

    def _end_all(self) -> None:
        for entry in self._open.values():
            entry.served.take(ServedPiece("", ()), EndReason.CANCELLED)
        self._ended[EndReason.CANCELLED] += len(self._open)
        self._open.clear()

    def _fail(self, error: BaseException) -> None:
        with self._changed:
            self._error = error
            for entry in self._open.values():
                entry.served.fail(error)
            self._ended[EndReason.FAILED] += len(self._open)
            self._open.clear()
