"""One point of the benchmark: one rank that trains a GPT on sequences of one length, and ends.

    python case.py SPEC.json             (by mpirun, for one rank or several)

SPEC.json says what and how, and names a folder, where each rank writes "rank-N.json".
"""

import json
import resource
import sys
import time
from pathlib import Path
from typing import Any

import keras
import keras_hub
import numpy as np
import psutil
from keras import layers, ops

import hyparflow as hf

VOCABULARY, WIDTH, BLOCKS, HEADS = 1024, 256, 4, 4


class GatheredAttention(layers.Layer):
    """What attention costs a rank that gathers all positions for some heads, and keeps all of it.

    It stands for all-to-all alone, without blocks (DeepSpeed-Ulysses by automatic differentiation):
    the tensors are those of one rank of several, but what others would send are copies.
    """

    def __init__(self, shards: int) -> None:
        super().__init__()
        self._shards = shards
        self._query, self._key, self._value = (
            layers.EinsumDense("bsd,dhk->bshk", (None, HEADS, WIDTH // HEADS)) for _ in range(3)
        )
        self._last = layers.EinsumDense("bshk,hkd->bsd", (None, WIDTH))

    def call(self, x: Any) -> Any:
        """Attention of a quarter of the heads at all positions, for a quarter of the positions."""
        heads = HEADS // self._shards
        own = [dense(x)[:, :, :heads] for dense in (self._query, self._key, self._value)]
        query, key, value = (ops.tile(part, [1, self._shards, 1, 1]) for part in own)
        made = ops.dot_product_attention(query, key, value, is_causal=True)
        made = made[:, : ops.shape(x)[1]]
        return self._last(ops.tile(made, [1, 1, self._shards, 1]))


class StepTimes(keras.callbacks.Callback):
    """Seconds of wall and processor time of each step."""

    def __init__(self) -> None:
        super().__init__()
        self.steps: list[tuple[float, float]] = []

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        self._start = time.perf_counter(), time.process_time()

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        wall, cpu = self._start
        self.steps.append((time.perf_counter() - wall, time.process_time() - cpu))


def build(shards_alone: int = 0) -> keras.Model:
    """A GPT of Keras's layers; `shards_alone`: one rank of so many, by `GatheredAttention`."""
    tokens = keras.Input((None,), dtype="int32")
    x = layers.Embedding(VOCABULARY, WIDTH)(tokens)
    x = layers.Add()([x, keras_hub.layers.SinePositionEncoding()(x)])
    for _ in range(BLOCKS):
        y = layers.LayerNormalization()(x)
        if shards_alone:
            y = GatheredAttention(shards_alone)(y)
        else:
            y = layers.MultiHeadAttention(HEADS, WIDTH // HEADS)(y, y, use_causal_mask=True)
        x = layers.Add()([x, y])
        y = layers.Dense(4 * WIDTH, "gelu")(layers.LayerNormalization()(x))
        x = layers.Add()([x, layers.Dense(WIDTH)(y)])
    return keras.Model(tokens, layers.Dense(VOCABULARY)(layers.LayerNormalization()(x)))


def main() -> None:
    spec = json.loads(Path(sys.argv[1]).read_text())
    bare = psutil.Process().memory_info().rss
    keras.utils.set_random_seed(0)
    alone, length = spec["shards_alone"], spec["length"]
    model = build(alone)
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    own = length // alone if alone else length
    random = np.random.default_rng(0)
    tokens = random.integers(0, VOCABULARY, (spec["steps"], own + 1)).astype("int32")
    divided = "num_sequence_chunks" in (spec["options"] or {})
    times = StepTimes()
    data = tokens[:, :-1], tokens[:, 1:]
    how: dict[str, Any] = {"batch_size": 1, "verbose": 0, "callbacks": [times], "shuffle": False}
    if spec["options"] is None:
        model.fit(*data, **how)
    else:
        hf.fit(model, *data, **how, **spec["options"])
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    stalls = hf.parallelize(model, **spec["options"]).sequence_counts.stalls if divided else 0.0
    found = {"peak": peak - bare, "bare": bare, "steps": times.steps, "stalls": stalls}
    Path(spec["folder"], f"rank-{hf.rank()}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main()
