"""What cannot be is refused with the same error on every rank, and what to do instead."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from typing import Any

import pytest
from jobs.jobs import SCRIPTS, run

RANKS = 2
Outcome = Callable[[str, str], list[Any]]


@pytest.fixture(scope="module")
def outcome(tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    """A function from a case to what each rank got: one job tries all cases."""
    file = tmp_path_factory.mktemp("refusals") / "outcomes"
    result = run(RANKS, SCRIPTS / "refusals.py", file, HYPARFLOW_TIMEOUT="20")
    lines = file.read_text().splitlines() if file.exists() else []
    found = {(group, name): errors for group, name, errors in map(json.loads, lines)}

    def look_up(group: str, name: str) -> list[Any]:
        assert (group, name) in found, f"the job ended before this case:\n{result.output}"
        return found[group, name]

    return look_up


# Case -> the rule that it breaks, what was received, how to mend it.
ALONE = {
    "grid": (
        "must be num_partitions x num_replicas",
        "Received: num_partitions=2, num_replicas=2, which is 4, but 2 ranks run",
        "mpirun -n 4 python",
    ),
    "operations": (
        "cannot be cut into more partitions than it has operations",
        "Received: 2 of them for 1 operations",
        "Use fewer partitions",
    ),
    "lpp length": (
        "one positive number per partition",
        "Received: lpp=[1, 1, 1] with sum 3 for 2 partitions",
    ),
    "lpp sum": (
        "must add up to the model's 3 operations",
        "Received: lpp=[1, 1] with sum 2 for 2 partitions",
    ),
    "strategy": (
        "must be one of 'data', 'model', 'hybrid', 'sequence', 'auto'",
        "Received: strategy='banana'",
    ),
    "schedule": (
        "must be one of 'gpipe', '1f1b'",
        "or 'auto'",
        "Received: schedule='banana'",
    ),
    "batch": (
        "at least one row for each micro-batch of each replica",
        "Received: batch_size=3 for 2 replicas x 2 micro-batches",
    ),
    "not compiled": ("must be compiled", "call model.compile(", "Received: model 'sequential"),
    "lengths": ("cardinality", "64", "63"),  # Keras's own words
    "labels": ("needs labels", "Received: y=None"),
    "subclassed": (
        "Functional or Sequential",
        "Received: model of class 'Subclassed'",
        "strategy='data'",
    ),
    "old Keras": (
        "hyparflow works with keras 3.12 and newer",
        "Received: keras 3.11.3",
        'pip install "keras>=3.12"',
    ),
}


@pytest.mark.parametrize("name", ALONE)
def test_refused_before_any_message(name: str, outcome: Outcome) -> None:
    first, *others = outcome("alone", name)
    assert others == [first] * (RANKS - 1)
    kind, text = first
    assert kind == ("ImportError" if name == "old Keras" else "ValueError")
    for part in ALONE[name]:
        assert part in text


# Case -> what the error says is not the same.
DIFFERENT = {
    "width": "model",
    "activation": "model",
    "learning rate": "optimizer and loss",
    "loss": "optimizer and loss",
    "loss setting": "optimizer and loss",
    "loss weights": "optimizer and loss",
    "metrics": "optimizer and loss",
    "batch_size": "batch size",
    "epochs": "argument `epochs`",
    "num_microbatches": "argument `num_microbatches`",
    "schedule": "argument `schedule`",
    "lpp": "argument `lpp`",
    "strategy": "number of partitions and replicas",
    "method": "method",
    "shuffled data": "data",
    "labels": "data",
    "one row": "data",
    "shard": "data",
}


@pytest.mark.parametrize("name", DIFFERENT)
def test_ranks_must_agree(name: str, outcome: Outcome) -> None:
    first, *others = outcome("different", name)
    assert others == [first] * (RANKS - 1)
    assert first is not None, "was not noticed"
    kind, text = first
    assert kind == "ValueError"
    assert f"must be given the same {DIFFERENT[name]}" in text
    assert "Received: on rank 1 it differs from rank 0's" in text
    assert "Every rank runs the whole script with the whole data" in text


@pytest.mark.parametrize("name", ["subclassed, data", "cut"])
def test_same_job_trains_afterwards(name: str, outcome: Outcome) -> None:
    assert outcome("fine", name) == [None] * RANKS


@pytest.mark.skipif(
    importlib.util.find_spec("horovod") is None,
    reason="Horovod is not installed (scripts/install_horovod.sh)",
)
@pytest.mark.parametrize("sets", ["fixed", "dynamic"])
def test_horovod_that_the_script_started(sets: str) -> None:
    result = run(4, SCRIPTS / "own_horovod.py", sets)
    assert result.code == 0, result.output
    assert result.output.count("trained") == (4 if sets == "fixed" else 8), result.output
    refused = result.output.count('call hvd.init(process_sets="dynamic")')
    assert refused == (4 if sets == "fixed" else 0), result.output


CALL = """
import keras, numpy as np
import hyparflow as hf

x = np.ones((8, 4))
model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])
model.compile("sgd", "mse")
{}
"""


@pytest.mark.parametrize(
    "call, message",
    [
        ("hf.fit(model, x, x, bogus=1)", "TypeError: `fit` has no argument `bogus`. Received: "),
        # As the first, by another call.
        pytest.param(
            "hf.parallelize(model, bogus=1)",
            "TypeError: `parallelize` has no argument `bogus`",
            marks=pytest.mark.slow,
        ),
        ("hf.fit(model, x, x, callbacks=[3])", "Received: 3 of type int among callbacks=[3]"),
    ],
)
def test_what_is_not_caught_is_reported_once(call: str, message: str) -> None:
    """As the first call of hyparflow in a script, which starts MPI."""
    result = run(RANKS, "-c", CALL.format(call), HYPARFLOW_TIMEOUT="60")
    assert result.code == 1, result.output
    assert result.output.count("Traceback (most recent call last)") == 1, result.output
    assert result.output.count(message) == 1, result.output
    assert "hyparflow: " in result.output and "on rank 0; all ranks are stopped." in result.output
    assert not result.left
