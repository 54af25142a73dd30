"""Makes one text of the messages of a chat, by a template that the user gives."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import datetime
from typing import Any, NoReturn

from jinja2 import TemplateError, TemplateSyntaxError
from jinja2.sandbox import ImmutableSandboxedEnvironment

from hyparflow.serving.http.errors import ApiError
from hyparflow.serving.http.messages import ChatMessage

__all__ = ["ChatTemplate"]


class ChatTemplate:
    """A template of Jinja, as Hugging Face's models bring them.

    It is given `messages`, each with `role` and `content`, `add_generation_prompt`, `bos_token`,
    `eos_token`, `raise_exception`, `strftime_now` and a `tojson` that escapes nothing.

    Args:
        source: the template.

    Raises:
        ValueError: if it is no template.
    """

    def __init__(self, source: str) -> None:
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
        )
        environment.filters["tojson"] = _json
        environment.globals["raise_exception"] = _raise
        environment.globals["strftime_now"] = lambda words: datetime.now().strftime(words)
        try:
            self._template = environment.from_string(source)
        except TemplateSyntaxError as error:
            raise ValueError(
                f"A chat template must be one of Jinja. Received: a template whose line "
                f"{error.lineno} is none ({error.message})."
            ) from error

    def text(self, messages: Sequence[ChatMessage], model: Any) -> str:
        """The prompt for the next message.

        Args:
            messages: those that there are.
            model: a `keras_hub.models.CausalLM` with a preprocessor.

        Raises:
            ApiError: if the template refuses the messages.
        """
        end = getattr(model.preprocessor.tokenizer, "end_token", None)
        # The preprocessor begins each prompt with the start token: a second one would be wrong.
        tokens = {"bos_token": "", "eos_token": end or ""}
        given = [{"role": message.role, "content": message.text} for message in messages]
        try:
            return self._template.render(messages=given, add_generation_prompt=True, **tokens)
        except (TemplateError, TypeError, ValueError, ArithmeticError, LookupError) as error:
            raise ApiError(
                400,
                f"The chat template of this server does not take these messages: {error}.",
                param="messages",
                code="invalid_value",
            ) from error


def _json(value: Any, indent: int | None = None) -> str:
    """As it is, where Jinja's own writes for pages of HTML."""
    return json.dumps(value, ensure_ascii=False, indent=indent)


def _raise(text: str) -> NoReturn:
    raise TemplateError(text)
