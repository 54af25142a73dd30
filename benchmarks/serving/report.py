"""The tables of the benchmark, from results.json."""

import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from machine import described
from pictures import best

from hyparflow.formats.text import aligned

__all__ = ["rounded", "tables"]

_SAID = {
    "exact": "one by one, exact lengths",
    "padded": "one by one, padded to 256",
    "static": "one batch of 32",
}


def tables(results: dict[str, Any]) -> str:
    """All of them, one below the other."""
    found = [described(results["machine"])]
    for part, make in _TABLES.items():
        if part in results:
            found.append(make(results[part]))
    text = "\n\n".join(found)
    return "::\n\n" + "\n".join(f"    {line}".rstrip() for line in text.splitlines()) + "\n"


def rounded(value: Any) -> Any:
    """Numbers with as many digits as they deserve."""
    if isinstance(value, float):
        return float(f"{value:.5g}")
    if isinstance(value, dict):
        return {key: rounded(part) for key, part in value.items()}
    return [rounded(part) for part in value] if isinstance(value, list) else value


def _middle(turns: list[dict[str, float]], unit: str = "cpu") -> float:
    """The median of turns, each as if it had done all requests."""
    return statistics.median(turn[unit] / turn.get("share", 1.0) for turn in turns)


def _titled(title: str, rows: Sequence[Sequence[str]]) -> str:
    return "\n".join([title, "", *aligned(rows)])


def _throughput(found: dict[str, Any]) -> str:
    """hyparflow against KerasHub."""
    head = [
        "model",
        "KerasHub's generate",
        "jit",
        "tok/CPU s",
        "hyparflow",
        "times",
        "in wall time",
    ]
    rows, steps = [], []
    for name, entry in found.items():
        kind, compiled = name.split(", ", 1)
        tokens = entry["engine"][0]["tokens"]
        for way, said in _SAID.items():
            if not entry[way]:
                continue
            own, other = _middle(entry["engine"]), _middle(entry[way])
            walls = _middle(entry[way], "wall") / _middle(entry["engine"], "wall")
            rows.append(
                [kind, said, compiled, f"{tokens / other:.0f}", f"{tokens / own:.0f}"]
                + [f"{other / own:.1f}", f"{walls:.1f}"]
            )
        served = _middle(entry["engine"]) / _middle(entry["serve"])
        first = entry["engine"][0]
        rows.append(
            [kind, "(through hyparflow.serve)", compiled, "", f"{tokens * served / own:.0f}"]
            + [f"{served:.2f}", f"{first['useful']:.0%} of rows useful"]
        )
        for length, counts in entry.get("step", {}).items():
            one = _middle(counts["1"])
            costs = [f"{1e3 * _middle(turns):.1f}" for turns in counts.values()]
            ratios = [_middle(counts["32"]) / one, _middle(counts["32"]) / _middle(counts["4"])]
            steps.append([kind, length, *costs, *(f"{x:.1f}" for x in ratios)])
    text = _titled("32 requests (3,639 tokens), one thread", [head, *rows])
    head = ["model", "cache", *(f"{n} rows" for n in (1, 4, 8, 16, 32)), "32 / 1", "32 / 4"]
    return text + "\n\n" + _titled("A step, CPU ms", [head, *steps])


def _cold(found: dict[str, Any]) -> str:
    """What a user sees at first."""
    entry = found["gpt2"]
    named = {
        "hyparflow.generate, first call": entry["generate"][0],
        "hyparflow.generate, next call": entry["generate"][1],
        "KerasHub, one batch, first call": entry["static"][0],
    }
    rows = [[name, f"{x['cpu']:.1f}", f"{x['wall']:.1f}"] for name, x in named.items()]
    return _titled("The same requests in a new process", [["", "CPU s", "wall s"], *rows])


def _ranks(found: dict[str, Any]) -> str:
    """Over ranks."""
    rows = [["setup", "tok/s", "times one rank", "CPU s of all ranks", "first call, s", ""]]
    for group in found.values():
        base = None
        for name, turns in group.items():
            if name == "first calls":
                continue
            seconds = statistics.median(max(rank["wall"] for rank in turn) for turn in turns)
            cpu = statistics.median(sum(rank["cpu"] for rank in turn) for turn in turns)
            base = base or seconds
            note = "oversubscribed: 2 cores" if len(turns[0]) > 2 else ""
            speed = turns[0][0]["tokens"] / seconds
            first = max(rank["wall"] for rank in group["first calls"][name])
            rows.append(
                [name, f"{speed:.0f}", f"{base / seconds:.2f}", f"{cpu:.1f}", f"{first:.0f}", note]
            )
    return _titled("Ranks of one thread, wall time, hyparflow.generate when compiled", rows)


def _rivals(found: dict[str, Any]) -> str:
    """Beside other programs."""
    rows = [["program", "batch", "tok/CPU s", "hyparflow / it", "with 1024", "same tokens"]]
    for group in found.values():
        owns = [name for name in group if name.startswith("hyparflow")]
        for name, entries in group.items():
            for count, entry in entries.items():
                seconds = statistics.median(entry["cpu"])
                ratios = [
                    f"{seconds / statistics.median(group[own][count]['cpu']):.2f}" for own in owns
                ]
                rows.append(
                    [name, count, f"{int(count) * 32 / seconds:.0f}"]
                    + (ratios if name not in owns else ["", ""])
                    + [f"{entry['same']} of {count}"]
                )
    return _titled("GPT-2, the same weights, prompts of 32 and 32 new tokens, one thread", rows)


def _arrivals(found: dict[str, Any]) -> str:
    """By a virtual clock."""
    entry = found["measured"]
    rows = [
        ["gap, ms", "iterations", "deviation", "Flover", "distance", "useful rows", "of 4 or more"]
    ]
    for row in entry["rows"]:
        rows.append(
            [str(row["gap"]), f"{row['mean']:.0f}", f"{row['deviation']:.0f}"]
            + [str(row["published"]), f"{row['distance']:+.1f}"]
            + [f"{row['in windows']['useful']:.2f}", f"{row['four rows or more']:.2f}"]
        )
    at_once = ", ".join(f"{entry[f'at once, {n} rows']:.2f} with {n} rows" for n in (32, 8))
    title = f"32 requests for 512 tokens, means of {entry['seeds']} draws; distance in deviations"
    more = f"Useful rows of 32 requests at once, of 128 to 512 tokens: {at_once}"
    return _titled(title, rows) + "\n\n" + more


def _latency(found: dict[str, Any]) -> str:
    """Live, and by a virtual clock."""
    entry = found["measured"]
    rows = [["gap, ms", "", "first p50", "p99", "token p50", "p99", "costs after / before"]]
    for gap, entries in entry["gaps"].items():
        run = best(entries)
        for kind in ("live", "predicted"):
            numbers = [*run[kind]["first"], *run[kind]["each"]]
            rows.append([gap, kind, *(f"{x:.0f}" for x in numbers), f"{run['drift']:.2f}"])
        pairs = [
            run["live"][name][n] / run["predicted"][name][n]
            for name in ("first", "each")
            for n in (0, 1)
        ]
        rows.append([gap, "ratio", *(f"{x:.2f}" for x in pairs), ""])
    long = [["", "gap before", "most meanwhile", "gap after", "first token of the long one"]]
    for number, x in enumerate(entry["a long prompt"]):
        seconds = (x["before"], max(x["meanwhile"], default=0.0), x["after"], x["first"])
        long.append([f"run {number + 1}", *(f"{1e3 * value:.0f}" for value in seconds)])
    title = "Requests for 96 tokens, prompts of 16 to 64, ms"
    said = "Six requests run, a prompt of 1,000 tokens comes: gaps between windows, ms"
    costs = entry["costs of a long prompt"]
    piece = costs["1 of 256 x 1088"]
    more = f"A piece of 256 tokens takes {1e3 * piece:.0f} ms, eight steps of 8 rows "
    more += f"{8e3 * costs['step 8 x 544']:.0f} to {8e3 * costs['step 8 x 1088']:.0f}"
    return "\n\n".join([_titled(title, rows), _titled(said, long), more])


_TABLES = {
    "throughput": _throughput,
    "cold": _cold,
    "ranks": _ranks,
    "rivals": _rivals,
    "arrivals": _arrivals,
    "latency": _latency,
}
