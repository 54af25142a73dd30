"""A job that was killed goes on where it was when it is started again."""

from __future__ import annotations

import pathlib

import numpy as np
from jobs.jobs import SCRIPTS, run


def train(folder: pathlib.Path, name: str, *victim: int) -> tuple[int, list[np.ndarray]]:
    """The exit status, and the final weights with the epochs that were trained."""
    weights = folder / f"{name}.npz"
    result = run(2, SCRIPTS / "restart.py", folder / f"backup of {name}", weights, *victim)
    assert not result.left
    if not weights.exists():
        return result.code, []
    with np.load(weights) as arrays:
        return result.code, [arrays[key] for key in arrays.files]


def test_a_killed_job_ends_with_the_same_weights(tmp_path: pathlib.Path) -> None:
    code, expected = train(tmp_path, "uninterrupted")
    assert code == 0
    code, nothing = train(tmp_path, "killed", 1)
    assert code != 0
    assert not nothing
    code, actual = train(tmp_path, "killed")
    assert code == 0
    assert actual[-1].tolist() == [1, 2, 3]  # the first epoch was not trained again
    assert expected[-1].tolist() == [0, 1, 2, 3]
    for a, b in zip(actual[:-1], expected[:-1], strict=True):
        assert np.array_equal(a, b)
