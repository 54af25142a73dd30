"""The best placement by HiGHS, with a proof where the time is enough: an integer program."""

import time
from dataclasses import dataclass

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, linprog, milp
from scipy.sparse import (
    block_array,
    block_diag,
    csr_array,
    diags_array,
    eye_array,
    hstack,
    kron,
    vstack,
)

__all__ = ["ExactPlacement", "exact_placement", "most_that_may_stay"]


@dataclass(frozen=True)
class ExactPlacement:
    """What HiGHS found.

    Attributes:
        ranks: layers x experts; None if it found nothing in the time.
        stays: tokens that stay on their rank between layers.
        bound: no placement lets more stay.
        is_best: whether the one that was found is proved to be the best.
        seconds: of the processor.
    """

    ranks: np.ndarray | None
    stays: float
    bound: float
    is_best: bool
    seconds: float


def exact_placement(
    affinity: np.ndarray, visits: np.ndarray, num_ranks: int, limit: float, seconds: float
) -> ExactPlacement:
    """Let HiGHS place experts, equally many on each rank.

    A variable for each layer, expert and rank says whether the expert is there. One more for each
    but those of the last layer is the number of its tokens that stay on that rank: none, if the
    expert is elsewhere, else at most those of the next experts that are there. (With a variable for
    each pair of experts and rank instead HiGHS takes longer, and for 64 experts it does not keep to
    its time.)

    Args:
        affinity: (layers - 1) x experts x experts; tokens that go from one to the other.
        visits: layers x experts; tokens of each expert.
        num_ranks: the number of ranks.
        limit: the most tokens of a rank in a layer; may be infinite.
        seconds: the most time.
    """
    layers, count = visits.shape
    where, staying = layers * count * num_ranks, (layers - 1) * count * num_ranks
    rules, low, high = _rules(visits, num_ranks, limit)
    rules.resize(rules.shape[0], where + staying)
    links = _links(affinity.astype(float), num_ranks)
    begun = time.process_time()
    solved = milp(
        np.concatenate([np.zeros(where), -np.ones(staying)]),
        constraints=[
            LinearConstraint(rules, low, high),
            LinearConstraint(links, -np.inf, 0.0),
        ],
        integrality=np.concatenate([np.ones(where), np.zeros(staying)]),
        bounds=Bounds(0, np.concatenate([np.ones(where), np.full(staying, np.inf)])),
        options={"time_limit": seconds},
    )
    taken = time.process_time() - begun
    total = float(affinity.sum())
    bound = total if solved.mip_dual_bound is None else min(total, -solved.mip_dual_bound)
    if solved.x is None:
        return ExactPlacement(None, 0.0, bound, False, taken)
    ranks = solved.x[:where].reshape(layers, count, num_ranks).argmax(axis=2)
    stays = sum(
        int(counts[before[:, np.newaxis] == after].sum())
        for counts, before, after in zip(affinity, ranks, ranks[1:], strict=False)
    )
    return ExactPlacement(ranks, float(stays), bound, solved.status == 0, taken)


def _rules(
    visits: np.ndarray, num_ranks: int, limit: float
) -> tuple[csr_array, np.ndarray, np.ndarray]:
    """An expert is on one rank; a rank has its share of experts, and no more tokens than it may."""
    layers, count = visits.shape
    once = kron(eye_array(layers * count), np.ones((1, num_ranks)))
    share = kron(kron(eye_array(layers), np.ones((1, count))), eye_array(num_ranks))
    loads = [kron(row[np.newaxis].astype(float), eye_array(num_ranks)) for row in visits]
    load = block_array(
        [[loads[n] if n == m else None for m in range(layers)] for n in range(layers)]
    )
    each = np.full(layers * num_ranks, count // num_ranks)
    low = np.concatenate([np.ones(layers * count), each, np.full(layers * num_ranks, -np.inf)])
    high = np.concatenate([np.ones(layers * count), each, np.full(layers * num_ranks, limit)])
    return csr_array(block_array([[once], [share], [load]])), low, high


def _links(affinity: np.ndarray, num_ranks: int) -> csr_array:
    """No token of an expert stays on a rank without it, nor where its next experts are not."""
    pairs, count, _ = affinity.shape
    size = count // num_ranks
    # No more experts of the next layer than fit can be on its rank.
    most = np.sort(affinity, axis=2)[:, :, ::-1][:, :, :size].sum(axis=2).ravel()
    layer = csr_array((pairs * count * num_ranks, count * num_ranks))
    staying = eye_array(pairs * count * num_ranks)
    here = hstack([kron(diags_array(-most), eye_array(num_ranks)), layer, staying])
    after = block_diag([kron(csr_array(-counts), eye_array(num_ranks)) for counts in affinity])
    return csr_array(vstack([here, hstack([layer, after, staying])]))


def most_that_may_stay(affinity: np.ndarray, num_ranks: int) -> float:
    """Tokens that stay at most, since no expert shares its rank with more of a layer than fit.

    Each pair of layers is solved alone, so that no placement may come up to it.
    """
    count = affinity.shape[1]
    both = csr_array(
        block_array(
            [
                [kron(eye_array(count), np.ones((1, count)))],
                [kron(np.ones((1, count)), eye_array(count))],
            ]
        )
    )
    room = np.full(2 * count, count // num_ranks)
    found = [
        linprog(-counts.ravel(), A_ub=both, b_ub=room, bounds=(0, 1), method="highs").fun
        for counts in affinity
    ]
    return -float(sum(found))
