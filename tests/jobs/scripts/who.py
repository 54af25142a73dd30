"""Says who each rank is, and what it was given."""

import os

import hyparflow as hf

given = {name: os.environ.get(name) for name in ("OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES")}
print(f"rank {hf.rank()} of {hf.size()}, {given}", flush=True)
