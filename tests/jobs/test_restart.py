"""A job that was killed goes on where it was when it is started again."""

from __future__ import annotations

import pathlib

import numpy as np
from jobs.jobs import SCRIPTS, run


def train(folder: pathlib.Path, *victim: int) -> tuple[int, list[np.ndarray]]:
    """The exit status; the final weights with the epochs, and those without an interruption."""
    weights = folder / "weights.npz"
    result = run(2, SCRIPTS / "restart.py", folder / "backup", weights, *victim)
    assert not result.left
    if not weights.exists():
        return result.code, []
    with np.load(weights) as arrays:
        return result.code, [arrays[key] for key in arrays.files]


def test_a_killed_job_ends_with_the_same_weights(tmp_path: pathlib.Path) -> None:
    code, nothing = train(tmp_path, 1)
    assert code != 0
    assert not nothing
    code, arrays = train(tmp_path)
    assert code == 0
    actual, expected = arrays[: len(arrays) // 2], arrays[len(arrays) // 2 :]
    assert actual[-1].tolist() == [1, 2, 3]  # the first epoch was not trained again
    assert expected[-1].tolist() == [0, 1, 2, 3]
    for a, b in zip(actual[:-1], expected[:-1], strict=True):
        assert np.array_equal(a, b)
