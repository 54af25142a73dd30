"""In which order the search lets layouts do what needs less memory."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence

from hyparflow.engine.sequence.attention_core import require_heads
from hyparflow.engine.sequence.chunks import SHORTEST
from hyparflow.options import Options
from hyparflow.pipeline.token_layout import TokenLayout
from hyparflow.planning.costs.costs import Costs
from hyparflow.planning.search.layouts import consider, fits, has_layouts, no_layout
from hyparflow.planning.search.predict import Prediction
from hyparflow.planning.search.problem import Constraints, Problem, Saving
from hyparflow.planning.search.sequence_layout import SequenceLayout

__all__ = ["rungs", "search", "sequence_layouts"]

_AGAIN = ("segments", "block")
# Positions of a chunk: those that are faster, and those that need less memory.
_CHUNKS = (2 * SHORTEST, SHORTEST)
_STORES = ("memory", "disk")


def rungs(
    options: Options, sequences: Sequence[Sequence[SequenceLayout]], has_peers: bool
) -> list[list[Saving]]:
    """The savings to choose from; those of a list only where nothing of the lists before fits.

    What the user gave is in all of them. Sharing out the optimizer's state costs next to no time,
    and is not done beside sharing out experts; a model that is never whole asks for a script that
    builds it so.

    Args:
        options: what the user gave.
        sequences: the ways to divide sequences, in rungs as well.
        has_peers: whether several ranks may hold the same weights.
    """
    shards = options.shard_optimizer
    may_shard = shards or (has_peers and not options.expert_parallel)
    given = options.recompute
    again = (given,) if given in _AGAIN else (None, "block")
    divided = [
        [Saving(how, shard, apart, way) for way in ways]
        for apart, ways, how, shard in itertools.product(
            (False, True), sequences, again, (shards, may_shard)
        )
    ]
    if options.divides_sequences:
        return divided
    experts = options.expert_parallel
    without = [None, *_AGAIN] if given == "auto" else [given]
    more = without if given is not None else [None, *_AGAIN]
    whole = [
        [Saving(how, shard, apart, expert_parallel=experts) for how in several]
        for several, shard, apart in (
            (without, shards, False),
            (without, may_shard, False),
            (more, may_shard, False),
            (without, may_shard, True),
            (more, may_shard, True),
        )
    ]
    if given in _AGAIN or not sequences:
        return whole
    shared = [way for way in sequences[0] if way.num_shards > 1]  # as fast as replicas
    whole[0] += [Saving(None, shards, False, way) for way in shared]
    half = len(divided) // 2
    return [*whole[:3], *divided[:half], *whole[3:], *divided[half:]]


def _fresh(found: Sequence[Sequence[Saving]]) -> Iterator[list[Saving]]:
    """The rungs, each without what is in those before."""
    tried: set[Saving] = set()
    for rung in found:
        fresh = [saving for saving in dict.fromkeys(rung) if saving not in tried]
        tried.update(fresh)
        if fresh:
            yield fresh


def sequence_layouts(costs: Costs, constraints: Constraints) -> list[list[SequenceLayout]]:
    """The ways to divide sequences: first those of long chunks, which wait in memory."""
    if not costs.attention or costs.length is None:
        return []
    options, length = constraints.options, costs.length
    heads = math.gcd(*(layer.heads for layer in costs.attention))
    others = (options.num_partitions or 1) * (options.num_replicas or 1)
    counts = [n for n in range(1, constraints.num_ranks + 1) if heads % n == 0]
    if options.num_sequence_shards is not None:
        counts = [options.num_sequence_shards]
        for layer in costs.attention:
            require_heads(layer.heads, options.num_sequence_shards, "attention")
    known = options.known_chunks
    TokenLayout(length, known, max(1, options.num_sequence_shards or 1))  # or refused
    lengths = (math.ceil(length / known),) if known > 1 else _CHUNKS
    stores = _STORES if options.sequence_store == "memory" else (options.sequence_store,)
    return [
        [
            SequenceLayout(shards, chunks, store)
            for shards in counts
            for chunks in [math.ceil(length / each)]
            if constraints.num_ranks % (shards * others) == 0 and shards * chunks <= length
        ]
        for store, each in itertools.product(stores, lengths)
    ]


def search(
    problem_with: Callable[[Saving], Problem],
    constraints: Constraints,
    say: Callable[[str], object] = lambda text: None,
) -> list[Prediction]:
    """The predictions of all layouts worth one, in any order, whether they fit or not.

    Args:
        problem_with: the problem to solve, with a saving.
        constraints: what the user fixed.
        say: called with a line of progress.

    Raises:
        ValueError: if no layout agrees with `constraints`.
    """
    limit = constraints.memory_limit
    found: list[Prediction] = []
    options = constraints.options
    usual = problem_with(Saving(expert_parallel=options.expert_parallel))
    # Tokens of divided sequences do not come together, neither in experts nor in their loss.
    whole = options.expert_parallel or bool(usual.balanced)
    sequences = [] if whole else sequence_layouts(usual.costs, constraints)
    may_repeat = bool(sequences) or options.num_replicas != 1
    has_peers = may_repeat and constraints.num_ranks > (options.num_partitions or 1)
    for rung in _fresh(rungs(options, sequences, has_peers)):
        for problem in map(problem_with, rung):
            whole_fits = limit is None or problem.costs.fixed_bytes <= limit
            # There is no use in looking for layouts otherwise.
            if (problem.saving.apart or whole_fits) and has_layouts(problem, constraints):
                found += consider(problem, constraints, say)
        if fits(found, limit):
            break
    if not found:
        raise no_layout(usual, constraints)
    return found
