"""The logger "hyparflow", and the handler that shows its lines.

An application that has configured logging gets the lines like those of other libraries. For all
others a handler shows them without additions: lines about the training on standard output, beside
Keras's progress bar, and the rest on standard error.
"""

from __future__ import annotations

import inspect
import io
import logging
import os
import sys
from collections.abc import Mapping
from typing import Any

__all__ = ["MESSAGES", "STATUS", "configure", "level", "users_stack_level"]

STATUS = logging.getLogger("hyparflow")
MESSAGES = logging.getLogger("hyparflow.messages")  # those between ranks, one by one

_NOT_THE_USERS = ("hyparflow.", "keras.", "tensorflow.")
_VARIABLE = "HYPARFLOW_LOG"
_LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR")


def level(environ: Mapping[str, str] = os.environ) -> str | None:
    """The level that the environment asks for; None if it asks for nothing.

    Raises:
        ValueError: if there is no such level.
    """
    text = environ.get(_VARIABLE, "").strip()
    if text and text.upper() not in _LEVELS:
        raise ValueError(
            f"{_VARIABLE} takes {', '.join(_LEVELS)}. Received: {_VARIABLE}={text!r}. "
            "Unset it, or export HYPARFLOW_LOG=WARNING for fewer lines."
        )
    return text.upper() or None


def configure() -> None:
    """Have the logger's lines shown, at the level that the environment or the user chose.

    Raises:
        ValueError: if the environment asks for a level that there is not.
    """
    wanted = level()
    if wanted is not None:
        STATUS.setLevel(wanted)
    elif STATUS.level == logging.NOTSET:
        STATUS.setLevel(logging.INFO)
    if not any(isinstance(handler, _Terminal) for handler in STATUS.handlers):
        STATUS.addHandler(_Terminal())


class _Terminal(logging.Handler):
    """Shows records that no handler of the application shows."""

    def __init__(self) -> None:
        super().__init__()
        clock = "%(asctime)s.%(msecs)03d %(message)s"
        self._debug = logging.Formatter(clock, datefmt="%H:%M:%S")

    def emit(self, record: logging.LogRecord) -> None:
        if self._is_shown(record):
            return
        debug = record.levelno < logging.INFO
        # The streams of this moment: notebooks and tests put others in their place.
        stream = sys.stdout if record.levelno == logging.INFO else sys.stderr
        if stream is None:
            return
        try:
            # One write a line, so that lines of several ranks do not mix.
            stream.write((self._debug if debug else self).format(record) + "\n")
            stream.flush()
        except OSError:
            self.handleError(record)

    def _is_shown(self, record: logging.LogRecord) -> bool:
        """Whether a handler of the application shows the record."""
        logger: logging.Logger | None = logging.getLogger(record.name)
        while logger is not None:
            for handler in logger.handlers:
                if handler is not self and record.levelno >= handler.level and _shows(handler):
                    return True
            logger = logger.parent if logger.propagate else None
        return False


def _shows(handler: logging.Handler) -> bool:
    """Whether a handler writes records where someone may read them.

    Handlers that keep records in memory, as test frameworks do, or drop them do not count.
    """
    if isinstance(handler, logging.FileHandler):
        return handler.baseFilename != os.devnull
    if isinstance(handler, logging.StreamHandler):
        return not isinstance(handler.stream, io.StringIO)
    return not isinstance(handler, logging.NullHandler)


def users_stack_level() -> int:
    """How far up the stack the user's own call is, for a warning to name its line.

    Keras's loop may be between hyparflow and that call.
    """
    frame: Any = inspect.currentframe()
    level = 0
    while frame is not None and frame.f_globals.get("__name__", "").startswith(_NOT_THE_USERS):
        frame, level = frame.f_back, level + 1
    return level
