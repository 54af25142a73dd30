"""Encodes the words of a command line, because launchers interpret some words themselves.

Open MPI starts another program after a word ":". So each word is sent as "=" and the word, with
special characters as %XX; many or long words are sent in a file.
`hyparflow.launching.rank_process` reads them.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import quote_from_bytes

__all__ = ["as_one", "sent"]

_PLAIN = "/:,=@+"  # characters that are not encoded, besides letters and digits
# Characters of all words: Open MPI puts them into one environment variable, at most 131,071.
_MOST = 60_000


def sent(words: Sequence[str], file: Path) -> list[str]:
    """The encoded words, or "@" and the path of the file that holds them.

    Args:
        words: a program and its arguments.
        file: the file that is written if the words are too long.
    """
    texts = ["=" + quote_from_bytes(os.fsencode(word), _PLAIN) for word in words]
    if sum(map(len, texts)) <= _MOST:
        return texts
    file.write_text("\n".join(texts))
    return [f"@{file}"]


def as_one(words: Sequence[str]) -> list[str]:
    """A command that launchers do not interpret: run by a shell if one of its words is special."""
    if all(words) and ":" not in words:
        return list(words)
    return ["sh", "-c", f"exec {shlex.join(words)}"]
