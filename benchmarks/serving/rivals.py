"""hyparflow beside other programs that generate, with the same weights, in turns."""

import statistics
import tempfile
from pathlib import Path
from typing import Any

from workers import Worker

__all__ = ["PROMPT", "compare"]

PROMPT = NEW = 32
ROWS = (1, 8, 32)
# Name -> `prompt_piece`: the default, and so many that no row waits for the prompts of others.
OWN = {"hyparflow": 256, "hyparflow, prompt_piece=1024": 1024}


def compare(python: str, names: list[str], rounds: int, converted: Path | None) -> dict[str, Any]:
    """Seconds of batches of each program.

    Args:
        python: that has the rivals.
        names: of the rivals.
        rounds: how many turns each takes.
        converted: a folder with what a rival cannot convert itself.
    """
    checkpoint = Path(tempfile.mkdtemp(prefix="checkpoint-"))
    if converted is not None:
        (checkpoint / "openvino").symlink_to(converted.resolve())
    own = Worker("hyparflow", "case.py", "gpt2", "plain")
    own.ask("checkpoint", folder=str(checkpoint))
    workers = dict.fromkeys(OWN, own)
    for name in names:
        workers[name] = Worker(
            name, "rival_case.py", name, str(checkpoint), python=python, timeout=300
        )
    found: dict[str, Any] = {name: {} for name in workers}
    for rows in ROWS:
        asked = {"rows": rows, "prompt": PROMPT, "new": NEW}
        (first,) = own.ask("batch", **asked, piece=OWN["hyparflow"])  # compiles
        for turn in range(rounds + 1):
            for name, worker in workers.items():
                if name in OWN:
                    (took,) = worker.ask("batch", **asked, piece=OWN[name])
                else:
                    (took,) = worker.ask("batch", prompts=first["prompts"], new=NEW)
                same = sum(x == y for x, y in zip(took["made"], first["made"], strict=True))
                if turn:  # the first warms up
                    entry = found[name].setdefault(str(rows), {"cpu": [], "wall": []})
                    entry["cpu"].append(took["cpu"])
                    entry["wall"].append(took["wall"])
                    entry["same"] = same
        for name, entries in found.items():
            seconds = statistics.median(entries[str(rows)]["cpu"])
            same = entries[str(rows)]["same"]
            print(f"{rows:3d} {name}: {rows * NEW / seconds:.0f} tok/s, {same} same", flush=True)
    for worker in {id(worker): worker for worker in workers.values()}.values():
        worker.end()
    return found
