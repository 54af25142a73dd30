"""How fast attention is computed block by block, by the size of a block.

    TF_NUM_INTRAOP_THREADS=1 python benchmarks/longseq/core.py
    TF_NUM_INTRAOP_THREADS=1 python benchmarks/longseq/core.py --size 128 --blocks 512 1024

Multiplications and additions of matrix products are counted: two products in a forward,
five in a backward, which computes scores again.
"""

import argparse

import tensorflow as tf

from hyparflow.engine.sequence.attention_core import AttentionCore
from hyparflow.formats.text import aligned
from hyparflow.pipeline.attention_pattern import AttentionPattern
from hyparflow.planning.costs.measure_attention import block_seconds


def rates(block: int, heads: int, size: int, times: int) -> list[float]:
    """GFLOP/s of a forward, a backward, and both, of blocks with so many queries and keys."""
    core = AttentionCore(
        name="",
        heads=heads,
        key_heads=heads,
        repeats=1,
        scale=size**-0.5,
        pattern=AttentionPattern(causal=False),
    )
    took = block_seconds(core, size, size, tf.float32, block, times)
    product = 2 * heads * block**2 * size
    work = 2 * product, 5 * product
    found = [*zip(work, took, strict=True), (sum(work), sum(took))]
    return [flops / seconds / 1e9 for flops, seconds in found]


def main() -> None:
    parser = argparse.ArgumentParser(description="GFLOP/s of attention, block by block.")
    parser.add_argument("--blocks", type=int, nargs="+", default=[128, 256, 512, 1024, 2048])
    parser.add_argument("--heads", type=int, default=4)
    parser.add_argument("--size", type=int, default=64, help="of a head")
    parser.add_argument("--times", type=int, default=9)
    args = parser.parse_args()
    rows = [["queries and keys", "forward", "backward", "both"]]
    for block in args.blocks:
        found = rates(block, args.heads, args.size, args.times)
        rows.append([str(block), *(f"{rate:.1f}" for rate in found)])
    print(*aligned(rows), sep="\n")


if __name__ == "__main__":
    main()
