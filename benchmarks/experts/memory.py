"""Memory of ranks that train a mixture of experts, with all experts on each or shared out.

    mpirun -n 2 python benchmarks/experts/memory.py
    mpirun -n 2 python benchmarks/experts/memory.py --expert-parallel

Rank 0 prints, of each rank, the MiB before the model is built and at the peak of training.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import keras
import numpy as np

import hyparflow as hf
from hyparflow.comm.ranks import world

EXPERTS, WIDTH, HIDDEN, LAYERS = 32, 256, 1024, 4


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--expert-parallel", action="store_true")
    args = parser.parse_args()
    before = peak_mib()
    keras.utils.set_random_seed(1)
    with hf.deferred():
        model = byte_model()
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(1e-3), loss)
    tokens = np.random.default_rng(0).integers(0, 256, (64, 64))
    shared_out = {"expert_parallel": args.expert_parallel, "num_microbatches": 1}
    hf.fit(model, tokens, tokens, batch_size=16, verbose=0, gather=False, **shared_out)
    ranks, mine = world(), (before, peak_mib())
    found = [mine] if ranks is None else ranks.all_gather_objects(mine, "memory of ranks")
    if hf.is_leader():
        print(f"expert_parallel={args.expert_parallel}: MiB before and at the peak {found}")


def byte_model() -> keras.Model:
    """257 MiB of weights, nearly all of them experts'."""
    tokens = keras.Input([64], dtype="int32")
    x = keras.layers.Embedding(256, WIDTH)(tokens)
    for _ in range(LAYERS):
        y = keras.layers.LayerNormalization()(x)
        x = keras.layers.Add()([x, hf.layers.MixtureOfExperts(EXPERTS, HIDDEN, top_k=2)(y)])
    return keras.Model(tokens, keras.layers.Dense(256)(x))


def peak_mib() -> int:
    """The most memory that this process had so far."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) // 2**10


if __name__ == "__main__":
    main()
