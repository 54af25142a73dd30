"""Routing traces: what is none is refused, files keep all, and counts are those of a plain loop."""

from __future__ import annotations

import os
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from routers import likely_trace, traces

import hyparflow as hf
from hyparflow.experts.affinity import foreseen, ways_of


def test_shape_and_type() -> None:
    trace = hf.RoutingTrace([[1, 2], [3, 0], [1, 1]], 4)
    assert trace.experts.shape == (3, 2, 1)
    assert (trace.num_tokens, trace.num_layers, trace.top_k) == (3, 2, 1)
    assert trace.experts.dtype == np.uint8 and trace.layers == ("0", "1")
    assert hf.RoutingTrace(trace.experts, 257).experts.dtype == np.uint16
    assert hf.RoutingTrace(np.array([[255.0, 1.0]]), 256).experts.tolist() == [[[255], [1]]]
    assert repr(trace) == "<RoutingTrace: 3 tokens, 2 layers of 4 experts, top 1>"
    with pytest.raises(ValueError, match="read-only"):
        trace.experts[0] = 0


@pytest.mark.parametrize(
    ("experts", "message"),
    [
        ([[0.0, np.nan]], "whole numbers from 0 to 3.* Received: nan for token 0 in layer 1"),
        ([[0.0, np.inf]], "Received: inf for token 0 in layer 1"),
        ([[0, 1], [2, 4]], "Received: 4 for token 1 in layer 1. Pass the number of all experts"),
        ([[0, -1]], "Received: -1 for token 0 in layer 1"),
        ([[0.5, 1.0]], "Received: 0.5 for token 0 in layer 0"),
        ([[[0, 1], [2, 2]]], "name an expert once .* Received: 2, 2 for token 0 in layer 1"),
        ([0, 1], r"shape tokens x layers x top_k.* Received: int64 of the shape \(2,\)"),
        (np.zeros((2, 2, 1, 1)), r"Received: float64 of the shape \(2, 2, 1, 1\)"),
        (np.zeros((0, 2)), r"Received: float64 of the shape \(0, 2\)"),
        ([[True]], "Received: bool of the shape"),
        ([["a"]], "Received: <U1 of the shape"),
        ([[None]], "Received: object of the shape"),
        ([[1j]], "Received: complex128 of the shape"),
    ],
    ids=str,
)
def test_what_is_no_trace(experts: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        hf.RoutingTrace(np.array(experts), 4)


@pytest.mark.parametrize("num_experts", [0, -1, 1.5, True, "4", None])
def test_number_of_experts(num_experts: Any) -> None:
    with pytest.raises(ValueError, match="`num_experts` must be a positive integer"):
        hf.RoutingTrace([[0]], num_experts)


def test_too_many_experts() -> None:
    with pytest.raises(ValueError, match="may have 65536 experts at most"):
        hf.RoutingTrace([[0]], 2**16 + 1)


@pytest.mark.parametrize("names", [("a",), ("a", "a"), ("a", "b", "c"), ("a", 1)])
def test_names_of_layers(names: Any) -> None:
    with pytest.raises(ValueError, match="a different one for each layer.* Leave `layers` out"):
        hf.RoutingTrace([[0, 1]], 2, "model", names)


@given(traces())
def test_counts_are_those_of_a_loop(trace: hf.RoutingTrace) -> None:
    affinity = np.zeros((trace.num_layers - 1, trace.num_experts, trace.num_experts), int)
    visits = np.zeros((trace.num_layers, trace.num_experts), int)
    for choices in trace.experts.tolist():
        for layer, chosen in enumerate(choices):
            for expert in chosen:
                visits[layer, expert] += 1
                if layer:
                    affinity[layer - 1, choices[layer - 1][0], expert] += 1
    assert trace.affinity().tolist() == affinity.tolist()
    assert trace.visits().tolist() == visits.tolist()
    sums = ways_of(trace).sum(axis=2)
    assert np.allclose(sums[affinity.sum(axis=2) > 0], 1)


def test_foreseen() -> None:
    """Where one expert follows another always it is foreseen always."""
    steady = likely_trace(4, 3, 400, liked=1.0)
    known, blind = foreseen(*steady.split())
    assert known.tolist() == [1.0, 1.0]
    assert all(0.2 < share < 0.35 for share in blind)
    known, blind = foreseen(*likely_trace(4, 2, 4000, liked=0.0).split())
    assert abs(known[0] - blind[0]) < 0.05


@given(traces(), st.floats(0.01, 0.99), st.integers(0, 5))
def test_a_split_deals_out_all_tokens(trace: hf.RoutingTrace, share: float, seed: int) -> None:
    if trace.num_tokens == 1:
        with pytest.raises(ValueError, match="two tokens or more"):
            trace.split(share, seed)
        return
    training, held_out = trace.split(share, seed)
    assert training.num_tokens + held_out.num_tokens == trace.num_tokens
    assert abs(held_out.num_tokens - share * trace.num_tokens) <= 1
    rows = sorted([*training.experts.tolist(), *held_out.experts.tolist()])
    assert rows == sorted(trace.experts.tolist())


def test_pieces_of_the_text_are_held_out_whole() -> None:
    numbered = np.arange(4000)[:, np.newaxis]
    _, held_out = hf.RoutingTrace(numbered, 4000).split()
    numbers = held_out.experts.ravel().astype(int)
    assert len(numbers) == 1000
    ends = np.flatnonzero(np.diff(numbers) > 1)
    assert len(ends) < 25  # 25 pieces of 40 tokens
    assert (np.diff(np.append(ends, 999)) % 40 == 0).all()


@pytest.mark.parametrize("share", [0, 1, -0.5, 2, float("nan"), "half", None, True])
def test_share_that_is_held_out(share: Any) -> None:
    with pytest.raises(ValueError, match="`held_out` must be a number above 0 and below 1"):
        hf.RoutingTrace([[0], [0]], 1).split(share)


def test_shuffled_keeps_what_is_within_a_layer() -> None:
    trace = likely_trace(8, 4, 2000, liked=1.0)
    shuffled = trace.shuffled()
    assert (shuffled.visits() == trace.visits()).all()
    assert ways_of(trace).max() == 1.0
    assert ways_of(shuffled).max() < 0.3


@pytest.mark.parametrize("suffix", [".npz", ".csv", ".CSV", ""])
def test_files_keep_all(tmp_path: Path, suffix: str) -> None:
    trace = hf.RoutingTrace(
        [[[0, 3], [2, 1]], [[3, 0], [1, 2]]], 4, 'a "model", 1', ("moe,1", "première\ncouche")
    )
    trace.save(tmp_path / f"trace{suffix}")
    found = hf.RoutingTrace.load(tmp_path / f"trace{suffix}")
    assert found.experts.tolist() == trace.experts.tolist()
    assert found.experts.dtype == np.uint8
    assert (found.num_experts, found.model, found.layers) == (4, trace.model, trace.layers)


@given(trace=traces(), suffix=st.sampled_from([".npz", ".csv"]))
def test_files_of_any_trace(tmp_path_factory: Any, trace: hf.RoutingTrace, suffix: str) -> None:
    path = tmp_path_factory.mktemp("trace") / f"trace{suffix}"
    trace.save(path)
    found = hf.RoutingTrace.load(path)
    assert found.experts.tolist() == trace.experts.tolist()
    assert found.num_experts == trace.num_experts


HEAD = '# hyparflow routing trace, version 1: {"num_experts": 4}\n'


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "its first line must be as # hyparflow routing trace, version 1: "),
        ("token,layer,expert_1\n0,0,1\n", "its first line must be as"),
        (HEAD.replace("1:", "2:"), "it has version 2, and this hyparflow reads 1"),
        (HEAD.replace("routing trace", "expert placement"), "its first line must be as"),
        (HEAD.replace("num_experts", "experts"), "its first line must have `num_experts`"),
        (HEAD.replace("4}", "4.5}") + "token,layer,expert_1\n0,0,1\n", "num_experts=4.5"),
        (HEAD, "its columns are"),
        (HEAD + "token,layer\n0,0\n", "its columns are token, layer, not"),
        (HEAD + "token,layer,expert_2\n0,0,1\n", "its columns are token, layer, expert_2, not"),
        (HEAD + "token,layer,expert_1\n", "a row for each token and layer"),
        (HEAD + "token,layer,expert_1\n0,0\n", "each line must have 3 values, and line 3 has 2"),
        (HEAD + "token,layer,expert_1\n0,0,1\n0,1,1\n1,0,2\n", "a row for each token and layer"),
        (HEAD + "token,layer,expert_1\n1,0,1\n0,0,2\n", "a row for each token and layer"),
        (HEAD + "token,layer,expert_1\n0,0,nan\n", "Received: nan for token 0 in layer 0"),
        (HEAD + "token,layer,expert_1\n0,0,\n", "could not convert string to float"),
        (HEAD + "token,layer,expert_1\n0,0,4\n", "Received: 4.0 for token 0 in layer 0"),
        (HEAD + 'token,layer,expert_1\n0,"0,1\n', "unexpected end of data"),
    ],
)
def test_tables_that_are_no_trace(tmp_path: Path, text: str, reason: str) -> None:
    path = tmp_path / "trace.csv"
    path.write_text(text)
    with pytest.raises(ValueError, match="A routing trace must be a file") as raised:
        hf.RoutingTrace.load(path)
    assert str(path) in str(raised.value) and reason in str(raised.value)


def archive(path: Path, **changes: Any) -> Path:
    parts = {"version": 1, "experts": np.zeros((2, 2, 1), int), "num_experts": 4}
    parts |= {"model": "m", "layers": ["a", "b"]} | changes
    np.savez(path, **{name: np.array(part) for name, part in parts.items() if part is not None})
    return path


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"experts": None}, "experts is not a file in the archive"),
        ({"version": 2}, "it has version 2"),
        ({"num_experts": [4, 4]}, "only"),
        ({"experts": np.array([[{}]], object)}, "allow_pickle=False"),
        ({"experts": [[0.0, np.nan]]}, "Received: nan for token 0 in layer 1"),
        ({"layers": ["a"]}, "a different one for each layer"),
    ],
    ids=str,
)
def test_archives_that_are_no_trace(tmp_path: Path, changes: Any, reason: str) -> None:
    path = archive(tmp_path / "trace.npz", **changes)
    with pytest.raises(ValueError, match="A routing trace must be a file") as raised:
        hf.RoutingTrace.load(path)
    assert str(path) in str(raised.value) and reason in str(raised.value)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"\0" * 1000, b"[1, 2]", b"\x93NUMPY"])
def test_other_files(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "trace.npz"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=f"A routing trace must be a file.* Received: {path} "):
        hf.RoutingTrace.load(path)


def test_archives_that_are_damaged(tmp_path: Path) -> None:
    whole = archive(tmp_path / "whole.npz").read_bytes()
    for end in range(0, len(whole), 97):
        path = tmp_path / "part.npz"
        path.write_bytes(whole[:end])
        with pytest.raises(ValueError, match="A routing trace must be a file"):
            hf.RoutingTrace.load(path)
    with zipfile.ZipFile(tmp_path / "zip.npz", "w") as file:
        file.writestr("experts.npy", "text")
    with pytest.raises(ValueError, match="version"):
        hf.RoutingTrace.load(tmp_path / "zip.npz")


def test_what_is_no_plain_file_is_not_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", tmp_path, "/dev/zero", tmp_path / "missing"):
        with pytest.raises(ValueError, match="A routing trace must be a file.* Received: "):
            hf.RoutingTrace.load(path)
