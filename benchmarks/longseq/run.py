"""How long a sequence fits into so much memory, and what its tokens cost.

    python benchmarks/longseq/run.py
    python benchmarks/longseq/run.py --setups plain "chunks" --limit 512
    python benchmarks/longseq/run.py --points "chunks x4:65536" "chunks x4, disk:65536"
    python benchmarks/longseq/run.py --report

The length is doubled until a rank takes more than --limit MiB above a bare import, and then
narrowed down; each point is a job of its own. --points measures single lengths. All are kept in
results.json, from which table.rst and longseq.png are made.
"""

import argparse
import json
import os
import shlex
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from machine import described, machine

from hyparflow.formats.text import aligned

HERE = Path(__file__).resolve().parent
MIB = 1 << 20
CHUNK = 1024  # positions of a chunk, of all shards
THREADS = ("OMP_NUM_THREADS", "TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS")
# Ranks; options of hyparflow.fit, None for plain Keras; shards that one rank alone stands for.
SETUPS: dict[str, tuple[int, dict[str, Any] | None, int]] = {
    "plain": (1, None, 0),
    "plain, recompute": (1, {"recompute": "block"}, 0),
    "all-to-all only, a rank of 4": (1, None, 4),
    "all-to-all, recompute x4": (4, {"num_sequence_shards": 4}, 0),
    "chunks": (1, {}, 0),
    "chunks, disk": (1, {"sequence_store": "disk"}, 0),
    "chunks x2": (2, {"num_sequence_shards": 2}, 0),
    "chunks x2, disk": (2, {"num_sequence_shards": 2, "sequence_store": "disk"}, 0),
    "chunks x4": (4, {"num_sequence_shards": 4}, 0),
    "chunks x4, disk": (4, {"num_sequence_shards": 4, "sequence_store": "disk"}, 0),
}


def measure(setup: str, length: int, args: argparse.Namespace) -> dict[str, Any]:
    """One point: the peaks of all ranks and the seconds of steps."""
    ranks, options, alone = SETUPS[setup]
    if setup.startswith("chunks"):
        options = (options or {}) | {"num_sequence_chunks": max(1, -(-length // CHUNK))}
    with tempfile.TemporaryDirectory(prefix="longseq-") as folder:
        spec = {"length": length, "steps": args.steps, "options": options, "folder": folder}
        path = Path(folder, "spec.json")
        path.write_text(json.dumps(spec | {"shards_alone": alone}))
        start = [*shlex.split(args.mpirun), "-n", str(ranks), sys.executable]
        command = [*start, str(HERE / "case.py"), str(path)]
        environment = {k: v for k, v in os.environ.items() if k not in THREADS}
        environment |= {"TF_CPP_MIN_LOG_LEVEL": "3", **dict.fromkeys(THREADS, "1")}
        try:
            ended = subprocess.run(
                command, env=environment, capture_output=True, text=True, timeout=args.timeout
            )
            error = "" if not ended.returncode else ended.stderr[-300:]
        except subprocess.TimeoutExpired:
            error = f"not done within {args.timeout} s"
        found = [json.loads(file.read_text()) for file in sorted(Path(folder).glob("rank-*.json"))]
    point = {"setup": setup, "length": length, "ranks": found}
    return point | ({"error": error} if error else {})


def peak(point: dict[str, Any]) -> float:
    """The largest peak of a rank in MiB; infinite for a job that did not end."""
    done = point["ranks"] and "error" not in point
    return max(rank["peak"] for rank in point["ranks"]) / MIB if done else float("inf")


def search(setup: str, args: argparse.Namespace, keep: Any) -> None:
    """Measure lengths around the longest whose peak is within the limit."""
    good, length = 0, args.first
    while length <= args.longest:
        point = keep(measure(setup, length, args))
        if peak(point) > args.limit:
            break
        good, length = length, 2 * length
    step = good // 2
    while good and step >= good // 8 and good + step <= args.longest:
        if peak(keep(measure(setup, good + step, args))) <= args.limit:
            good += step
        step //= 2


def stalled(point: dict[str, Any]) -> float:
    """The share of all steps in which the first rank waited for a disk."""
    rank = point["ranks"][0] if point["ranks"] else {"steps": []}
    total = sum(wall for wall, _ in rank["steps"])
    return float(rank.get("stalls", 0.0) / total) if total else 0.0


def row(point: dict[str, Any]) -> list[str]:
    """A line of the table."""
    steps = point["ranks"][0]["steps"][1:] if point["ranks"] else []
    ranks = max(1, len(point["ranks"]))
    seconds = statistics.median(wall for wall, _ in steps) if steps else None
    cpu = statistics.median(cpu for _, cpu in steps) * ranks if steps else None
    return [
        point["setup"],
        str(point["length"]),
        f"{peak(point):.0f}" if peak(point) < float("inf") else "-",
        f"{seconds:.2f}" if seconds else "-",
        f"{1e3 * cpu / point['length']:.3f}" if cpu else "-",
        f"{stalled(point):.1%}" if stalled(point) else "-",
        point.get("error", "").splitlines()[-1][:60] if point.get("error") else "",
    ]


def report(results: dict[str, Any]) -> str:
    """The table as text, and the longest length of each setup."""
    head = ["setup", "tokens", "peak, MiB", "step, s", "CPU ms a token", "stalls", ""]
    order = list(SETUPS)
    points = sorted(results["points"], key=lambda p: (order.index(p["setup"]), p["length"]))
    longest = {
        setup: max(fits, default=0)
        for setup in SETUPS
        if (known := [p for p in points if p["setup"] == setup])
        for fits in [[p["length"] for p in known if peak(p) <= results["limit"]]]
    }
    reach = [
        ["longest within", f"{results['limit']} MiB"],
        *([s, str(n)] for s, n in longest.items()),
    ]
    tables = [*aligned([head, *map(row, points)]), "", *aligned(reach)]
    return "\n".join([described(results["machine"]), "", *tables])


def draw(results: dict[str, Any], path: Path) -> None:
    """Peaks over lengths."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot, ticker

    figure, axes = pyplot.subplots(figsize=(8, 4.5), layout="constrained")
    for setup in SETUPS:
        points = [p for p in results["points"] if p["setup"] == setup and peak(p) < float("inf")]
        points.sort(key=lambda p: p["length"])
        if points:
            axes.plot([p["length"] for p in points], [peak(p) for p in points], "o-", label=setup)
    axes.axhline(results["limit"], color="black", linewidth=0.8)
    axes.set(
        xscale="log", yscale="log", xlabel="tokens of a sequence", ylabel="peak of a rank, MiB"
    )
    axes.xaxis.set_major_locator(ticker.LogLocator(2))
    axes.yaxis.set_major_locator(ticker.FixedLocator([200, 300, 400, 512, 700, 1000]))
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(ticker.StrMethodFormatter("{x:,.0f}"))
        axis.set_minor_locator(ticker.NullLocator())
    axes.grid(alpha=0.3, which="both")
    axes.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1, 1))
    figure.savefig(path, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--setups", nargs="*", choices=SETUPS, default=list(SETUPS))
    parser.add_argument("--points", nargs="*", help="SETUP:LENGTH, in place of a search")
    parser.add_argument("--limit", type=float, default=512, help="MiB of a rank")
    parser.add_argument("--first", type=int, default=1024, help="the shortest length tried")
    parser.add_argument("--longest", type=int, default=16384, help="no longer ones are tried")
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--timeout", type=float, default=900, help="seconds of a point")
    parser.add_argument("--mpirun", default="mpirun --map-by :OVERSUBSCRIBE --bind-to none")
    parser.add_argument("--results", type=Path, default=HERE / "results.json")
    parser.add_argument("--report", action="store_true", help="only draw what is there")
    args = parser.parse_args()
    results: dict[str, Any] = {"machine": machine(), "limit": args.limit, "points": []}
    if args.results.exists():
        results = json.loads(args.results.read_text())

    def keep(point: dict[str, Any]) -> dict[str, Any]:
        same = (point["setup"], point["length"])
        results["points"] = [p for p in results["points"] if (p["setup"], p["length"]) != same] + [
            point
        ]
        args.results.write_text(json.dumps(results, indent=1) + "\n")
        print("  ".join(row(point)), flush=True)
        return point

    if args.points:
        for text in args.points:
            setup, _, length = text.rpartition(":")
            keep(measure(setup, int(length), args))
    elif not args.report:
        for setup in args.setups:
            search(setup, args, keep)
    lines = report(results).splitlines()
    text = "::\n\n" + "\n".join(f"    {line}".rstrip() for line in lines) + "\n"
    args.results.with_name("table.rst").write_text(text)
    draw(results, args.results.with_name("longseq.png"))


if __name__ == "__main__":
    main()
