"""Placements of experts: what is none is refused, files keep all, scores are those of a walk."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from routers import divisors, followed, likely_trace, traces

import hyparflow as hf

ONE_EACH = (((0,), (1,)), ((1,), (0,)))


@st.composite
def placements(draw: st.DrawFn, num_layers: int, num_experts: int) -> hf.ExpertPlacement:
    """Any placement, with any copies."""
    num_ranks = draw(st.integers(1, 6))
    holders = st.sets(st.integers(0, num_ranks - 1), min_size=1).map(lambda s: tuple(sorted(s)))
    layer = st.tuples(*[holders] * num_experts)
    return hf.ExpertPlacement(
        draw(st.tuples(*[layer] * num_layers)),
        num_ranks,
        draw(st.sampled_from(divisors(num_ranks))),
    )


@given(st.data())
def test_scores_are_those_of_a_walk(data: st.DataObject) -> None:
    trace = data.draw(traces())
    placement = data.draw(placements(trace.num_layers, trace.num_experts))
    score = placement.score(trace)
    expected = followed(placement, trace)
    for name, value in expected.items():
        assert getattr(score, name) == pytest.approx(value), name
    traffic = np.array(score.traffic)
    assert traffic.shape == (placement.num_ranks,) * 2
    assert traffic.sum() == pytest.approx(float(trace.num_layers > 1))
    assert np.mean(score.by_layer or [0]) == pytest.approx(score.rank_changes)


def test_traffic_goes_from_row_to_column() -> None:
    """Of two tokens one goes from rank 0 to rank 1 and stays there, one stays on rank 1."""
    placement = hf.ExpertPlacement((((0,), (1,)),) * 3, 2)
    score = placement.score(hf.RoutingTrace([[0, 1, 1], [1, 1, 1]], 2))
    assert score.traffic == ((0.0, 0.25), (0.0, 0.75))
    assert score.by_layer == (0.5, 0.0)
    assert score.largest_load == 2.0


def test_where_tokens_go() -> None:
    """Four ranks of two nodes: to the rank itself, else within the node, else to different ones."""
    layer = ((0,), (1, 2), (2, 3), (0, 1, 2, 3))
    found = hf.ExpertPlacement((layer,), 4, nodes=2).destinations
    assert found.tolist() == [[[0, 0, 0, 0], [1, 1, 2, 2], [2, 3, 2, 3], [0, 1, 2, 3]]]


@pytest.mark.parametrize(
    ("ranks", "more", "message"),
    [
        (
            (((0,), ()),),
            {},
            r"An expert must be on ranks from 0 to 1.* Received: \(\) for expert 1",
        ),
        ((((0,), (2,)),), {}, r"Received: \(2,\) for expert 1 of layer '0'"),
        ((((0,), (-1,)),), {}, r"Received: \(-1,\) for expert 1"),
        ((((0,), (1, 0)),), {}, r"in ascending order. Received: \(1, 0\) for expert 1"),
        ((((0,), (1, 1)),), {}, r"Received: \(1, 1\) for expert 1"),
        ((((0,), (1,)), ((0,),)), {}, "equally many experts. Received: 1 in layer '1', 2 in"),
        (((),), {}, "equally many experts. Received: 0"),
        (ONE_EACH, {"nodes": 3}, "the same on every node. Received: 2 ranks on 3 nodes"),
        (ONE_EACH, {"nodes": 0}, "`nodes` must be a positive integer"),
        (ONE_EACH, {"num_ranks": True}, "`num_ranks` must be a positive integer"),
        (ONE_EACH, {"layers": ("a",)}, "a different name for each.* for 2 layers"),
        (ONE_EACH, {"layers": ("a", "a")}, "a different name for each"),
        ((), {}, "a placement must have a layer.* for 0 layers"),
    ],
)
def test_what_is_no_placement(ranks: Any, more: Any, message: str) -> None:
    with pytest.raises(ValueError, match=f"(?i){message}"):
        hf.ExpertPlacement(ranks, **{"num_ranks": 2} | more)


def test_contiguous_and_random() -> None:
    found = hf.ExpertPlacement.contiguous(2, 6, 3, model="m")
    assert found.ranks == (((0,), (0,), (1,), (1,), (2,), (2,)),) * 2
    random = hf.ExpertPlacement.random(50, 6, 3, seed=1)
    assert {tuple(sorted(layer)) for layer in random.ranks} == {found.ranks[0]}
    assert len(set(random.ranks)) > 20
    assert random == hf.ExpertPlacement.random(50, 6, 3, seed=1)
    for make in (hf.ExpertPlacement.contiguous, hf.ExpertPlacement.random):
        with pytest.raises(ValueError, match="num_experts=6 on num_ranks=4. Use num_ranks=3."):
            make(2, 6, 4)


@pytest.mark.parametrize(
    ("trace", "message"),
    [
        (hf.RoutingTrace([[0, 1, 1]], 2), r"mine \(2 layers of 2 experts\) .* model \(3 layers"),
        (hf.RoutingTrace([[0, 1]], 3), r"for a model \(2 layers of 3 experts\)"),
        (hf.RoutingTrace([[0, 1]], 2, "other", ("a", "b")), "for other"),
        (hf.RoutingTrace([[0, 1]], 2, "mine", ("a", "c")), "with a layer 'b'.* with a layer 'c'"),
    ],
)  # fmt: skip
def test_a_placement_of_another_model(trace: hf.RoutingTrace, message: str) -> None:
    placement = hf.ExpertPlacement(ONE_EACH, 2, 1, "mine", ("a", "b"))
    with pytest.raises(ValueError, match=f"must be of the model .* Received: .*{message}"):
        placement.score(trace)
    with pytest.raises(
        ValueError, match="2 experts. on 2 ranks; it is to be used for .* on 4 ranks"
    ):
        placement.require_fits(2, 2, num_ranks=4)
    placement.require_fits(2, 2, "mine", ("a", "b"), num_ranks=2)
    placement.require_fits(2, 2)


def made(**options: Any) -> hf.ExpertPlacement:
    trace = likely_trace(8, 3, 400)
    return hf.place_experts(trace, 4, nodes=2, seconds=0.1, max_load=None, **options)


def test_files_keep_all(tmp_path: Path) -> None:
    placement = dataclasses.replace(
        made(replicate=3), model='a "b", 1', layers=("x,1", "y\nz", "2")
    )
    placement.save(tmp_path / "placement.json")
    assert hf.ExpertPlacement.load(tmp_path / "placement.json") == placement
    placement.save(tmp_path / "placement.csv")
    found = hf.ExpertPlacement.load(tmp_path / "placement.csv")
    assert found == dataclasses.replace(placement, report=None)
    lines = (tmp_path / "placement.csv").read_text().splitlines()
    assert lines[1:3] == ["layer,expert,rank", '"x,1",0,' + str(placement.ranks[0][0][0])]


@given(st.data())
def test_files_of_any_placement(tmp_path_factory: Any, data: st.DataObject) -> None:
    placement = data.draw(placements(data.draw(st.integers(1, 3)), data.draw(st.integers(1, 4))))
    for name in ("placement.json", "placement.csv"):
        path = tmp_path_factory.mktemp("placement") / name
        placement.save(path)
        assert hf.ExpertPlacement.load(path) == placement


def test_a_later_version_is_refused_by_its_number(tmp_path: Path) -> None:
    path = tmp_path / "placement.json"
    made().save(path)
    content = json.loads(path.read_text())
    for change in ({}, {"more": 1}):
        path.write_text(json.dumps(content | change | {"version": 2}))
        with pytest.raises(ValueError, match="version 2, and this hyparflow reads 1"):
            hf.ExpertPlacement.load(path)


HEAD = '# hyparflow expert placement, version 1: {"num_ranks": 2, "nodes": 1, "model": ""}\n'
TITLES = "layer,expert,rank\n"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (HEAD, "its columns are"),
        (HEAD + TITLES, "length >= 1"),
        (HEAD + TITLES + "a,0,0\na,1\n", "each line must have 3 values, and line 4 has 2"),
        (HEAD + TITLES + "a,0,0\na,2,1\n", "the experts of layer 'a' must be numbered from 0"),
        (HEAD + TITLES + "a,0,0\na,1,x\n", "invalid literal for int"),
        (HEAD + TITLES + "a,0,0\na,1,2\n", "An expert must be on ranks from 0 to 1"),
        (HEAD + TITLES + "a,0,0\na,1,0\nb,0,1\n", "equally many experts"),
        (HEAD.replace('"num_ranks": 2, ', "") + TITLES + "a,0,0\n", "num_ranks"),
        (HEAD.replace('"nodes"', '"more"') + TITLES + "a,0,0\n", "more"),
        (HEAD.replace("version 1", "version 2") + TITLES + "a,0,0\n", "it has version 2"),
        (TITLES + "a,0,0\n", "its first line must be as"),
        (HEAD + TITLES + 'a,"0,0\n', "unexpected end of data"),
    ],
)
def test_tables_that_are_no_placement(tmp_path: Path, text: str, reason: str) -> None:
    path = tmp_path / "placement.csv"
    path.write_text(text)
    with pytest.raises(ValueError, match="A placement of experts must be a file") as raised:
        hf.ExpertPlacement.load(path)
    assert str(path) in str(raised.value) and reason in str(raised.value)


def test_it_prints_its_scores() -> None:
    placement = made()
    text = str(placement)
    assert text.startswith("Placement of made-up: 3 layers of 8 experts on 4 ranks of 2 nodes")
    assert "learnt from 300 tokens, judged by 100 others (top 1)" in text
    report = placement.report
    assert report is not None
    assert f"{report.held_out.node_changes:.1%}" in text.split("this placement")[1]
    ratio = report.held_out.rank_changes / report.contiguous.rank_changes
    assert f"Tokens change rank {ratio:.2f} times as often" in text
    assert "It has no scores" in str(dataclasses.replace(placement, report=None))
    assert repr(placement) == "<ExpertPlacement for made-up (3 layers of 8 experts) on 4 ranks>"
