"""How evenly the experts of a layer can be dealt to ranks that have room for so many each."""

from __future__ import annotations

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import block_array, csr_array, eye_array, kron

__all__ = ["balanced_ranks", "largest_load"]

_MOST_EXCHANGES = 10_000
_NOTHING = 1e-9


def largest_load(visits: np.ndarray, ranks: np.ndarray, num_ranks: int) -> float:
    """The tokens of the rank that has most."""
    return float(np.bincount(ranks, visits, minlength=num_ranks).max())


def balanced_ranks(
    visits: np.ndarray, room: np.ndarray, limit: float, seconds: float
) -> np.ndarray:
    """Ranks for experts, as many on each as have room, with no more tokens than `limit`.

    First by simple means; where they do not reach the limit, as an integer program.

    Args:
        visits: the tokens of each expert.
        room: the number of experts of each rank.
        limit: the most tokens of a rank.
        seconds: for the integer program.

    Returns:
        The rank of each expert: within the limit, or the most even that was found.
    """
    ranks = _exchanged(visits, _dealt(visits, room), len(room))
    if largest_load(visits, ranks, len(room)) <= limit + _NOTHING:
        return ranks
    exact = _solved(visits, room, seconds)
    return min((ranks, exact), key=lambda found: largest_load(visits, found, len(room)))


def _dealt(visits: np.ndarray, room: np.ndarray) -> np.ndarray:
    """The experts with most tokens first, each to the rank that has least and has room."""
    room = room.copy()
    loads = np.zeros(len(room))
    ranks = np.empty(len(visits), int)
    for expert in np.argsort(-visits, kind="stable"):
        rank = int(np.where(room > 0, loads, np.inf).argmin())
        ranks[expert] = rank
        loads[rank] += visits[expert]
        room[rank] -= 1
    return ranks


def _exchanged(visits: np.ndarray, ranks: np.ndarray, num_ranks: int) -> np.ndarray:
    """Exchange experts of the fullest rank with others while the fuller of the two gets less."""
    ranks = ranks.copy()
    for _ in range(_MOST_EXCHANGES):
        loads = np.bincount(ranks, visits, minlength=num_ranks)
        fullest = int(loads.argmax())
        mine, others = np.flatnonzero(ranks == fullest), np.flatnonzero(ranks != fullest)
        moved = visits[mine][:, np.newaxis] - visits[others]
        fuller = np.maximum(loads[fullest] - moved, loads[ranks[others]] + moved)
        if not fuller.size or fuller.min() >= loads[fullest] - _NOTHING:
            break
        one, other = divmod(int(fuller.argmin()), len(others))
        ranks[mine[one]], ranks[others[other]] = ranks[others[other]], fullest
    return ranks


def _solved(visits: np.ndarray, room: np.ndarray, seconds: float) -> np.ndarray:
    """The most even ranks that HiGHS finds in this time."""
    count, num_ranks = len(visits), len(room)
    each = kron(eye_array(count), np.ones((1, num_ranks)))  # an expert is on one rank
    full = kron(np.ones((1, count)), eye_array(num_ranks))  # as many on each
    loads = kron(visits[np.newaxis].astype(float), eye_array(num_ranks))
    rows = block_array(
        [[each, None], [full, None], [loads, csr_array(-np.ones((num_ranks, 1)))]], format="csr"
    )
    low = np.concatenate([np.ones(count), room, np.full(num_ranks, -np.inf)])
    high = np.concatenate([np.ones(count), room, np.zeros(num_ranks)])
    solved = milp(
        np.append(np.zeros(count * num_ranks), 1.0),
        constraints=LinearConstraint(rows, low, high),
        integrality=np.append(np.ones(count * num_ranks), 0),
        bounds=Bounds(0, np.append(np.ones(count * num_ranks), np.inf)),
        options={"time_limit": seconds},
    )
    if solved.x is None:
        return _dealt(visits, room)
    return solved.x[:-1].reshape(count, num_ranks).argmax(axis=1)
