"""Between HTTP and the server: who may wait, and what is asked of samplers."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

from hyparflow.comm.log import STATUS
from hyparflow.serving.decoding.samplers import sampling_of
from hyparflow.serving.http.errors import ApiError
from hyparflow.serving.http.generation import Generation
from hyparflow.serving.http.messages import GenerationBody
from hyparflow.serving.http.metrics import HttpMetrics
from hyparflow.serving.http.token_texts import TokenTexts
from hyparflow.serving.requests.served_request import ServedRequest
from hyparflow.serving.requests.text import tokens_of
from hyparflow.serving.scheduling.sampling import GREEDY, Sampling
from hyparflow.serving.server import Server

__all__ = ["Service", "sampling_for"]

_COLDEST = 1e-5  # divided by less, logits are infinite
_LETTERS = 16  # of a token, more than most have
_CUT = 64  # tokens, more than a word has that is cut in its midst
_RETRY = {"Retry-After": "1"}  # seconds


class Service:
    """Has a server make completions for many clients.

    Attributes:
        server: makes them.
        name: of the model.
        metrics: what is counted.
        texts: of tokens.

    Args:
        server: makes completions.
        name: of the model.
        max_waiting: the most completions that wait for a row.
    """

    def __init__(self, server: Server, name: str, max_waiting: int) -> None:
        self.server, self.name = server, name
        self.metrics, self.texts = HttpMetrics(server), TokenTexts(server.model)
        replicas = len(server.stats().counts)
        self._most = replicas * server.limits.max_batch + max_waiting
        self._vocabulary = int(server.model.backbone.vocabulary_size)
        self._open: set[Generation] = set()
        self._count = 0  # completions that are open, or are being submitted
        self._is_closing = self._is_stopped = self._has_told = False
        # Making tokens of a long text takes a while, in which the event loop must go on; tokenizers
        # are no faster in several threads.
        self._submitting = ThreadPoolExecutor(1, "hyparflow-submitting")

    # --- requests; in the event loop ---

    def require_model(self, name: str | None) -> None:
        """Check that a request is for the model that there is."""
        if name not in (None, self.name):
            raise ApiError(
                404,
                f"There is no such model. Received: {str(name)[:80]!r}. This server has "
                f"{self.name!r}.",
                param="model",
                code="model_not_found",
            )

    async def begin(
        self,
        prompts: Sequence[str] | Sequence[Sequence[int]],
        body: GenerationBody,
        max_tokens: int | None,
        num_logprobs: int | None,
    ) -> Generation:
        """Submit all completions of a request.

        Args:
            prompts: texts, or tokens.
            body: what each is asked.
            max_tokens: of each completion; None for as many as there is room for.
            num_logprobs: see `Server.submit`.

        Raises:
            ApiError: if they cannot be made, or not now.
        """
        self._require_tokens(prompts)
        copies = body.n or 1
        count = len(prompts) * copies
        self._admit(count)
        shared: dict[str, Any] = {
            "max_new_tokens": max_tokens,
            "sampler": sampling_for(body.temperature, body.top_p),
            "stop": body.stop or (),
            "num_logprobs": num_logprobs,
        }
        seeds = [None if body.seed is None else body.seed + place for place in range(count)]
        try:
            served = await asyncio.get_running_loop().run_in_executor(
                self._submitting, self._submit, prompts, seeds, shared
            )
        except BaseException:
            self._count -= count
            raise
        generation = Generation(served, copies, self._close)
        self._open.add(generation)
        if self._is_stopped:
            generation.cancel()
        return generation

    def _require_tokens(self, prompts: Sequence[str] | Sequence[Sequence[int]]) -> None:
        for prompt in prompts:
            if not isinstance(prompt, str) and max(prompt) >= self._vocabulary:
                raise ApiError(
                    400,
                    f"Tokens must be from 0 to {self._vocabulary - 1}. Received: {max(prompt)}.",
                    param="prompt",
                    code="invalid_value",
                )

    def _admit(self, count: int) -> None:
        if self._is_closing:
            raise ApiError(
                503, "The server is going: it takes no more requests.", code="server_is_going"
            )
        if count > self._most:
            raise ApiError(
                400,
                f"A request may ask for {self._most} completions. Received: {count}. Ask for "
                "fewer.",
                param="n",
                code="invalid_value",
            )
        if self._count + count > self._most:
            raise ApiError(
                429,
                f"There may be {self._most} completions at the same time. Received: {count} more "
                f"than the {self._count} that there are. Try again later.",
                code="rate_limit_exceeded",
                headers=_RETRY,
            )
        self._count += count

    def _submit(
        self,
        prompts: Sequence[str] | Sequence[Sequence[int]],
        seeds: Sequence[int | None],
        shared: dict[str, Any],
    ) -> list[ServedRequest]:
        """In a thread of its own: as many completions of each prompt as there are seeds for."""
        served: list[ServedRequest] = []
        copies = len(seeds) // len(prompts)
        try:
            for prompt in prompts:
                self._require_short(prompt)
            for place, seed in enumerate(seeds):
                # Further completions of a prompt have its tokens: texts take time.
                prompt = served[-1].prompt if place % copies else prompts[place // copies]
                served.append(self.server.submit(prompt, seed=seed, **shared))
        except ValueError as error:
            _cancel_all(served)
            text = str(error).replace("max_new_tokens", "max_tokens")  # as it is named here
            raise ApiError(400, text, code="invalid_value") from error
        except RuntimeError as error:
            _cancel_all(served)
            raise ApiError(503, "The engine has failed.", code="engine_failed") from error
        return served

    def _require_short(self, prompt: str | Sequence[int]) -> None:
        """Refuse a text that is far too long before others have waited for all its tokens."""
        most, size = self.server.limits.max_length, _LETTERS * self.server.limits.max_length
        while isinstance(prompt, str) and size < len(prompt):
            if len(tokens_of(self.server.model, prompt[:size], most + _CUT)) == most + _CUT:
                raise ApiError(
                    400,
                    f"A request may have {most} tokens, those of its prompt and those that come. "
                    f"Received: a prompt of {len(prompt)} letters, the first {size} of which are "
                    "more tokens. Shorten it.",
                    param="prompt",
                    code="invalid_value",
                )
            size *= 4

    def _close(self, generation: Generation) -> None:
        self._open.discard(generation)
        self._count -= len(generation.served)
        for served in generation.served:
            self.metrics.note(served)
        if self.server.error is not None and not self._has_told:
            self._has_told = True
            STATUS.error("the engine has failed", exc_info=self.server.error)

    # --- the end; any thread ---

    @property
    def is_well(self) -> bool:
        """Whether it takes requests."""
        return self.server.error is None and not self._is_closing

    @property
    def is_idle(self) -> bool:
        """Whether no completion is asked for."""
        return self._count == 0

    def close(self) -> None:
        """Take no more requests."""
        self._is_closing = True

    def cancel_all(self) -> None:
        """End all that there are."""
        self._is_closing = self._is_stopped = True
        for generation in self._open.copy():
            generation.cancel()


def _cancel_all(served: Sequence[ServedRequest]) -> None:
    for each in served:
        each.cancel()


def sampling_for(temperature: float | None, top_p: float | None) -> Sampling:
    """How the tokens of a request are chosen.

    Args:
        temperature: 0 for the likeliest token; 1 if it is None, as OpenAI's default.
        top_p: the probability of the tokens to choose from; all if it is None.
    """
    temperature = 1.0 if temperature is None else temperature
    if temperature < _COLDEST or top_p == 0:
        return GREEDY
    if top_p is not None and top_p < 1:
        return replace(sampling_of("top_p"), temperature=temperature, p=top_p)
    return replace(sampling_of("random"), temperature=temperature)
