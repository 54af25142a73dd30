"""Jobs on ranks that may not take the memory that they need."""

from __future__ import annotations

import json
import pathlib
import sys
from typing import Any

import pytest
from jobs.jobs import SCRIPTS, run

RANKS = 2
LARGE = 16384  # units: a layer has 1 GiB of weights, as much as the ranks may take
MEDIUM = 8192  # a partition's weights take half of that; gradients and slots three times as much

# Other systems know no limit on the address space that holds.
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="needs RLIMIT_AS of Linux")


def outcomes(folder: pathlib.Path, units: int, *first: str) -> list[Any]:
    script = SCRIPTS / "short_memory.py"
    result = run(RANKS, script, folder, units, *first, HYPARFLOW_TIMEOUT="60")
    assert result.code == 0, result.output
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(RANKS)]


def test_weights_that_cannot_be_had_are_refused_on_all_ranks(tmp_path: pathlib.Path) -> None:
    found = outcomes(tmp_path, LARGE)
    assert found[0] == found[1]
    kind, message = found[0]
    assert kind == "refused"
    for part in (
        "must fit in memory",
        "Received: partition 0 on rank 0 needs 2048.0 MiB more for weights",
        "2048.0 MiB for gradients, 4096.0 MiB more for optimizer slots",
        "may be taken (RLIMIT_AS)",
        "Use more partitions, hf.deferred() with gather=False",
    ):
        assert part in message


def test_what_could_be_evaluated_is_refused_where_it_cannot_be_trained(
    tmp_path: pathlib.Path,
) -> None:
    """What `evaluate` built serves `fit`, too; gradients and slots come on top."""
    found = outcomes(tmp_path, MEDIUM, "evaluate")
    assert found[0] == found[1]
    kind, message = found[0]
    assert kind == "refused"
    assert "needs 0.0 MiB more for weights, 512.0 MiB for gradients" in message
    assert "1024.0 MiB more for optimizer slots" in message


def test_what_cannot_be_measured_is_refused_on_all_ranks(tmp_path: pathlib.Path) -> None:
    """TensorFlow would end the process."""
    found = outcomes(tmp_path, LARGE, "auto")
    assert found[0] == found[1]
    kind, message = found[0]
    assert kind == "refused"
    assert "What is measured before a plan must fit in memory" in message
    assert "about 2048.0 MiB are needed" in message


def test_what_fits_is_trained(tmp_path: pathlib.Path) -> None:
    assert outcomes(tmp_path, 512) == [["trained", 1]] * RANKS
