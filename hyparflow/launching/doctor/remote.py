"""Runs on the ranks that the doctor starts: writes their findings as JSON.

python -m hyparflow.launching.doctor.remote FILE
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from hyparflow.comm.world import World
from hyparflow.launching.doctor.finding import as_values
from hyparflow.launching.doctor.ranks import check_ranks

__all__ = ["main"]


def main(file: Path) -> None:
    """Check the ranks; the leader writes the file."""
    world = World()
    findings = check_ranks(world)
    if world.rank == 0:
        file.write_text(json.dumps(as_values(findings)))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
