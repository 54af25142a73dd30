"""`hyparflow.place_experts`: a placement of experts, by a routing trace or a model.

TensorFlow is imported for a model only.
"""

from __future__ import annotations

import os
from typing import Any

from hyparflow.experts.place import place_experts as place_by_trace
from hyparflow.experts.placement import ExpertPlacement
from hyparflow.experts.trace import RoutingTrace

__all__ = ["place_experts"]


def place_experts(
    trace: Any,
    num_ranks: int,
    *,
    tokens: Any = None,
    nodes: int = 1,
    max_load: float | None = 1.1,
    replicate: int = 0,
    node_cost: float = 4.0,
    held_out: float = 0.25,
    seconds: float = 2.0,
    seed: int = 0,
) -> ExpertPlacement:
    """Place the experts of a model on ranks, so that few tokens change rank between layers.

    Each rank holds equally many experts of each layer. Experts that tokens visit one after another
    come to lie on the same rank, as far as a trace tells, in the time that is given. No MPI is
    needed, and with a trace no TensorFlow.

    Args:
        trace: A `hyparflow.RoutingTrace`, or the path of a file that one was saved to; or a model,
            whose routing is traced with `tokens`.
        num_ranks: Integer. The number of ranks, by which the experts of a layer are divisible.
        tokens: With a model, its inputs, as `hyparflow.trace_experts` takes them.
        nodes: Integer. The number of nodes that the ranks are on, as many on each: rank 0 and those
            after it on the first.
        max_load: Float or `None`. The most tokens that a rank computes in a layer, by the mean over
            ranks, on the tokens that are learnt from; `None` for no limit.
        replicate: Integer. How many experts of each layer all ranks hold: those that most tokens
            choose. Tokens stay where they are for them.
        node_cost: Float. What a change of node costs, where a change of rank within a node costs 1.
        held_out: Float. The share of the tokens that the placement is judged by, and not learnt
            from.
        seconds: Float. The time to search for. It ends sooner if nothing better is to be expected.
        seed: Integer. Of what is random. On a machine that is faster, or in more time, the same
            seed may give a better placement.

    Returns:
        A `hyparflow.ExpertPlacement`. Its `report` has the scores of held-out tokens, beside those
        of contiguous and random placements.

    Raises:
        ValueError: If an argument is not valid, or no placement keeps to `max_load`. For a model
            also what `hyparflow.trace_experts` raises.

    Source: ExFlow (Yao et al., arXiv 2401.08383), placement by affinity.
    """
    if tokens is not None:
        if isinstance(trace, RoutingTrace | str | os.PathLike):
            raise ValueError(
                "`tokens` are for a model, whose routing they show. Received: tokens and a routing "
                "trace, which has its own. Leave them out."
            )
        from hyparflow.model.experts.trace_experts import trace_experts

        trace = trace_experts(trace, tokens)
    return place_by_trace(
        trace,
        num_ranks,
        nodes=nodes,
        max_load=max_load,
        replicate=replicate,
        node_cost=node_cost,
        held_out=held_out,
        seconds=seconds,
        seed=seed,
    )
