"""Where a step of PyTorch spends its time, by kinds of operations, from PyTorch's own profiler.

    python benchmarks/kernels/operations_of_torch.py resnet110 --batch 64

One thread. Runs in an environment that has PyTorch and NumPy, and need not have more.
"""

import argparse
import os
import sys
import time
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from samples import data
from torch.profiler import ProfilerActivity, profile
from torch_models import build
from torch_steps import alone


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("model")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--lines", type=int, default=14)
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    step = alone(args.model, build(args.model))
    x, y = map(torch.from_numpy, data(args.model, args.batch))
    y = y.long()
    for _ in range(2):
        step(x, y)
    start = time.process_time()
    step(x, y)
    whole = time.process_time() - start
    with profile(activities=[ProfilerActivity.CPU]) as known:
        step(x, y)
    print(f"{args.model}, batch {args.batch}, PyTorch: {whole:.3f} CPU s a step")
    kinds = sorted(known.key_averages(), key=lambda kind: -kind.self_cpu_time_total)
    for kind in kinds[: args.lines]:
        spent = kind.self_cpu_time_total / 1e6
        print(f"  {kind.key[:44]:44} {spent:7.3f} s {spent / whole:6.1%}")


if __name__ == "__main__":
    main()
