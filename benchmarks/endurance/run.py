"""Does a long life cost? Memory, communicators, descriptors, threads and time of many trainings.

    python benchmarks/endurance/run.py [FITS MODELS]

Each case is a job of its own, of plain Keras and of two ranks; 200 fits of one model and 100 models
if no numbers are given. Writes results.json beside this file.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

from machine import machine  # noqa: E402

CASES = ("fits", "models", "models, cleared")
KINDS = ("plain", "data", "model")


def measured(case: str, kind: str, count: int) -> dict[str, Any]:
    """What one job says of itself."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "result.json"
        words = [str(HERE / "life.py"), case, kind, str(count), str(file)]
        start = [sys.executable]
        if kind != "plain":
            start += ["-m", "hyparflow.cli", "run", "-n", "2", "--output", "leader"]
        subprocess.run([*start, *words], check=True)
        found: dict[str, Any] = json.loads(file.read_text())
    return {"case": case, "kind": kind, "count": count, **found}


def main() -> None:
    fits, models = (int(word) for word in sys.argv[1:3]) if len(sys.argv) > 2 else (200, 100)
    results = []
    for case in CASES:
        for kind in KINDS:
            row = measured(case, kind, fits if case == "fits" else models)
            results.append(row)
            print(
                f"{case:16} {kind:6} {row['KiB of each']:8.0f} KiB each, "
                f"{row['objects of each']:8.0f} objects each, descriptors "
                f"{row['half']['descriptors']} -> {row['end']['descriptors']}, "
                f"communicators {row['half'].get('communicators', '-')} -> "
                f"{row['end'].get('communicators', '-')}, "
                f"{row['seconds, second quarter']:.3f} -> {row['seconds, last quarter']:.3f} s",
                flush=True,
            )
    report = {"machine": machine(), "results": results}
    HERE.joinpath("results.json").write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
