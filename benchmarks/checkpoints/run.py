"""What checkpoints cost: a training that saves every 20 steps beside one that saves none.

python benchmarks/checkpoints/run.py [--models transformer resnet] [--ranks 2] [--folder FOLDER]
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from machine import machine

HERE = Path(__file__).resolve().parent
_MB = 1e6
_ROW = "{:12s} {:>5} {:>8} {:13s} {:>7} {:>6} {:>6} {:>7} {:>16}"
_TITLES = ("model", "ranks", "MB", "checkpoints", "s", "ratio", "cpu", "end, s", "stall, ms (most)")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="*", default=["transformer", "resnet"])
    parser.add_argument("--ranks", nargs="*", type=int, default=[2])
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()))
    parser.add_argument("--mpirun", default="mpirun --map-by :OVERSUBSCRIBE --bind-to none")
    args = parser.parse_args()
    kept = _other_cases(args.models)
    results: dict[str, Any] = {"machine": machine(), "cases": kept}
    results["written"] = {"dd": [], "hyparflow": []}
    for _ in range(5):  # in turns: other jobs use the disk, too
        results["written"]["dd"].append(dd_rate(args.folder))
        results["written"]["hyparflow"].append(own_rate(args.folder))
    for model in args.models:
        for ranks in args.ranks:
            results["cases"].append(measured(model, ranks, args.folder, args.mpirun))
    (HERE / "results.json").write_text(json.dumps(results, indent=1) + "\n")
    text = table(results)
    (HERE / "table.txt").write_text(text)
    print(text)


def _other_cases(models: Sequence[str]) -> list[dict[str, Any]]:
    """What was measured before, of models that are not measured now."""
    try:
        found = json.loads((HERE / "results.json").read_text())["cases"]
    except FileNotFoundError:
        return []
    return [case for case in found if case["kind"] not in models]


def measured(model: str, ranks: int, folder: Path, mpirun: str) -> dict[str, Any]:
    """The figures of one job."""
    with tempfile.TemporaryDirectory(dir=folder) as place:
        result = Path(place, "result.json")
        words = [sys.executable, str(HERE / "case.py"), model, str(Path(place, "run")), str(result)]
        launcher = [*shlex.split(mpirun), "-n", str(ranks)]
        subprocess.run([*launcher, *words], check=True, timeout=1800)
        found: dict[str, Any] = json.loads(result.read_text())
        return found


def dd_rate(folder: Path) -> float:
    """MB/s that `dd` writes, with a sync at the end."""
    with tempfile.TemporaryDirectory(dir=folder) as place:
        line = ["dd", "if=/dev/zero", f"of={place}/zeros", "bs=64M", "count=8", "conv=fsync"]
        said = subprocess.run(line, check=True, capture_output=True, text=True).stderr
    seconds = float(said.rsplit(" s,", 1)[0].rsplit(" ", 1)[1])
    return 8 * 64 * 2**20 / seconds / _MB


def own_rate(folder: Path) -> float:
    """MB/s that a rank writes of its share, with checksums and a sync, in a process of its own."""
    with tempfile.TemporaryDirectory(dir=folder) as place:
        code = (
            "import time, numpy as np, pathlib\n"
            "from hyparflow.formats.checkpoint.shard_file import write_shards\n"
            "from hyparflow.formats.checkpoint.shard_header import ShardSpec\n"
            "x = np.ones((8, 1 << 24), 'float32')\n"
            "specs = [ShardSpec(str(n), 'float32', x[n].shape) for n in range(8)]\n"
            "start = time.perf_counter()\n"
            f"write_shards(pathlib.Path({place!r}, 'rank-00000.safetensors'), specs, iter(x))\n"
            f"print(x.nbytes / (time.perf_counter() - start) / {_MB})\n"
        )
        line = [sys.executable, "-c", code]
        found = subprocess.run(line, check=True, capture_output=True, text=True, env=os.environ)
    return float(found.stdout)


def table(results: dict[str, Any]) -> str:
    """The figures as text."""
    rates = {name: statistics.median(given) for name, given in results["written"].items()}
    lines = [
        f"{results['machine']['processor']}; written: dd with fsync {rates['dd']:.0f} MB/s, "
        f"a rank's file with checksums and fsync {rates['hyparflow']:.0f} MB/s",
        "",
        _ROW.format(*_TITLES),
    ]
    for case in results["cases"]:
        for name in ("none", "asynchronous", "synchronous"):
            entry, none = case[name], case["none"]
            stalls = [1e3 * stall for stall in entry["stalls"]]
            ratios = [
                statistics.median(entry[key]) / statistics.median(none[key])
                for key in ("seconds", "cpu")
            ]
            lines.append(
                _ROW.format(
                    case["kind"],
                    case["ranks"],
                    f"{case['bytes'] / _MB:.0f}",
                    name,
                    f"{statistics.median(entry['seconds']):.2f}",
                    *(f"{ratio:.3f}" for ratio in ratios),
                    f"{statistics.median(entry['end']):.2f}",
                    f"{statistics.median(stalls):.0f} ({max(stalls):.0f})" if stalls else "",
                )
            )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
