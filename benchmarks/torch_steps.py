"""Steps of PyTorch: in one process, in replicas, and in a pipeline."""

import copy
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from cuts import equal_parts, number_of_microbatches
from torch import Tensor, nn
from torch.distributed import pipelining
from torch.nn.parallel import DistributedDataParallel
from torch_models import Stage, loss, make_optimizer

__all__ = ["Step", "alone", "pipeline", "replicas"]

Step = Callable[[Tensor, Tensor], float | None]  # takes a global batch; gives a loss, if it has one

_SCHEDULES = {
    "gpipe": pipelining.ScheduleGPipe,
    "1f1b": pipelining.Schedule1F1B,
    "interleaved": pipelining.ScheduleInterleaved1F1B,
}
_REPETITIONS = 8  # of measured blocks


def alone(name: str, blocks: list[nn.Module]) -> Step:
    """All of each batch, in this process."""
    return _whole(name, Stage(blocks))


def replicas(name: str, blocks: list[nn.Module]) -> Step:
    """A part of each batch on each rank; gradients are averaged."""
    # So gradients are summed where they are, without copies.
    replica = DistributedDataParallel(Stage(blocks), gradient_as_bucket_view=True)
    step = _whole(name, replica)

    def take(x: Tensor, y: Tensor) -> float | None:
        rows = len(x) // dist.get_world_size()
        own = slice(dist.get_rank() * rows, (dist.get_rank() + 1) * rows)
        return step(x[own], y[own])

    return take


def _whole(name: str, model: nn.Module) -> Step:
    optimizer = make_optimizer(name, model)

    def step(x: Tensor, y: Tensor) -> float:
        optimizer.zero_grad()
        value = loss(model(x), y)
        value.backward()
        optimizer.step()
        return value.item()

    return step


def pipeline(
    name: str, blocks: list[nn.Module], sample: Tensor, batch: int, options: dict[str, Any]
) -> Step:
    """Stages of equal measured costs; rank r has the stages r, r + ranks and so on."""
    ranks, rank = dist.get_world_size(), dist.get_rank()
    count = ranks * options["stages_per_rank"]
    chunks = number_of_microbatches(batch, options["most_microbatches"])
    parts = _agreed_parts(blocks, sample[: batch // chunks], count)
    modules = {
        number: Stage([blocks[index] for index in parts[number]])
        for number in range(rank, count, ranks)
    }
    stages = [
        pipelining.PipelineStage(module, number, count, torch.device("cpu"))
        for number, module in modules.items()
    ]
    # Gradients need not be divided afterwards if the losses of micro-batches sum up to the whole.
    schedule = _SCHEDULES[options["schedule"]](
        stages if options["schedule"] == "interleaved" else stages[0],
        chunks,
        loss_fn=lambda logits, y: loss(logits, y) / chunks,
        scale_grads=False,
    )
    optimizer = make_optimizer(name, nn.ModuleList(modules.values()))

    def step(x: Tensor, y: Tensor) -> float | None:
        optimizer.zero_grad()
        losses: list[Tensor] = []
        schedule.step(
            *([x] if rank == 0 else []),
            target=y if rank == ranks - 1 else None,
            losses=losses,
            return_outputs=False,
        )
        optimizer.step()
        return float(sum(value.item() for value in losses)) if rank == ranks - 1 else None

    return step


def _agreed_parts(blocks: list[nn.Module], x: Tensor, parts: int) -> list[range]:
    """The blocks of each stage, as the first rank measures them while the others wait."""
    agreed: list[Any] = [None]
    if dist.get_rank() == 0:
        agreed = [equal_parts(_costs(blocks, x), parts)]
    dist.broadcast_object_list(agreed)
    if dist.get_rank() == 0:
        print(f"stages of {[len(part) for part in agreed[0]]} blocks, {len(x)} rows", flush=True)
    return agreed[0]


def _costs(blocks: list[nn.Module], x: Tensor) -> list[float]:
    """Seconds of a forward and a backward of each; blocks that are alike take the same.

    On copies, for they change moving averages. Of all processor times the least is what other work
    on the machine has disturbed the least.
    """
    least: dict[str, float] = {}
    for _ in range(_REPETITIONS):
        outputs, kinds = x, []
        for block in blocks:
            inputs = outputs.detach().requires_grad_(bool(kinds))  # no gradient of what is given
            kinds.append(f"{block} of {list(inputs.shape)}")
            stage = Stage([copy.deepcopy(block)])
            start = time.process_time()
            outputs = stage(inputs)
            outputs.backward(torch.ones_like(outputs))
            taken = time.process_time() - start
            least[kinds[-1]] = min(taken, least.get(kinds[-1], taken))
    return [least[kind] for kind in kinds]
