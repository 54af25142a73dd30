"""Are plans true? Predicted against measured time of a step and memory.

    python benchmarks/planner/run.py

For each model: the network and the costs are measured, with one thread per process; plans for
(partitions, replicas) in {(1,1), (2,1), (1,2)} and 1, 2, 4 and 8 micro-batches are made from them,
and jobs train by these plans. Two partitions are also cut into equal numbers of layers,
in turns with the planned cut.
Writes results.json and table.rst beside this file, or to --output.
"""

import argparse
import json
import os
import shlex
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
MODELS = ("resnet20", "resnet56", "resnet110", "vgg16", "transformer", "densenet121")
LAYOUTS = ((1, 1), (2, 1), (1, 2))  # partitions, replicas
MICROBATCHES = (8, 4, 2, 1)  # in this order a process needs more and more memory
ONE_THREAD = ("OMP_NUM_THREADS", "TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS")


def main() -> None:
    args = parse()
    args.output.mkdir(parents=True, exist_ok=True)
    path = args.output / "results.json"
    rows: list[dict[str, Any]] = json.loads(path.read_text())["rows"] if args.add else []
    for name in args.models:
        start = time.perf_counter()
        rows = [row for row in rows if row["model"] != name] + list(examine(name, args))
        print(f"{name}: {time.perf_counter() - start:.0f} s", flush=True)
        path.write_text(json.dumps({"batch_size": args.batch_size, "rows": rows}, indent=1) + "\n")
        (args.output / "table.rst").write_text(table(rows) + "\n")
    print(table(rows))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Predicted against measured time and memory.")
    parser.add_argument("--models", nargs="+", default=MODELS, choices=MODELS)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--output", type=Path, default=HERE)
    parser.add_argument("--add", action="store_true", help="keep the other models' results")
    parser.add_argument("--mpirun", default="mpirun --map-by :OVERSUBSCRIBE --bind-to none")
    return parser.parse_args()


def examine(name: str, args: argparse.Namespace) -> Any:
    """The rows of one model."""
    with tempfile.TemporaryDirectory() as folder:
        cluster = Path(folder) / "cluster.json"
        doctor = [sys.executable, "-m", "hyparflow.cli", "doctor", "--network"]
        run([*shlex.split(args.mpirun), "-n", "2", *doctor, cluster])
        predict = [sys.executable, HERE / "predict.py", name, str(args.batch_size), cluster]
        plans = run_json(predict, Path(folder))
        for partitions, replicas in LAYOUTS:
            mine = [p for p in plans if (p["partitions"], p["replicas"]) == (partitions, replicas)]
            mine.sort(key=lambda plan: MICROBATCHES.index(plan["microbatches"]))
            groups = [mine]
            if partitions * replicas == 1:  # plain Keras compiles a program of its own
                groups = [mine[:-1], mine[-1:]]
            for group in groups:
                measured = train(name, [plan["arguments"] for plan in group], args, Path(folder))
                for plan, result in zip(group, measured, strict=True):
                    yield row_of(name, plan, result)
        balanced = next(p for p in plans if p["partitions"] == 2 and p["microbatches"] == 4)
        yield compare_cuts(name, balanced, args, Path(folder))


def row_of(name: str, plan: dict[str, Any], result: dict[str, Any]) -> dict[str, Any]:
    ranks = range(plan["partitions"])
    peaks = [max(result["peaks"][stage :: plan["partitions"]]) for stage in ranks]
    return {
        "model": name,
        "partitions": plan["partitions"],
        "replicas": plan["replicas"],
        "microbatches": plan["microbatches"],
        "predicted_seconds": plan["seconds"],
        "measured_seconds": result["seconds"],
        "predicted_bytes": plan["memory"],
        "measured_bytes": peaks,
    }


def compare_cuts(
    name: str, plan: dict[str, Any], args: argparse.Namespace, folder: Path
) -> dict[str, Any]:
    """The planned cut against one into equal numbers of layers."""
    count = sum(plan["arguments"]["lpp"])
    equal = plan["arguments"] | {"lpp": [count - count // 2, count // 2]}
    planned, other = train(name, [plan["arguments"], equal], args, folder, turns=3)
    return {
        "model": name,
        "planned": planned["seconds"],
        "equal": other["seconds"],
        "lpp": plan["arguments"]["lpp"],
    }


def train(
    name: str, entries: list[Any], args: argparse.Namespace, folder: Path, turns: int = 1
) -> list[dict[str, Any]]:
    job = {"batch_size": args.batch_size, "steps": args.steps, "turns": turns, "entries": entries}
    (folder / "job.json").write_text(json.dumps(job))
    ranks = entries[0]["num_partitions"] * entries[0]["num_replicas"]
    launcher = [*shlex.split(args.mpirun), "-n", str(ranks)]
    command = [*launcher, sys.executable, HERE / "steps.py", name, folder / "job.json"]
    return run_json(command, folder)


def run_json(command: list[Any], folder: Path) -> Any:
    """Run a command that writes JSON to the file that is its last argument."""
    output = folder / "output.json"
    run([*command, output])
    return json.loads(output.read_text())


def run(command: list[Any]) -> None:
    environment = os.environ | dict.fromkeys(ONE_THREAD, "1") | {"TF_CPP_MIN_LOG_LEVEL": "3"}
    done = subprocess.run(list(map(str, command)), env=environment, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{command} failed:\n{done.stderr[-3000:]}")


def table(rows: list[dict[str, Any]]) -> str:
    """All rows as text; a miss is marked by an exclamation mark."""
    lines = [
        "model         P R M   step (ms): plan  measured  ratio     peak (MiB): plan / measured "
        "by partition"
    ]
    ratios, sizes = [], []
    for row in (row for row in rows if "partitions" in row):
        ratio = row["predicted_seconds"] / row["measured_seconds"]
        pairs = list(zip(row["predicted_bytes"], row["measured_bytes"], strict=True))
        ratios.append(ratio)
        sizes += [plan / real for plan, real in pairs]
        memory = "   ".join(
            f"{plan / 2**20:.0f} / {real / 2**20:.0f} = {plan / real:.2f}{mark(plan / real, 0.2)}"
            for plan, real in pairs
        )
        lines.append(
            f"{row['model']:13} {row['partitions']} {row['replicas']} {row['microbatches']}"
            f"   {row['predicted_seconds'] * 1e3:14.1f} {row['measured_seconds'] * 1e3:9.1f}"
            f"  {ratio:5.2f}{mark(ratio, 0.15)}     {memory}"
        )
    lines.append("")
    lines.append(f"step time within 15 %: {inside(ratios, 0.15)} of {len(ratios)}")
    lines.append(f"peak memory within 20 %: {inside(sizes, 0.2)} of {len(sizes)}")
    lines += ["", "two partitions, 4 micro-batches: planned against equal numbers of layers"]
    for row in (row for row in rows if "planned" in row):
        lines.append(
            f"{row['model']:13} {row['planned'] * 1e3:9.1f} ms against {row['equal'] * 1e3:9.1f} "
            f"ms: {row['equal'] / row['planned']:.2f} times as fast, lpp={row['lpp']}"
        )
    return "\n".join(["::", "", *(f"    {line}".rstrip() for line in lines)])


def mark(ratio: float, within: float) -> str:
    return " " if abs(ratio - 1) <= within else "!"


def inside(ratios: list[float], within: float) -> int:
    return sum(abs(ratio - 1) <= within for ratio in ratios)


if __name__ == "__main__":
    main()
