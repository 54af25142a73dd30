"""Files of placements: .json with all that is known, .csv as a table for people."""

from __future__ import annotations

import csv
import functools
import io
import os
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from hyparflow.experts.csv_head import csv_head, read_csv
from hyparflow.formats.plain_files import require_plain
from hyparflow.formats.records import made, read, schema_of
from hyparflow.formats.text import path_text
from hyparflow.formats.writing import write_text

if TYPE_CHECKING:
    from hyparflow.experts.placement import ExpertPlacement

__all__ = ["PLACEMENT_KIND", "read_placement", "write_placement"]

PLACEMENT_KIND = "expert placement"
_VERSION = 1  # of both formats; grows with each change that older readers would misread
_RULE = "A placement of experts must be a file that ExpertPlacement.save wrote."
_TITLES = ["layer", "expert", "rank"]


class _Versioned(msgspec.Struct):
    """What files of all versions have."""

    version: int


def write_placement(path: str | os.PathLike[str], placement: ExpertPlacement) -> None:
    """Write a placement to a file, complete or not at all: CSV if its name ends so, else JSON."""
    if _is_csv(path):
        write_text(path, _as_csv(placement))
        return
    content = {"version": _VERSION, "placement": asdict(placement)}
    write_text(path, msgspec.json.encode(content).decode() + "\n")


def read_placement(path: str | os.PathLike[str], kind: type[ExpertPlacement]) -> ExpertPlacement:
    """Read a file that `write_placement` wrote.

    Args:
        path: the file.
        kind: the class of placements.

    Raises:
        ValueError: if it cannot be read, or holds something else; it names the file and the field.
    """
    if _is_csv(path):
        return _read_csv(path, kind)
    schema = msgspec.defstruct(
        "PlacementFile",
        [("version", int), ("placement", schema_of(kind))],
        forbid_unknown_fields=True,
    )
    try:
        return read(path, schema, _RULE, functools.partial(_finished, kind))
    except ValueError:
        read(path, _Versioned, _RULE, _require_version)  # a later one has fields unknown here
        raise


def _is_csv(path: str | os.PathLike[str]) -> bool:
    return Path(path_text(path)).suffix.lower() == ".csv"


def _finished(kind: type[ExpertPlacement], found: Any) -> ExpertPlacement:
    _require_version(found)
    return made(found.placement, kind)


def _require_version(found: _Versioned) -> None:
    if found.version != _VERSION:
        raise ValueError(f"it has version {found.version}, and this hyparflow reads {_VERSION}")


def _as_csv(placement: ExpertPlacement) -> str:
    text = io.StringIO()
    text.write(
        csv_head(
            PLACEMENT_KIND,
            _VERSION,
            num_ranks=placement.num_ranks,
            nodes=placement.nodes,
            model=placement.model,
        )
    )
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(_TITLES)
    rows.writerows(
        [name, expert, rank]
        for name, experts in zip(placement.layers, placement.ranks, strict=True)
        for expert, holders in enumerate(experts)
        for rank in holders
    )
    return text.getvalue()


def _read_csv(path: str | os.PathLike[str], kind: type[ExpertPlacement]) -> ExpertPlacement:
    require_plain(path, _RULE)
    try:
        head, titles, rows = read_csv(path, PLACEMENT_KIND, _VERSION)
        if titles != _TITLES:
            raise ValueError(f"its columns are {', '.join(titles)}, not {', '.join(_TITLES)}")
        return made(_from_rows(head, rows), kind)
    except (OSError, ValueError, KeyError, TypeError, csv.Error, RecursionError) as error:
        reason = str(error) or type(error).__name__
        raise ValueError(f"{_RULE} Received: {path_text(path)} ({reason})") from error


def _from_rows(head: dict[str, Any], rows: list[list[str]]) -> dict[str, Any]:
    """The fields of a placement."""
    holders: dict[str, dict[int, list[int]]] = {}
    for layer, expert, rank in rows:
        holders.setdefault(layer, {}).setdefault(int(expert), []).append(int(rank))
    for layer, experts in holders.items():
        if list(experts) != list(range(len(experts))):
            raise ValueError(f"the experts of layer {layer!r} must be numbered from 0, in order")
    ranks = tuple(tuple(map(tuple, experts.values())) for experts in holders.values())
    return {**head, "layers": tuple(holders), "ranks": ranks}
