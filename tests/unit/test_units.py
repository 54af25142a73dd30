"""Units: stages divided into blocks that repeat."""

from __future__ import annotations

import itertools

from hypothesis import given, strategies

from hyparflow.pipeline.operations import Operation, OperationGraph
from hyparflow.pipeline.partition import make_partitioning
from hyparflow.pipeline.units import Units, make_units


def chain(count: int, cost: float = 1.0, state: dict[int, int] | None = None) -> OperationGraph:
    """Operations one after the other; `state` gives some a variable that they change."""
    operations = [
        Operation(str(n), (n,), (n + 1,), cost, frozenset({(state or {}).get(n, -n - 1)}))
        for n in range(count)
    ]
    return OperationGraph(tuple(operations), (0,), (count,), frozenset(range(1, count + 1)))


def units(text: str, cuts: tuple[int, ...] = (), least: float = 1.0, **more: object) -> Units:
    """Of a chain of operations whose kinds are letters."""
    graph = chain(len(text), **more)  # type: ignore[arg-type]
    stages = make_partitioning(graph, (0, *cuts, len(text)))
    found = make_units(graph, stages, [ord(letter) for letter in text], least)
    assert found is not None
    return found


def test_blocks_that_repeat_are_of_one_kind() -> None:
    found = units("xabababy", least=2.0)
    assert found.table.boundaries == (0, 1, 3, 5, 7, 8)
    assert found.kinds == (0, 1, 1, 1, 4)
    assert found.of_stage == (range(5),)


def test_a_unit_costs_enough() -> None:
    assert units("xababababy", least=4.0).table.boundaries == (0, 1, 5, 9, 10)
    assert units("xababababy", least=1e-3).table.boundaries == (0, 1, 3, 5, 7, 9, 10)


def test_stages_share_kinds() -> None:
    found = units("xababababy", (5,), least=2.0)
    assert found.of_stage == (range(3), range(3, 6))
    assert found.kinds == (0, 1, 1, 1, 1, 5)


def test_the_ends_are_like_no_other() -> None:
    """The first takes the data and the last ends with the loss."""
    assert units("aaaa").kinds == (0, 1, 1, 3)


def test_units_are_not_worth_it() -> None:
    def made(text: str, always: bool) -> Units | None:
        graph = chain(len(text))
        whole = make_partitioning(graph, (0, len(text)))
        return make_units(graph, whole, [ord(letter) for letter in text], 1.0, always)

    assert made("abcdefghii", False) is None
    assert made("abcdefghii", True) is not None
    assert made("abiiiiiiic", False) is not None


def test_operations_that_change_one_variable_stay_together() -> None:
    found = units("xabababababy", least=2.0, state={2: 7, 3: 7})
    assert found.table.boundaries == (0, 1, 5, 7, 9, 11, 12)


@given(strategies.lists(strategies.integers(0, 2), min_size=2, max_size=24), strategies.data())
def test_units_of_one_kind_are_alike(kinds: list[int], data: strategies.DataObject) -> None:
    graph = chain(len(kinds))
    cuts = data.draw(strategies.sets(strategies.integers(1, len(kinds) - 1), max_size=3))
    stages = make_partitioning(graph, (0, *sorted(cuts), len(kinds)))
    found = make_units(graph, stages, kinds, data.draw(strategies.sampled_from([1.0, 3.0])), True)
    assert found is not None
    boundaries = found.table.boundaries
    assert set(cuts) <= set(boundaries)
    for number, first in enumerate(found.kinds):
        mine, theirs = (kinds[boundaries[n] : boundaries[n + 1]] for n in (number, first))
        assert mine == theirs and first <= number
    flat = list(itertools.chain(*found.of_stage))
    assert flat == list(range(found.table.num_stages))


def test_fine_units_are_short_where_nothing_repeats() -> None:
    def lengths(text: str, cuts: tuple[int, ...] = (), **more: object) -> list[int]:
        graph = chain(len(text), **more)  # type: ignore[arg-type]
        stages = make_partitioning(graph, (0, *cuts, len(text)))
        kinds = [ord(letter) for letter in text]
        found = make_units(graph, stages, kinds, 1e9, always=True, fine=True)
        assert found is not None
        return [len(found.table.operations(n)) for n in range(found.table.num_stages)]

    assert lengths("abcdefghijklmnop") == [4, 4, 4, 4]
    assert max(lengths("abcdefghijklmnop", (9,))) < 6
    # A unit that costs little has several blocks, but there are several units.
    assert len(lengths("xy" + "ab" * 16)) > 4
    # Operations that change one variable stay together.
    assert max(lengths("abcdefghijklmnop", state={4: 7, 12: 7})) >= 9
