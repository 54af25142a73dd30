"""HYPARFLOW_DEBUG=comm on real ranks."""

from __future__ import annotations

import collections
import re

from jobs.jobs import run

TRAIN = """
import keras, numpy as np
import hyparflow as hf

model = keras.Sequential([keras.Input((6,)), *(keras.layers.Dense(8) for _ in range(4))])
model.compile("sgd", "mse")
hf.fit(model, np.ones((16, 6)), np.ones((16, 8)), batch_size=16, verbose=0,
       num_partitions=2, num_replicas=hf.size() // 2, num_microbatches=2)
"""
MESSAGE = r"rank (\d) (sends to|receives from) rank (\d), tag (\d+): (.*)$"


def test_each_message_is_told_at_both_ends() -> None:
    result = run(4, "-c", TRAIN, HYPARFLOW_DEBUG="comm")
    assert result.code == 0, result.output
    ends: dict[str, collections.Counter[tuple[str, ...]]] = collections.defaultdict(
        collections.Counter
    )
    for mine, action, peer, tag, what in re.findall(MESSAGE, result.output, re.MULTILINE):
        way = (mine, peer) if action == "sends to" else (peer, mine)
        ends[action][(*way, tag, what)] += 1
    assert ends["sends to"] == ends["receives from"]
    # Two micro-batches of 4 rows each, from partition 0 to 1 of each replica, which are ranks
    # 0 and 1, and 2 and 3; and their gradients back.
    ways = [key[:2] for key in ends["sends to"].elements() if key[3] == "float32 (4, 8)"]
    counts = collections.Counter(ways)
    assert counts == {("0", "1"): 2, ("2", "3"): 2, ("1", "0"): 2, ("3", "2"): 2}
    for replicas in ("0, 2", "1, 3"):
        assert f"takes part in a sum of ranks {replicas}: float32" in result.output


def test_what_cannot_be_printed_is_refused() -> None:
    result = run(2, "-c", TRAIN, HYPARFLOW_DEBUG="everything")
    assert result.code != 0
    assert "HYPARFLOW_DEBUG takes comm. Received: everything" in result.output
