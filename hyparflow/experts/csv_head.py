"""Tables as CSV with a first line that says what they are, which readers of CSV can skip.

The line begins with "#", as in ``# hyparflow routing trace, version 1: {"num_experts": 64}``.
"""

from __future__ import annotations

import csv
import json
import os
import re
from typing import Any

from hyparflow.formats.text import shortened

__all__ = ["csv_head", "kind_of_csv", "read_csv"]

_LINE = re.compile(r"# hyparflow (?P<kind>[a-z ]+), version (?P<version>\d{1,9}): (?P<head>\{.*\})")


def csv_head(kind: str, version: int, **values: Any) -> str:
    """The first line of a table of this kind."""
    return f"# hyparflow {kind}, version {version}: {json.dumps(values)}\n"


def kind_of_csv(path: str | os.PathLike[str]) -> str:
    """The kind of table that a file says it is; an empty string if it says none."""
    with open(path, encoding="utf-8", errors="replace") as file:
        match = _LINE.fullmatch(file.readline(1 << 20).rstrip("\n"))
    return match["kind"] if match else ""


def read_csv(
    path: str | os.PathLike[str], kind: str, version: int
) -> tuple[dict[str, Any], list[str], list[list[str]]]:
    """The values of the first line, the titles of the columns, and the rows.

    Raises:
        ValueError: if the file is of another kind or version, or a row has another length.
    """
    with open(path, encoding="utf-8", newline="") as file:
        line = file.readline().rstrip("\r\n")
        match = _LINE.fullmatch(line)
        if match is None or match["kind"] != kind:
            example = csv_head(kind, version, num_experts=64).strip()
            raise ValueError(f"its first line must be as {example}, and is {shortened(line)}")
        if int(match["version"]) != version:
            raise ValueError(
                f"it has version {match['version']}, and this hyparflow reads {version}"
            )
        head = json.loads(match["head"])
        titles, *rows = list(csv.reader(file, strict=True)) or [[]]
    for number, row in enumerate(rows, start=3):
        if len(row) != len(titles):
            raise ValueError(
                f"each line must have {len(titles)} values, and line {number} has {len(row)}"
            )
    return head, titles, rows
