"""How fast attention is computed block by block, by the size of a block.

    python benchmarks/longseq/core.py
    python benchmarks/longseq/core.py --heads 8 --size 128 --blocks 512 1024

One thread. Multiplications and additions of matrix products are counted: two products in a forward,
five in a backward, which computes scores again.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import tensorflow as tf

from hyparflow.engine.sequence.attention_blocks import AttentionBlocks, Block
from hyparflow.engine.sequence.attention_core import AttentionCore
from hyparflow.formats.text import aligned
from hyparflow.pipeline.attention_pattern import AttentionPattern


def seconds(run: Callable[[], Any], times: int) -> float:
    """The median time of `run`, after one that compiles."""
    run()
    found = []
    for _ in range(times):
        start = time.perf_counter()
        run()
        found.append(time.perf_counter() - start)
    return statistics.median(found)


def rates(block: int, heads: int, size: int, times: int) -> tuple[float, float, float]:
    """GFLOP/s of a forward, a backward, and both, of blocks with so many queries and keys."""
    core = AttentionCore(
        name="",
        heads=heads,
        key_heads=heads,
        repeats=1,
        scale=size**-0.5,
        pattern=AttentionPattern(causal=True),
    )
    blocks = AttentionBlocks(core, 1, 0, tf.float32, training=True)
    query, key, value = (tf.random.normal([1, heads, block, size]) for _ in range(3))
    starts, seed = (tf.constant(block), tf.constant(0)), tf.constant([0, 0], tf.int64)
    given = Block((query, key, value), starts, seed, is_partial=False)
    means, logs = blocks.forward(given, None)
    back = means, tf.zeros_like(logs), logs
    sums = blocks.backward(given, back, (None, None, None))
    took = (
        seconds(lambda: blocks.forward(given, (means, logs)), times),
        seconds(lambda: blocks.backward(given, back, sums), times),
    )
    product = 2 * heads * block**2 * size
    work = 2 * product, 5 * product
    each = [flops / time / 1e9 for flops, time in zip(work, took, strict=True)]
    return each[0], each[1], sum(work) / sum(took) / 1e9


def main() -> None:
    parser = argparse.ArgumentParser(description="GFLOP/s of attention, block by block.")
    parser.add_argument("--blocks", type=int, nargs="+", default=[128, 256, 512, 1024, 2048])
    parser.add_argument("--heads", type=int, default=4)
    parser.add_argument("--size", type=int, default=64, help="of a head")
    parser.add_argument("--times", type=int, default=9)
    args = parser.parse_args()
    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    rows = [["queries and keys", "forward", "backward", "both"]]
    for block in args.blocks:
        found = rates(block, args.heads, args.size, args.times)
        rows.append([str(block), *(f"{rate:.1f}" for rate in found)])
    print(*aligned(rows), sep="\n")


if __name__ == "__main__":
    main()
