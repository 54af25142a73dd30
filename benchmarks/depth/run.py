"""How deep: ResNets of 110 to 5000 layers, built and trained for a few steps.

    python benchmarks/depth/run.py
    python benchmarks/depth/run.py --depths 1001 --setups plain "model x2" --steps 5
    python benchmarks/depth/run.py --data cifar10.npz --options '{"schedule": "1f1b"}'
    python benchmarks/depth/run.py --report

Each case is a job of its own, started by mpirun, one after the other: plain Keras in one process,
or hyparflow on one, two or four ranks; "deferred": with weights at their owners only, which the
other last ones are, too. Seconds are those of the clock, and in brackets those of the
processor on rank 0; memory is the peak of each rank above a bare import. Cases that are run again
take the place of those before in results.json, from which table.rst and depth.png are made.
"""

import argparse
import json
import os
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from machine import described, machine

from hyparflow.formats.text import aligned

HERE = Path(__file__).resolve().parent
DEPTHS = (110, 1001, 2000, 5000)
# Ranks, and options of hyparflow.fit; None for plain Keras.
SETUPS: dict[str, tuple[int, dict[str, Any] | None]] = {
    "plain": (1, None),
    "one process": (1, {}),
    "model x2": (2, {"strategy": "model"}),
    "data x2": (2, {"strategy": "data"}),
    "model x2 deferred": (2, {"strategy": "model", "gather": False}),
    "model x2 recompute": (2, {"strategy": "model", "gather": False, "recompute": "block"}),
    "model x4 recompute": (4, {"strategy": "model", "gather": False, "recompute": "block"}),
}
THREADS = ("OMP_NUM_THREADS", "TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS")
MIB = 1 << 20


def run(depth: int, setup: str, args: argparse.Namespace) -> dict[str, Any]:
    """What one case measured; "error" tells why it did not end."""
    ranks, options = SETUPS[setup]
    batch = args.batch or (16 if depth < 4000 else 4)
    found: dict[str, Any] = {"depth": depth, "setup": setup, "batch": batch}
    with tempfile.TemporaryDirectory(prefix="depth-") as folder:
        spec = Path(folder) / "spec.json"
        spec.write_text(
            json.dumps(
                {
                    "depth": depth,
                    "batch": batch,
                    "steps": args.steps,
                    "data": args.data,
                    "is_plain": options is None,
                    "options": (options or {}) | json.loads(args.options),
                    "folder": folder,
                }
            )
        )
        start, error = time.perf_counter(), job([str(HERE / "case.py"), str(spec)], ranks, args)
        found["seconds"] = time.perf_counter() - start
        files = sorted(Path(folder).glob("rank-*.json"))
        found["ranks"] = [json.loads(path.read_text()) for path in files]
    if found["ranks"]:  # the largest depth that there is up to the one asked for
        found["depth"] = found["ranks"][0].get("depth", depth)
    if options:
        found["options"] = options | json.loads(args.options)
    return found | ({"error": error} if error else {})


def job(command: list[str], ranks: int, args: argparse.Namespace) -> str:
    """Run a job to its end; why it did not end well, or ""."""
    started = [*shlex.split(args.mpirun), "-n", str(ranks), sys.executable, *command]
    # Nothing of the shell that would make this job another.
    environment = {k: v for k, v in os.environ.items() if k not in (*THREADS, "HYPARFLOW_SPIN")}
    environment |= {"TF_CPP_MIN_LOG_LEVEL": "3", **dict.fromkeys(THREADS, str(args.threads))}
    try:
        ended = subprocess.run(
            started, env=environment, capture_output=True, text=True, timeout=args.limit
        )
    except subprocess.TimeoutExpired:
        return f"not done within {args.limit} s"
    if not ended.returncode:
        return ""
    lines = [line for line in (ended.stdout + ended.stderr).splitlines() if "Error" in line]
    return f"exit status {ended.returncode}" + (f": {lines[-1][:200]}" if lines else "")


def row(case: dict[str, Any]) -> list[str]:
    """The line of a case in the table."""
    leader = case["ranks"][0] if case["ranks"] else {}
    steps = leader.get("steps")
    peaks = [f"{rank['peak'] / MIB:.0f}" for rank in case["ranks"]]
    return [
        str(case["depth"]),
        f"{leader.get('layers', '?')}",
        case["setup"],
        str(case["batch"]),
        seconds(leader.get("build")),
        seconds(leader.get("first_step")),
        f"{statistics.median(steps):.2f}" if steps else "-",
        ", ".join(peaks) or "-",
        case.get("error", ""),
    ]


def seconds(pair: list[float] | None) -> str:
    return "-" if pair is None else f"{pair[0]:.0f} ({pair[1]:.0f})"


def report(results: dict[str, Any]) -> str:
    """The table as text."""
    head = ["depth", "layers", "how", "batch", "build, s", "first step, s", "step, s"]
    rows = [[*head, "peak, MiB", ""], *map(row, results["cases"])]
    return "\n".join([described(results["machine"]), "", *aligned(rows)])


def draw(cases: list[dict[str, Any]], path: Path) -> None:
    """Time and memory over depth, of the cases that came to a second step."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot, ticker

    cases = [case for case in cases if case["ranks"] and case["ranks"][0].get("steps")]
    figure, axes = pyplot.subplots(1, 3, figsize=(12, 3.6), layout="constrained")
    titles = ("start to the end of the first step, s", "a later step, s", "peak of a rank, MiB")
    for number, (axis, title) in enumerate(zip(axes, titles, strict=True)):
        for setup in SETUPS:
            done = [case for case in cases if case["setup"] == setup]
            if done:
                values = [figures(case)[number] for case in done]
                axis.plot([case["depth"] for case in done], values, "o-", label=setup)
        axis.set_title(title, fontsize=10)
        axis.set(xscale="log", yscale="log", xlabel="depth, and rows of a batch")
        axis.xaxis.set_minor_locator(ticker.NullLocator())
        axis.yaxis.set_major_formatter(ticker.StrMethodFormatter("{x:g}"))
        axis.yaxis.set_minor_formatter(ticker.StrMethodFormatter("{x:g}"))
        axis.tick_params(which="both", labelsize=8)
        places = {case["depth"]: f"{case['depth']}\n{case['batch']}" for case in cases}
        axis.set_xticks(list(places), list(places.values()))
        axis.grid(alpha=0.3)
    if cases:
        axes[0].legend(fontsize=7, loc="lower right")
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def figures(case: dict[str, Any]) -> tuple[float, float, float]:
    """Seconds to the end of the first step, and of a later one; the largest peak in MiB."""
    leader = case["ranks"][0]
    peak = max(rank["peak"] for rank in case["ranks"]) / MIB
    return leader["build"][0] + leader["first_step"][0], statistics.median(leader["steps"]), peak


def known(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text()) if path.exists() else {"machine": machine(), "cases": []}


def write(results: dict[str, Any], path: Path) -> None:
    """The results, and the table and picture made of them."""
    path.write_text(json.dumps(results, indent=1) + "\n")
    table = report(results)
    path.with_name("table.rst").write_text(
        "::\n\n" + "\n".join(f"    {line}".rstrip() for line in table.splitlines()) + "\n"
    )
    draw(results["cases"], path.with_name("depth.png"))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--depths", type=int, nargs="+", default=DEPTHS)
    parser.add_argument("--setups", nargs="+", choices=SETUPS, default=("plain", "model x2"))
    parser.add_argument("--batch", type=int, help="rows; 16 if not given, 4 from depth 4000 on")
    parser.add_argument("--steps", type=int, default=3, help="after the first")
    parser.add_argument("--data", default="synthetic", help="an .npz file, or synthetic")
    parser.add_argument("--options", default="{}", help="more options of hyparflow.fit, as JSON")
    parser.add_argument("--threads", type=int, default=1, help="of a rank")
    parser.add_argument("--limit", type=float, default=3600, help="seconds of a case")
    parser.add_argument("--mpirun", default="mpirun --bind-to core")
    parser.add_argument("--report", action="store_true", help="only draw what is there")
    parser.add_argument("--results", type=Path, default=HERE / "results.json")
    args = parser.parse_args()

    results = known(args.results)
    if not args.report:
        results["machine"] = machine()
        for depth in args.depths:
            for setup in args.setups:
                case = run(depth, setup, args)
                which = case["depth"], setup, case["batch"]
                kept = [
                    c for c in results["cases"] if (c["depth"], c["setup"], c["batch"]) != which
                ]
                results["cases"] = sorted(
                    [*kept, case], key=lambda c: (c["depth"], list(SETUPS).index(c["setup"]))
                )
                write(results, args.results)
                print("  ".join(row(case)), flush=True)
    write(results, args.results)
    print(report(results))


if __name__ == "__main__":
    main()
