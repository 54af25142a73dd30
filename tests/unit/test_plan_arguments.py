"""What `hyparflow.plan` and the command `hyparflow plan` are given: taken, or refused by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from click.testing import CliRunner

import hyparflow as hf
from hyparflow.cli.main import main
from hyparflow.comm import launcher


@pytest.fixture(scope="module")
def model() -> Any:
    made = keras.Sequential([keras.Input((4,)), *(keras.layers.Dense(8) for _ in range(6))])
    made.compile("adam", "mse")
    return made


def plan(model: Any, **changes: Any) -> Any:
    arguments = {"batch_size": 16, "num_ranks": 2, "costs": "estimate"} | changes
    return hf.plan(model, **arguments)


@pytest.mark.parametrize("kind", [np.int8, np.int64, np.uint16])
def test_integers_of_numpy_are_taken(model: Any, kind: Any, tmp_path: Path) -> None:
    names = ("batch_size", "num_ranks", "num_partitions", "num_replicas", "num_microbatches")
    plain = dict(zip(names, (16, 2, 2, 1, 4), strict=True))
    given = {name: kind(value) for name, value in plain.items()}
    found = plan(model, **given, lpp=[kind(2), kind(4)], memory_limit=np.int64(2**33))
    assert found == plan(model, **plain, lpp=[2, 4], memory_limit=2**33)
    found.save(tmp_path / "plan.json")
    assert hf.Plan.load(tmp_path / "plan.json") == found
    cluster = hf.Cluster(kind(1), kind(2), speed=np.float32(2.0))
    cluster.save(tmp_path / "cluster.json")
    assert hf.Cluster.load(tmp_path / "cluster.json") == cluster


def test_auto_and_none_leave_an_argument_to_the_plan(model: Any) -> None:
    found = plan(model)
    assert found == plan(model, num_microbatches="auto", schedule="auto")
    assert found == plan(model, num_microbatches=None, schedule=None, num_partitions=None)


COUNTS = ("batch_size", "num_ranks", "num_partitions", "num_replicas", "num_microbatches")
WRONG: list[dict[str, Any]] = [
    *(
        {name: value}
        for name in (*COUNTS, "stages_per_partition")
        for value in (
            *(0, -1, True, 2.0, "2", "banana", [2], float("nan"), float("inf"), 10**30, 10**5000),
            *(np.array([2, 2]), np.float64(2), np.bool_(True), "auto", object()),
        )
        # As for fit: left to the plan.
        if not (name == "num_microbatches" and isinstance(value, str) and value == "auto")
    ),
    *({"batch_size": None}, {"num_ranks": None}, {"num_partitions": 3}, {"num_replicas": 4}),
    {"num_partitions": 2, "num_replicas": 2},
    {"num_partitions": 2, "num_microbatches": 17},
    {"num_partitions": 2, "schedule": "1f1b", "stages_per_partition": 2},
    *({"schedule": v} for v in ("banana", "", 3, True, ["1f1b"], np.array(["1f1b", "gpipe"]))),
    *(
        {"lpp": v, "num_partitions": 2}
        for v in (5, [], "33", [3], [3, 4], [7, -1], [3, True], [3.0, 3.0], [6, 0], [[3], [3]])
    ),
    *(
        {"memory_limit": v}
        for v in ("9" * 400 + "GB", "", "banana", 0, -1, True, [], float("nan"), b"8GiB", 10**5000)
    ),
    *({"costs": v} for v in (None, 5, "", "guess", [], np.zeros(2), b"estimate", "/", "/dev/zero")),
    *({"cluster": v} for v in (5, "", "nowhere", [], {}, True, "/", "/dev/zero")),
    {"cluster": hf.Cluster(1, 4)},
    {"cluster": hf.Cluster(1, 2, within=hf.Link(1e308, 1e-300)), "num_partitions": 2},
]


@pytest.mark.parametrize("changes", WRONG, ids=map(str, range(len(WRONG))))
def test_what_is_wrong_is_refused_by_name(model: Any, changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="Received: ") as raised:
        plan(model, **changes)
    assert len(str(raised.value)) < 700


@pytest.mark.parametrize("speed", [float("nan"), float("inf"), -1, 0, True, "2", None, 10**400])
@pytest.mark.parametrize("name", ["speed", "sum_bandwidth"])
def test_speeds_that_are_none(name: str, speed: Any) -> None:
    with pytest.raises(ValueError, match=f"`{name}` must be a number above 0. Received: {name}="):
        hf.Cluster(**{name: speed})
    with pytest.raises(ValueError, match="A link needs"):
        hf.Link(0.0, speed)


@pytest.mark.parametrize("thing", [None, 5, "model", keras.layers.Dense(1)])
def test_what_is_no_model(thing: Any) -> None:
    with pytest.raises(ValueError, match="Received: "):
        plan(thing)


@pytest.mark.parametrize(
    "options",
    [
        ["--num-partitions", "3"],
        ["--num-microbatches", "1000000"],
        ["--memory-limit", "9" * 400 + "GB"],
        ["--schedule", "banana"],
        ["--threads", "1000000000"],
        ["--costs", "/dev/zero"],
        ["--cluster", "/dev/zero"],
        ["--save", "/dev/null"],
        ["--plot", "/"],
        ["--save-costs", "/nowhere/costs.json"],
    ],
)
def test_the_command_ends_with_code_2(model: Any, options: list[str], tmp_path: Path) -> None:
    model.save(tmp_path / "model.keras")
    arguments = [str(tmp_path / "model.keras"), "--batch-size", "16", "--ranks", "2"]
    result = CliRunner().invoke(main, ["plan", *arguments, *options])
    assert result.exit_code == 2, result.output
    assert "Error: " in result.output and "Traceback" not in result.output


def test_a_plan_is_one_line_and_a_table(model: Any) -> None:
    pipeline, data = plan(model, num_partitions=2), plan(model, num_replicas=2)
    for made in (pipeline, data):
        assert "\n" not in repr(made) and len(repr(made)) < 200
        assert "16 rows" in repr(made) and len(str(made).splitlines()) > 6
    assert pipeline.schedule in repr(pipeline) and pipeline.schedule in str(pipeline).split("\n")[0]
    assert data.schedule not in repr(data) and data.schedule not in str(data).split("\n")[0]


def test_more_ranks_than_cores_are_named(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    cores = len(launcher.usable_cores())
    assert f"has {cores} core" in str(plan(model, batch_size=16 * cores, num_ranks=4 * cores))
    elsewhere = plan(model, batch_size=16 * cores, num_ranks=None, cluster=hf.Cluster(1, 4 * cores))
    assert "This machine" not in str(elsewhere)
    assert "This machine" not in str(plan(model, num_ranks=1))


@pytest.mark.parametrize("path", [None, 5, True, [], {}, "a\0b", np.array("x"), float("nan")])
def test_what_is_no_path(model: Any, path: Any) -> None:
    made = plan(model, num_partitions=2)
    for call in (hf.Plan.load, hf.Costs.load, hf.Cluster.load, made.save, made.plot):
        with pytest.raises(ValueError, match="named by its path.* Received: "):
            call(path)
