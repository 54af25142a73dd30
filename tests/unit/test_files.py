"""Files that are not what they should be: one message with file and field, whoever reads them."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

import hyparflow as hf
from hyparflow.cli.main import main
from hyparflow.comm.recorder import Event, EventKind
from hyparflow.pipeline.actions import Kind
from hyparflow.planning.as_arguments import as_plan
from hyparflow.planning.costs.costs import Costs, Weight
from hyparflow.planning.plan import Alternative, Bar, PartitionPlan, Plan
from hyparflow.planning.search.predict_memory import Memory
from hyparflow.tracing.trace import RankTrace, Trace

LOADS: dict[str, Callable[[Any], Any]] = {
    "plan": Plan.load,
    "costs": Costs.load,
    "cluster": hf.Cluster.load,
    "placement": hf.ExpertPlacement.load,
    "trace": Trace.load,
}


def a_plan() -> Plan:
    memory = Memory(*[1] * 8)
    parts = [PartitionPlan((f"layer{n}",), 4, 0.1, 0.2, memory, {1 - n: 8}) for n in range(2)]
    work = tuple((Bar(Kind.FORWARD, n, 0, 0.0, 0.5),) for n in range(2))
    return Plan(
        "small", "0", 16, 1, 2, 2, "1f1b", 1, (1, 1), tuple(parts), 1.0, 2.0, 9, 0.1, None,
        (Alternative("other", 2.0, 7, "waiting"),), work, "estimated",
    )  # fmt: skip


def some_costs() -> Costs:
    import numpy as np

    times, row = np.ones((2, 1)), np.ones(2)
    return Costs(
        ("a", "b"), (1,), times, times, times, row, row, row, row, np.ones(3),
        (Weight(4, True),), ((0,), ()),
    )  # fmt: skip


def a_trace() -> Trace:
    step = [Event(Kind.FORWARD, 0.0, 1.0, 0, 0), Event(EventKind.TRAINING_STEP, 0.0, 1.0)]
    ranks = [
        RankTrace(name=f"rank {n}", replica=0, partition=n, steps=[step, step]) for n in range(2)
    ]
    return Trace(ranks, {"num_partitions": 2, "num_replicas": 1}, a_plan().to_values())


def a_placement() -> hf.ExpertPlacement:
    trace = hf.RoutingTrace([[0, 1], [1, 0], [1, 0], [0, 1]], 2)
    return hf.place_experts(trace, 2, seconds=0.01, max_load=None)


GOOD: dict[str, Any] = {
    "plan": a_plan(), "costs": some_costs(), "cluster": hf.Cluster(2, 2), "trace": a_trace(),
    "placement": a_placement(),
}  # fmt: skip


def changed(folder: Path, kind: str, place: list[Any], value: Any) -> Path:
    """A good file with another value, or none, at one place."""
    path = folder / f"{kind}.json"
    GOOD[kind].save(path)
    content = json.loads(path.read_text())
    inner = content
    for name in place[:-1]:
        inner = inner[name]
    if value is GONE:
        del inner[place[-1]]
    else:
        inner[place[-1]] = value
    path.write_text(json.dumps(content))
    return path


GONE = object()


@pytest.mark.parametrize("kind", LOADS)
def test_a_good_file_is_read(tmp_path: Path, kind: str) -> None:
    GOOD[kind].save(tmp_path / "file")
    found = LOADS[kind](tmp_path / "file")
    found.save(tmp_path / "again")
    assert (tmp_path / "again").read_text() == (tmp_path / "file").read_text()


@pytest.mark.parametrize("kind", LOADS)
@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "truncated"),
        (b"\x89PNG\xff\x00", "invalid character"),
        (b"[]", "Expected `object`, got `array`"),
        (b"null", "Expected `object`, got `null`"),
        (b"3", "Expected `object`, got `int`"),
        (b"{}", "missing required field|^$"),
        (b'{"a": 1', "truncated|unknown field `a`"),
        ('{"nodes": 1}'.encode("utf-16"), "invalid character"),
        (b"\xef\xbb\xbf{}", "invalid character"),
        (b"{} {}", "trailing characters|missing required"),
        (b"[" * 1_000_000, "Expected `object`"),
        (b'{"a": ' * 100_000, "unknown field|truncated|recursion"),
    ],
    ids=lambda value: repr(value[:12]) if isinstance(value, bytes) else "",
)
def test_other_content(tmp_path: Path, kind: str, content: bytes, reason: str) -> None:
    if (kind, content) == ("cluster", b"{}"):
        return  # all defaults
    path = tmp_path / "file.json"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=f"Received: {path} .*({reason})") as raised:
        LOADS[kind](path)
    assert len(str(raised.value)) < 600 and "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"\0" * 100_000_000, "invalid character"),
        (b"[" + b"1," * 50_000_000, "Expected `object`"),
        (b'{"x": "' + b"x" * 100_000_000 + b'"}', "unknown field `x`"),
    ],
    ids=["zeros", "numbers", "text"],
)
def test_huge_files(tmp_path: Path, content: bytes, reason: str) -> None:
    test_other_content(tmp_path, "cluster", content, reason)


PLACES: list[tuple[str, list[Any], Any]] = [
    *(
        ("plan", place, value)
        for place in (
            *(["batch_size"], ["num_replicas"], ["num_partitions"], ["num_microbatches"]),
            *(["stages_per_partition"], ["lpp", 1], ["partitions", 0, "parameters"]),
            ["partitions", 1, "memory", "slots"],
        )
        for value in ("x", None, -1, 1.5, True, 10**400, float("nan"), float("inf"), [], {}, GONE)
        if (place[-1], value) != (1, GONE)
    ),
    *(
        ("plan", place, value)
        for place in (["step_seconds"], ["partitions", 1, "forward"], ["work", 0, 0, "end"])
        for value in ("x", None, -1.0, True, 10**400, float("nan"), float("inf"), [], GONE)
    ),
    *(("plan", ["schedule"], value) for value in ("banana", 3, None, GONE)),
    *(("plan", ["lpp"], value) for value in ([], [2], [1, 1, 1], [2, 1], 2, "11", None)),
    *(("plan", ["partitions"], value) for value in ([], {}, None, [1], "x")),
    *(("plan", ["work"], value) for value in ([], [[], []], None)),
    ("plan", ["partitions", 0, "layers"], []),
    ("plan", ["partitions", 0, "sent"], {"x": 1}),
    ("plan", ["partitions", 0, "sent"], {"2": 1}),
    ("plan", ["partitions", 0, "memory"], {"weights": 1}),
    ("plan", ["work", 0, 0, "kind"], "banana"),
    ("plan", ["work", 0, 0, "stage"], 7),
    ("plan", ["work", 0, 0, "start"], 0.75),
    ("plan", ["alternatives", 0, "more"], 1),
    ("plan", ["num_partitions"], 3),
    *(("costs", ["rows"], value) for value in ([], [0], [-1], [1, 2], [2, 1], "1", None, GONE)),
    *(
        ("costs", [name], value)
        for name in ("forward", "fused", "kept", "program", "tensors", "used")
        for value in (None, "x", 3, {}, GONE)
    ),
    *(("costs", ["forward", 1], value) for value in ([], [1, 2], None, [-1], [float("nan")])),
    *(("costs", ["slots"], value) for value in ("x", -1, None, float("nan"), [])),
    ("costs", ["kept"], [1]),
    ("costs", ["used", 0], [1]),
    ("costs", ["used", 0], [-1]),
    ("costs", ["weights", 0], [4]),
    ("costs", ["weights", 0], ["4", True]),
    ("costs", ["overheads", "call"], -1),
    ("costs", ["overheads", "more"], 1),
    ("costs", ["halves"], [1]),
    ("costs", ["crowded"], [[1]]),
    ("costs", ["crowd"], 0),
    *(
        ("cluster", [name], value)
        for name in ("nodes", "ranks_per_node")
        for value in ("x", 0, -1, 1.5, True, None, 10**30, float("nan"))
    ),
    *(("cluster", ["speed"], value) for value in ("x", 0, -1, None, float("inf"), float("nan"))),
    ("cluster", ["allreduce"], "star"),
    ("cluster", ["within"], None),
    ("cluster", ["within", "bandwidth"], 0),
    ("cluster", ["within", "bandwidth"], GONE),
    ("cluster", ["between", "latency"], -1),
    ("cluster", ["more"], 1),
    *(("placement", ["version"], value) for value in ("x", None, 2, 0, -1, GONE)),
    *(
        ("placement", ["placement", name], value)
        for name in ("ranks", "num_ranks", "nodes", "layers")
        for value in ("x", 0, None, 1.5, {}, True, [3], *([GONE] if "ranks" in name else []))
    ),
    *(("placement", ["placement", "ranks", 0], value) for value in ([], [[]], [0], [["0"]], None)),
    *(("placement", ["placement", "ranks", 0, 0, 0], value) for value in ("x", -1, 1.5, None)),
    *(
        ("placement", ["placement", "report", "held_out", name], value)
        for name in ("rank_changes", "largest_load", "traffic")
        for value in ("x", -1, None, float("nan"), {}, GONE)
    ),
    ("placement", ["placement", "report", "tokens"], 0),
    ("placement", ["placement", "more"], 1),
    ("placement", ["more"], 1),
    *(("trace", ["otherData", "ranks"], value) for value in ([], [["r", 0, 0]], [[]], 3, GONE)),
    ("trace", ["otherData", "ranks", 0], ["rank", 0, 2]),
    *(("trace", ["otherData", "arguments"], value) for value in ({}, None, [], GONE)),
    ("trace", ["otherData", "arguments", "num_partitions"], "x"),
    ("trace", ["otherData", "plan", "num_partitions"], None),
    ("trace", ["otherData", "plan"], "x"),
    *(("trace", ["traceEvents"], value) for value in (None, {}, [3], [{}], [{"ph": "Z"}], GONE)),
    *(
        ("trace", ["traceEvents", -1, name], value)
        for name in ("pid", "ts", "dur", "args")
        for value in ("x", None, float("nan"), GONE)
    ),
    ("trace", ["traceEvents", -1, "pid"], 2),
    ("trace", ["traceEvents", -1, "dur"], -1.0),
    *(("trace", ["traceEvents", -1, "args", "step"], n) for n in (10**9, 10**30, -1, "x", GONE)),
    ("trace", ["traceEvents", -1, "args", "kind"], "banana"),
]


@pytest.mark.parametrize(("kind", "place", "value"), PLACES)
def test_a_field_that_is_wrong(tmp_path: Path, kind: str, place: list[Any], value: Any) -> None:
    path = changed(tmp_path, kind, place, value)
    with pytest.raises(ValueError) as raised:
        LOADS[kind](path)
    text = str(raised.value)
    assert str(path) in text and "Received: " in text
    names = [name for name in place if isinstance(name, str)]
    assert names[-1] in text or " - at `$." in text, text  # of two that do not fit, either
    assert len(text) < 600


def test_a_field_that_stands_twice(tmp_path: Path) -> None:
    path = tmp_path / "cluster.json"
    path.write_text('{"nodes": 1, "nodes": 2}')
    with pytest.raises(ValueError, match="`nodes` stands there twice"):
        hf.Cluster.load(path)


@pytest.mark.parametrize("kind", LOADS)
@pytest.mark.parametrize("what", ["pipe", "folder", "device", "nothing", "nul", "link", "sparse"])
def test_what_is_no_plain_file_is_not_read(tmp_path: Path, kind: str, what: str) -> None:
    path: Any = tmp_path / what
    if what == "pipe":
        os.mkfifo(path)
    elif what == "folder":
        path.mkdir()
    elif what == "device":
        path = "/dev/zero"
    elif what == "nul":
        path = "a\0b"
    elif what == "link":
        path.symlink_to(path)
    elif what == "sparse":
        path.touch()
        os.truncate(path, 2**40)
    with pytest.raises(ValueError, match="Received: "):
        LOADS[kind](path)


def test_fit_says_the_same_of_a_plan(tmp_path: Path) -> None:
    path = changed(tmp_path, "plan", ["num_replicas"], "x")
    with pytest.raises(ValueError, match=r"plan.json \(.*at `\$.num_replicas`"):
        as_plan(path)


@pytest.mark.parametrize(
    ("kind", "place", "value"),
    [
        ("trace", ["traceEvents", -1, "args", "step"], 10**9),
        ("plan", ["num_partitions"], None),
    ],
)
def test_the_command_ends_with_code_2(
    tmp_path: Path, kind: str, place: list[Any], value: Any
) -> None:
    path = changed(tmp_path, kind, place, value)
    GOOD["trace"].save(tmp_path / "good")
    arguments = (
        [path] if kind == "trace" else [tmp_path / "good", "--plan", path, "--plot", "a.png"]
    )
    result = CliRunner().invoke(main, ["trace", *map(str, arguments)])
    assert result.exit_code == 2, result.output
    assert place[-1] in result.output and "Traceback" not in result.output
