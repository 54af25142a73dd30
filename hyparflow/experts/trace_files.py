"""Files of routing traces: .npz for programs, .csv for people, tables and other programs."""

from __future__ import annotations

import csv
import io
import os
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from hyparflow.experts.csv_head import csv_head, read_csv
from hyparflow.formats.plain_files import require_plain
from hyparflow.formats.text import path_text
from hyparflow.formats.writing import replacing

__all__ = ["TRACE_KIND", "read_trace", "write_trace"]

TRACE_KIND = "routing trace"
_VERSION = 1  # of both formats; grows with each change that older readers would misread
_RULE = "A routing trace must be a file that RoutingTrace.save wrote."
_FAULTS = (
    *(OSError, ValueError, KeyError, EOFError, TypeError, MemoryError, OverflowError),
    *(NotImplementedError, RuntimeError, zipfile.BadZipFile, zlib.error, csv.Error),
)
_T = TypeVar("_T")


def write_trace(
    path: str | os.PathLike[str],
    experts: np.ndarray,
    num_experts: int,
    model: str,
    layers: tuple[str, ...],
) -> None:
    """Write the parts of a trace to a file, complete or not at all: as CSV if its name ends so."""
    with replacing(path) as temporary:
        if _is_csv(path):
            temporary.write_text(_as_csv(experts, num_experts, model, layers), encoding="utf-8")
            return
        with temporary.open("wb") as file:
            np.savez_compressed(
                file,
                allow_pickle=False,
                version=np.array(_VERSION),
                experts=experts,
                num_experts=np.array(num_experts),
                model=np.array(model),
                layers=np.array(layers),
            )


def read_trace(path: str | os.PathLike[str], finish: Callable[[dict[str, Any]], _T]) -> _T:
    """Read a file, and return what `finish` makes of the parts of the trace.

    Raises:
        ValueError: if it cannot be read, or holds something else; it names the file and the fault.
    """
    require_plain(path, _RULE)
    try:
        return finish(_from_csv(path) if _is_csv(path) else _from_npz(path))
    except _FAULTS as error:
        reason = str(error) or type(error).__name__
        raise ValueError(f"{_RULE} Received: {path_text(path)} ({reason})") from error


def _is_csv(path: str | os.PathLike[str]) -> bool:
    return Path(path_text(path)).suffix.lower() == ".csv"


def _from_npz(path: str | os.PathLike[str]) -> dict[str, Any]:
    with np.load(path, allow_pickle=False) as file:
        if (version := int(file["version"])) != _VERSION:
            raise ValueError(f"it has version {version}, and this hyparflow reads {_VERSION}")
        return {
            "experts": file["experts"],
            "num_experts": file["num_experts"].item(),
            "model": str(file["model"]),
            "layers": tuple(map(str, file["layers"])),
        }


def _as_csv(experts: np.ndarray, num_experts: int, model: str, layers: tuple[str, ...]) -> str:
    text = io.StringIO()
    text.write(csv_head(TRACE_KIND, _VERSION, num_experts=num_experts, model=model))
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(["token", "layer", *(f"expert_{n + 1}" for n in range(experts.shape[2]))])
    for token, choices in enumerate(experts.tolist()):
        rows.writerows([token, name, *chosen] for name, chosen in zip(layers, choices, strict=True))
    return text.getvalue()


def _from_csv(path: str | os.PathLike[str]) -> dict[str, Any]:
    head, titles, rows = read_csv(path, TRACE_KIND, _VERSION)
    if "num_experts" not in head:
        raise ValueError("its first line must have `num_experts`, the experts of a layer")
    top_k = len(titles) - 2
    if titles != ["token", "layer", *(f"expert_{n + 1}" for n in range(top_k))] or not top_k:
        raise ValueError(f"its columns are {', '.join(titles)}, not token, layer, expert_1 ...")
    layers = tuple(dict.fromkeys(row[1] for row in rows))
    tokens, rest = divmod(len(rows), max(1, len(layers)))
    expected = [[str(token), name] for token in range(tokens) for name in layers]
    if rest or not tokens or [row[:2] for row in rows] != expected:
        raise ValueError("it must have a row for each token and layer, in this order")
    numbers = np.array([[float(value) for value in row[2:]] for row in rows])
    return {
        "experts": numbers.reshape(tokens, len(layers), top_k),
        "num_experts": head["num_experts"],
        "model": head.get("model", ""),
        "layers": layers,
    }
