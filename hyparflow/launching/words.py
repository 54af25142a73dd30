"""Words of a command line on their way through a launcher, which may understand some itself.

Open MPI takes what follows ":" for another program. So each word is sent as "=" and the word, in
which what is not plain stands as %XX; many or long ones in a file.
`hyparflow.launching.rank_process` reads them.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import quote_from_bytes

__all__ = ["as_one", "sent"]

_PLAIN = "/:,=@+"  # what is sent as it is, beside letters and digits
# Characters in all: Open MPI puts them into one environment variable, of which Linux takes 131,071.
_MOST = 60_000


def sent(words: Sequence[str], file: Path) -> list[str]:
    """The words as they are sent: each one, or "@" and where they stand.

    Args:
        words: a program and its arguments.
        file: where they are written if there are too many.
    """
    texts = ["=" + quote_from_bytes(os.fsencode(word), _PLAIN) for word in words]
    if sum(map(len, texts)) <= _MOST:
        return texts
    file.write_text("\n".join(texts))
    return [f"@{file}"]


def as_one(words: Sequence[str]) -> list[str]:
    """A command that launchers take whole: by a shell if a word would be theirs."""
    if all(words) and ":" not in words:
        return list(words)
    return ["sh", "-c", f"exec {shlex.join(words)}"]
