"""A job of PyTorch that takes turns, as `job.py` is one of Keras.

    python torch_job.py SPEC.json             (or by mpirun, for several ranks)

Runs in an environment that has PyTorch, NumPy and psutil, and need not have more. Each rank writes
the losses that it saw into its "end-RANK".
"""

import json
import os
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from samples import check_size, rows_of_steps
from torch_models import build, size
from torch_steps import Step, alone, pipeline, replicas
from turn_files import Turns, number_of_steps, resident, write_end


def main() -> None:
    spec = json.loads(Path(sys.argv[1]).read_text())
    folder, batch, name = Path(spec["folder"]), spec["batch"], spec["model"]
    rank, ranks = join(folder)
    bare = resident()
    torch.manual_seed(0)
    blocks = build(name)
    check_size(name, *size(blocks))
    count = number_of_steps(spec["steps"], spec["turns"])
    x, y = map(torch.from_numpy, rows_of_steps(name, batch, count))
    wait_for_all = dist.barrier if ranks > 1 else None
    step = make_step(name, blocks, x, batch, spec["options"])
    # After stages are cut, which would be done once, by hand, in a script.
    turns = Turns(folder, spec["steps"], wait_for_all, speaks=rank == 0)
    losses = []
    for number in range(count):
        rows = slice(number * batch, (number + 1) * batch)
        turns.begin_step(number)
        losses.append(step(x[rows], y[rows]))
        turns.end_step(number)
    write_end(folder, rank, bare, losses=losses)


def join(folder: Path) -> tuple[int, int]:
    """This rank and how many there are, as the launcher says; they meet by a file."""
    rank, ranks = 0, 1
    for launcher in ("OMPI_COMM_WORLD", "PMI"):
        if f"{launcher}_RANK" in os.environ:
            rank, ranks = (int(os.environ[f"{launcher}_{what}"]) for what in ("RANK", "SIZE"))
    if ranks > 1:
        # Others take their turns for hours while a job waits for its own.
        waiting = timedelta(days=7)
        where = (folder / "ranks").as_uri()
        dist.init_process_group("gloo", where, waiting, ranks, rank)
    return rank, ranks


def make_step(
    name: str, blocks: list[torch.nn.Module], x: Any, batch: int, options: dict[str, Any]
) -> Step:
    """As `options` say: on one rank, on replicas or in a pipeline."""
    if "schedule" in options:
        return pipeline(name, blocks, x, batch, options)
    return replicas(name, blocks) if options.get("replicas") else alone(name, blocks)


if __name__ == "__main__":
    main()
