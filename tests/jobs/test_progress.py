"""What a job shows while it plans, builds and compiles."""

from __future__ import annotations

import re

import pytest
from jobs.jobs import run

# Every step of planning and compiling is told, and is long enough for that.
TRAIN = """
import sys, time
import keras, numpy as np
import hyparflow as hf
from hyparflow.comm import progress

progress._SOON = progress._FIRST = 0.0
progress._BETWEEN = 0.02

class Slow(keras.layers.Dense):
    def call(self, x):
        time.sleep(0.1)
        return super().call(x)

layers = [(Slow if n % 2 else keras.layers.Dense)(8) for n in range(8)]
model = keras.Sequential([keras.Input((6,)), *layers])
model.compile("sgd", "mse")
{before}
for _ in range(2):
    hf.fit(model, np.ones((16, 6)), np.ones((16, 8)), batch_size=16, verbose={verbose},
           epochs=2, **{arguments})
    progress._FIRST = 100.0
"""


def lines(output: str) -> list[str]:
    return re.findall(r"hyparflow: (\w+(?: step)?, \d+ s(?:: .*)?)$", output, re.MULTILINE)


def test_the_leader_tells_what_is_compiled() -> None:
    arguments = {"num_partitions": 2, "schedule": "interleaved", "stages_per_partition": 2}
    result = run(2, "-c", TRAIN.format(verbose=2, arguments=arguments, before=""))
    assert result.code == 0, result.output
    found = lines(result.output)
    assert any(line.startswith("building") for line in found)
    steps = {line.partition(": ")[2] for line in found if line.startswith("first step")}
    assert any(re.match(r"rank 0 compiles stage 2 \(2 of 2 here\), backward", s) for s in steps)
    assert any(s.startswith("rank 1 compiles stage") for s in steps)
    # The first epoch's head, progress, the first epoch's result: nothing lies in between.
    order = re.findall(r"^Epoch 1|^Epoch 2|first step|^1/1 - ", result.output, re.MULTILINE)
    assert re.fullmatch("E1 S+ R E2 R E1 R E2 R", " ".join(_letters(order)).replace("S S", "S"))


def _letters(order: list[str]) -> list[str]:
    names = {"Epoch 1": "E1", "Epoch 2": "E2", "first step": "S", "1/1 - ": "R"}
    return [name for n, o in enumerate(order) if (name := names[o]) != "S" or order[n - 1] != o]


@pytest.mark.parametrize("verbose", [2, 0])
def test_planning_is_told_of(verbose: int) -> None:
    arguments = {"strategy": "auto", "num_partitions": 2}
    before = "import hyparflow.planning.costs_of_model as p, functools;"
    before += " p.measure = functools.partial(p.measure, budget=0.01)"
    result = run(2, "-c", TRAIN.format(verbose=verbose, arguments=arguments, before=before))
    assert result.code == 0, result.output
    found = lines(result.output)
    if not verbose:
        assert found == []
        return
    said = [line.partition(": ")[2] for line in found if line.startswith("planning")]
    assert any(re.match(r"measuring \d+ of \d+, round 1 of 2: ", words) for words in said)
