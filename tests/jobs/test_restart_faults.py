"""Faults drawn from seeds, in a training that starts again each time: it ends with the same bits.

``benchmarks/restarts`` brings about 200 of them.
"""

from __future__ import annotations

import pathlib

import pytest
from jobs.hosts import require_namespaces
from jobs.restart_faults import draw, expected, try_out


@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("seed", "faults", "has_hosts", "ranks"),
    [
        (38, 3, False, 2),  # a full disk, a rank killed while it writes, mpirun killed amid a save
        (26, 3, False, 2),  # a rank is stopped amid a removal, a full disk, an exception
        (9, 2, True, 2),  # a rank is killed, and the cable between the hosts is cut
        (6, 3, False, 4),  # a full disk, an exception, a rank killed amid a removal
    ],
)
def test_faults_change_no_bit(
    seed: int, faults: int, has_hosts: bool, ranks: int, tmp_path: pathlib.Path
) -> None:
    if has_hosts:
        require_namespaces()
    plan = draw(seed, faults, has_hosts, ranks)
    bits = expected(plan, tmp_path / "quiet")
    outcome = try_out(plan, bits, tmp_path / "faulty")
    assert not outcome.problems, (plan, outcome.problems, outcome.output)
    assert len(outcome.losses) == faults, (plan, outcome.output)
    # An exception that a save meets, a disk and a cut that is short do not end an attempt.
    fatal = [fault for fault in plan.faults if fault.kind in ("kill", "stop", "mpirun")]
    ended = [loss.fault for loss in outcome.losses if loss.how]
    assert set(fatal) <= set(ended), outcome.output
