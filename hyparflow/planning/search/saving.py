"""In which order the search lets layouts do what needs less memory."""

from __future__ import annotations

from collections.abc import Callable

from hyparflow.options import Options
from hyparflow.planning.search.layouts import consider, fits
from hyparflow.planning.search.predict import Prediction
from hyparflow.planning.search.problem import Constraints, Problem, Saving

__all__ = ["search"]


_AGAIN = ("segments", "block")


def _rungs(options: Options) -> list[list[Saving]]:
    """The savings to choose from; those of a list only where nothing of the lists before fits.

    What the user gave is in all of them. Sharing out the optimizer's state costs next to no time;
    a model that is never whole asks for a script that builds it so.
    """
    given = options.recompute
    without = [None, *_AGAIN] if given == "auto" else [given]
    more = without if given is not None else [None, *_AGAIN]
    shards = options.shard_optimizer
    may_shard = shards or options.num_replicas != 1
    allowed = (  # (recompute, shard_optimizer, apart)
        (without, shards, False),
        (without, may_shard, False),
        (more, may_shard, False),
        (without, may_shard, True),
        (more, may_shard, True),
    )
    tried: set[Saving] = set()
    rungs = []
    for recompute, shard_optimizer, apart in allowed:
        fresh = [Saving(how, shard_optimizer, apart) for how in recompute]
        rungs.append([saving for saving in fresh if saving not in tried])
        tried.update(fresh)
    return [rung for rung in rungs if rung]


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
    for rung in _rungs(constraints.options):
        for problem in map(problem_with, rung):
            whole_fits = limit is None or problem.costs.fixed_bytes <= limit
            if problem.saving.apart or whole_fits:  # no use in looking for layouts otherwise
                found += consider(problem, constraints, say)
        if fits(found, limit):
            break
    return found
