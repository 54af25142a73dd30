"""The same GPT in PyTorch, its sequences shared by all-to-all (DeepSpeed-Ulysses) over gloo.

    PYTHON_WITH_TORCH benchmarks/longseq/torch_case.py --ranks 2 --length 8192

Attention is `scaled_dot_product_attention`, which keeps no scores. Weights are summed over ranks by
all-reduce after the backward. One thread a rank. Prints each rank's peak of memory above its
imports, and seconds of steps.
"""

import argparse
import os
import resource
import socket
import statistics
import time
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn
from torch.nn import functional

VOCABULARY, WIDTH, BLOCKS, HEADS = 1024, 256, 4, 4
MIB = 1 << 20


class Exchange(torch.autograd.Function):
    """From some positions of all heads to all positions of some heads, or back."""

    @staticmethod
    def forward(context: Any, x: torch.Tensor, to_heads: bool) -> torch.Tensor:
        context.to_heads = to_heads
        return exchanged(x, to_heads)

    @staticmethod
    def backward(context: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        return exchanged(gradient, not context.to_heads), None


def exchanged(x: torch.Tensor, to_heads: bool) -> torch.Tensor:
    """(positions, heads, size), by one all-to-all."""
    ranks = dist.get_world_size() if dist.is_initialized() else 1
    if ranks == 1:
        return x
    positions, heads, size = x.shape
    if to_heads:
        sent = x.reshape(positions, ranks, heads // ranks, size).transpose(0, 1).contiguous()
        made = torch.empty_like(sent)
        dist.all_to_all_single(made, sent)
        return made.reshape(ranks * positions, heads // ranks, size)
    sent = x.reshape(ranks, positions // ranks, heads, size).contiguous()
    made = torch.empty_like(sent)
    dist.all_to_all_single(made, sent)
    return made.transpose(0, 1).reshape(positions // ranks, ranks * heads, size)


class Block(nn.Module):
    """A pre-normalised block with causal attention."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.into, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.wide, self.narrow = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        parts = self.into(self.first(x)).reshape(len(x), 3, HEADS, WIDTH // HEADS).unbind(1)
        query, key, value = (Exchange.apply(part, True).transpose(0, 1) for part in parts)
        made = functional.scaled_dot_product_attention(
            query[None], key[None], value[None], is_causal=True
        )
        made = Exchange.apply(made[0].transpose(0, 1), False)
        x = x + self.out(made.reshape(len(x), WIDTH))
        return x + self.narrow(functional.gelu(self.wide(self.second(x))))


class Model(nn.Module):
    """Predicts the next token."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(VOCABULARY, WIDTH)
        self.blocks = nn.ModuleList(Block() for _ in range(BLOCKS))
        self.last, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, VOCABULARY)

    def forward(self, tokens: torch.Tensor, first: int) -> torch.Tensor:
        at = torch.arange(first, first + len(tokens))[:, None]
        rates = torch.exp(torch.arange(0, WIDTH, 2) * (-9.21 / WIDTH))[None]
        x = self.embed(tokens) + torch.cat([torch.sin(at * rates), torch.cos(at * rates)], 1)
        for block in self.blocks:
            x = block(x)
        return self.head(self.last(x))


def train(rank: int, ranks: int, port: int, length: int, steps: int) -> None:
    """Some steps of one rank."""
    torch.set_num_threads(1)
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    if ranks > 1:
        dist.init_process_group("gloo", rank=rank, world_size=ranks)
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
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    arguments = args.ranks, port, args.length, args.steps
    mp.spawn(train, arguments, nprocs=args.ranks)


if __name__ == "__main__":
    main()
