"""The same GPT in PyTorch, its sequences shared by all-to-all (DeepSpeed-Ulysses) over gloo.

    PYTHON_WITH_TORCH benchmarks/longseq/torch_case.py --ranks 2 --length 8192

Attention is `scaled_dot_product_attention`, which keeps no scores. Weights are summed over ranks by
all-reduce after the backward. One thread a rank. Prints each rank's peak of memory above its
imports, and seconds of steps.
"""

import argparse
import resource
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn
from torch.nn import functional

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from torch_models import TransformerBlock

VOCABULARY, WIDTH, BLOCKS, HEADS = 1024, 256, 4, 4
MIB = 1 << 20


class Exchange(torch.autograd.Function):
    """From some positions of all heads to all positions of some heads, or back."""

    @staticmethod
    def forward(context: Any, x: Tensor, to_heads: bool) -> Tensor:
        context.to_heads = to_heads
        return exchanged(x, to_heads)

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return exchanged(gradient, not context.to_heads), None


def exchanged(x: Tensor, to_heads: bool) -> Tensor:
    """(heads, positions, size), by one all-to-all."""
    ranks = dist.get_world_size() if dist.is_initialized() else 1
    if ranks == 1:
        return x
    parted, joined = (0, 1) if to_heads else (1, 0)
    sent = torch.stack(x.chunk(ranks, parted))
    made = torch.empty_like(sent)
    dist.all_to_all_single(made, sent)
    return torch.cat(made.unbind(0), joined)


class SharedBlock(TransformerBlock):
    """A block of one row, whose positions ranks share."""

    def attend(self, x: Tensor) -> Tensor:
        parts = self.project(x).unflatten(-1, (3, self.heads, -1)).permute(1, 2, 0, 3)
        each = (Exchange.apply(part, True)[None] for part in parts)
        made = functional.scaled_dot_product_attention(*each, is_causal=True)[0]
        return self.combine(Exchange.apply(made, False).transpose(0, 1).flatten(1))


class Model(nn.Module):
    """Predicts the next token."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(VOCABULARY, WIDTH)
        self.blocks = nn.Sequential(*(SharedBlock(WIDTH, HEADS) for _ in range(BLOCKS)))
        self.head = nn.Sequential(nn.LayerNorm(WIDTH), nn.Linear(WIDTH, VOCABULARY))

    def forward(self, tokens: Tensor, first: int) -> Tensor:
        at = torch.arange(first, first + len(tokens))[:, None]
        rates = torch.exp(torch.arange(0, WIDTH, 2) * (-9.21 / WIDTH))[None]
        positions = torch.cat([torch.sin(at * rates), torch.cos(at * rates)], 1)
        return self.head(self.blocks(self.embed(tokens) + positions))


def train(rank: int, ranks: int, meet: str, length: int, steps: int) -> None:
    """Some steps of one rank; the ranks meet by a file."""
    torch.set_num_threads(1)
    if ranks > 1:
        dist.init_process_group("gloo", meet, rank=rank, world_size=ranks)
    bare = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    torch.manual_seed(0)
    model = Model()
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    text = torch.randint(0, VOCABULARY, (length + 1,))
    own = length // ranks
    tokens, following = (text[n + rank * own : n + (rank + 1) * own] for n in (0, 1))
    walls, cpus = [], []
    for _ in range(steps):
        wall, cpu = time.perf_counter(), time.process_time()
        optimizer.zero_grad()
        logits = model(tokens, rank * own)
        (functional.cross_entropy(logits, following) / ranks).backward()
        if ranks > 1:
            for weight in model.parameters():
                dist.all_reduce(weight.grad)
        optimizer.step()
        walls.append(time.perf_counter() - wall)
        cpus.append(time.process_time() - cpu)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - bare
    wall, cpu = (statistics.median(times[1:] or times) for times in (walls, cpus))
    print(
        f"rank {rank} of {ranks}, {length} tokens: peak {peak / MIB:.0f} MiB, step {wall:.2f} s, "
        f"{1e3 * cpu * ranks / length:.3f} CPU ms a token",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description="A GPT in PyTorch, by all-to-all.")
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--length", type=int, default=8192)
    parser.add_argument("--steps", type=int, default=4)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        meet = Path(folder, "ranks").as_uri()
        mp.spawn(train, (args.ranks, meet, args.length, args.steps), nprocs=args.ranks)


if __name__ == "__main__":
    main()
