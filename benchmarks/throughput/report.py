"""What `run.py` found, as tables and a picture.

    python benchmarks/throughput/report.py

writes table.rst, highlights.rst (the table of the README) and throughput.png from results.json.

The limit of a group of jobs is twice the best rate of one thread. Where a job passed it, one thread
was measured in a slower hour than that job, so the number limits nothing, and is left out.
"""

import json
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from machine import described

__all__ = ["highlights", "table", "write"]

HERE = Path(__file__).resolve().parent
Row = dict[str, Any]
Group = dict[str, Any]
Case = dict[str, Any]

MODELS = {
    "resnet110": "ResNet-110",
    "resnet1001": "ResNet-1001",
    "vgg16": "VGG16",
    "transformer6": "Transformer of 6 blocks",
}
# What the README shows: the setup that is the fastest of hyparflow's, among those measured with
# plain Keras in one group; faster or slower than that.
HIGHLIGHTS = {
    ("resnet110", 32): ("data x2", "two replicas"),
    ("resnet1001", 16): ("model x2, interleaved, V=16", "two partitions"),
    ("resnet110", 128): ("data x2", "two replicas"),
    ("transformer6", 64): ("data x2", "two replicas"),
    ("vgg16", 64): ("data x2", "two replicas"),
}
BEST_PLAIN = "model.fit, default threads"
PLAIN = (BEST_PLAIN, "model.fit, 1 thread")


def write(results: list[Case], folder: Path) -> None:
    """Write the tables and the picture into `folder`."""
    (folder / "table.rst").write_text(table(results))
    (folder / "highlights.rst").write_text(highlights(results))
    plot(results, folder / "throughput.png")


def table(results: list[Case]) -> str:
    """All that was measured: a table for each group of jobs that took turns."""
    where = {described(case["machine"]) for case in results}
    parts = [f"Measured on: {'; '.join(sorted(where))}.\n"]
    for case in results:
        for number, group in enumerate(case["groups"], start=1):
            limit = limit_of(group)
            told = [] if len(case["groups"]) == 1 else [f"group {number} of {len(case['groups'])}"]
            told += [] if limit is None else [f"limit {limit:.1f} samples/s"]
            told += [] if len(where) == 1 else [described(case["machine"])]
            parts.append(f"**{title(case)}**{''.join(f', {text}' for text in told)}\n")
            parts.append(aligned(rows_of(group)))
    return "\n".join(parts)


def highlights(results: list[Case]) -> str:
    """A row for each model: plain Keras, hyparflow and the ratio."""
    rows = [("model and batch", "ranks", "plain Keras", "hyparflow", "ratio")]
    cases = {(case["model"], case["batch"]): case for case in results}
    for key, (setup, words) in HIGHLIGHTS.items():
        if key not in cases:
            continue
        for group in cases[key]["groups"]:
            found = {row["name"]: row for row in group["rows"]}
            if setup in found and BEST_PLAIN in found:
                plain = max(found[name]["rate"] for name in PLAIN if name in found)
                ours = found[setup]
                rates = (f"{plain:.1f}", f"{ours['rate']:.1f}", text(ours["to_baseline"]))
                rows.append((title(cases[key]), words, *rates))
                break
    return aligned(rows)


def title(case: Case) -> str:
    return f"{MODELS.get(case['model'], case['model'])}, {case['batch']} rows"


def limit_of(group: Group) -> float | None:
    """Samples per second that no job of the group passes; None if none is known."""
    limit = group["limit"]
    if limit is None or any(row["rate"] > limit for row in group["rows"]):
        return None
    return float(limit)


def rows_of(group: Group) -> list[tuple[str, ...]]:
    """The cells of a group's table; columns without anything in them are left out."""
    has_limit = limit_of(group) is not None
    columns = [("setup", [name_of(row) for row in group["rows"]])]
    columns += [("samples/s", [f"{row['rate']:.1f}" for row in group["rows"]])]
    for head, key in (
        ("/ plain", "to_baseline"),
        ("/ limit", "to_limit"),
        ("/ Horovod", "to_horovod"),
        ("/ PyTorch", "to_torch"),
        ("idle", "idle"),
        ("hidden", "hidden"),
    ):
        if key != "to_limit" or has_limit:
            columns.append((head, [text(row.get(key)) for row in group["rows"]]))
    columns.append(("first step", [f"{row['first_step']:.1f} s" for row in group["rows"]]))
    columns.append(("peak, MiB", [peaks(row) for row in group["rows"]]))
    known = [(head, cells) for head, cells in columns if any(cells)]
    heads = tuple(head for head, _ in known)
    return [heads, *zip(*(cells for _, cells in known), strict=True)]


def name_of(row: Row) -> str:
    return row["name"] + (f" ({row['plan']})" if row.get("plan") else "")


def peaks(row: Row) -> str:
    return ", ".join(f"{peak / 2**20:.0f}" for peak in row["peaks"])


def text(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def aligned(rows: list[tuple[str, ...]]) -> str:
    """A table of reStructuredText; the first row is its head."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    line = "  ".join("=" * width for width in widths)
    shown = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
    return "\n".join([line, shown[0], line, *shown[1:], line, ""])


def plot(results: list[Case], path: Path) -> None:
    """Draw how near each setup comes to the limit of its group."""
    from matplotlib.figure import Figure

    known = [(case, bars_of(case)) for case in results if bars_of(case)]
    if not known:  # nothing stayed within its limit
        return
    sizes = [len(bars) + 3.0 for _, bars in known]  # a bar each, and the axis
    figure = Figure(figsize=(7, sum(sizes) * 0.23), layout="constrained")
    all_axes = figure.subplots(len(known), 1, squeeze=False, height_ratios=sizes)[:, 0]
    for axes, (case, bars) in zip(all_axes, known, strict=True):
        colours = [colour(row["name"]) for row in bars]
        drawn = axes.barh(
            [row["name"] for row in bars], [row["to_limit"] for row in bars], color=colours
        )
        axes.bar_label(drawn, fmt="%.2f", padding=-30, color="white")
        axes.axvline(1, color="black", linestyle="--", linewidth=1)
        # Not samples per second: groups run at different times.
        axes.set(title=title(case), xlabel="of the limit of two cores", xlim=(0, 1.05))
    figure.savefig(path, dpi=200)


def colour(name: str) -> str:
    """Of a setup: PyTorch's, of two processes, or of one."""
    if name.startswith("PyTorch"):
        return "#d55e00"
    return "#0072b2" if "x2" in name else "#999999"


def bars_of(case: Case) -> list[Row]:
    """A row of each setup that was measured beside a limit, the last first."""
    found: dict[str, Row] = {}
    for group in case["groups"]:
        if limit_of(group) is not None:
            for row in group["rows"]:
                found.setdefault(row["name"], row)
    return list(found.values())[::-1]


if __name__ == "__main__":
    write(json.loads((HERE / "results.json").read_text())["cases"], HERE)
