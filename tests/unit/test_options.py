"""The parallel arguments: what they resolve to, and every message about what does not fit."""

from __future__ import annotations

import ast
import dataclasses
import functools
import inspect
import itertools
import re
from pathlib import Path
from typing import Any

import pytest

import hyparflow
from hyparflow.options import Options, declared, resolve
from hyparflow.pipeline.grid import Grid
from hyparflow.pipeline.microbatches import automatic_microbatches
from hyparflow.pipeline.placement import Placement, v_shaped, wrapped


@pytest.fixture(autouse=True)
def script(monkeypatch: pytest.MonkeyPatch) -> None:
    """Messages name the running script."""
    monkeypatch.setattr("sys.argv", ["my_script.py", "--epochs", "3"])


@pytest.mark.parametrize(
    "size, arguments, partitions, replicas",
    [
        (1, {}, 1, 1),
        (4, {}, 1, 4),
        (4, {"strategy": "auto"}, 1, 4),
        (4, {"strategy": "data"}, 1, 4),
        (4, {"strategy": "data", "num_partitions": 1}, 1, 4),
        (4, {"strategy": "data", "num_replicas": 4}, 1, 4),
        (4, {"strategy": "model"}, 4, 1),
        (4, {"strategy": "model", "num_replicas": 1}, 4, 1),
        (4, {"strategy": "model", "num_partitions": 4}, 4, 1),
        (1, {"strategy": "model"}, 1, 1),
        (4, {"strategy": "hybrid", "num_partitions": 2}, 2, 2),
        (4, {"strategy": "hybrid", "num_replicas": 4}, 1, 4),
        (6, {"strategy": "hybrid", "num_partitions": 3, "num_replicas": 2}, 3, 2),
        (6, {"strategy": "auto", "num_partitions": 2}, 2, 3),
        (6, {"num_partitions": 6}, 6, 1),
        (6, {"num_replicas": 2}, 3, 2),
        (4, {"lpp": [3, 5]}, 2, 2),
        (2, {"strategy": "model", "lpp": (3, 5)}, 2, 1),
        (4, {"num_partitions": 2, "lpp": [3, 5]}, 2, 2),
    ],
)
def test_grid(size: int, arguments: dict[str, Any], partitions: int, replicas: int) -> None:
    assert resolve(size, **arguments).grid == Grid(partitions, replicas)


@pytest.mark.parametrize(
    ("size", "arguments", "numbers"),
    [
        (4, {"strategy": "sequence"}, (1, 1, 4)),
        (1, {"strategy": "sequence"}, (1, 1, 1)),
        (4, {"num_sequence_shards": 2}, (1, 2, 2)),
        (8, {"num_sequence_shards": 2, "num_partitions": 2}, (2, 2, 2)),
        (8, {"num_sequence_shards": 2, "num_partitions": 2, "num_replicas": 2}, (2, 2, 2)),
        (6, {"strategy": "model", "num_sequence_shards": 3}, (2, 1, 3)),
    ],
)
def test_shards(size: int, arguments: dict[str, Any], numbers: tuple[int, int, int]) -> None:
    partitions, replicas, shards = numbers
    assert resolve(size, **arguments).grid == Grid(partitions, replicas, num_shards=shards)


def test_shards_that_do_not_fit() -> None:
    with pytest.raises(ValueError, match=r"num_sequence_shards=3, which is 3, but 4 ranks run"):
        resolve(4, num_sequence_shards=3)
    with pytest.raises(ValueError, match=r"`strategy='sequence'` has num_partitions=1"):
        resolve(4, strategy="sequence", num_partitions=2)


def test_other_arguments() -> None:
    usual = {"schedule": "1f1b", "stages_per_partition": 1, "num_sequence_shards": 1}
    assert resolve(2) == Options(num_partitions=1, num_replicas=2, **usual)
    chosen = resolve(2, strategy="model", num_microbatches=8, schedule="gpipe", lpp=[1, 4])
    numbers = {"num_partitions": 2, "num_replicas": 1, "num_microbatches": 8}
    assert chosen == Options(**numbers, **usual | {"schedule": "gpipe"}, lpp=(1, 4))
    assert resolve(2, schedule="1f1b").schedule == "1f1b"


NOT_THE_SIZE = "The number of ranks must be num_partitions x num_replicas. Received: "


@pytest.mark.parametrize(
    "size, arguments, message",
    [
        (
            4,
            {"strategy": "pipeline"},
            "`strategy` must be one of 'data', 'model', 'hybrid', 'sequence', 'auto'. "
            "Received: strategy='pipeline'",
        ),
        (
            4,
            {"schedule": "pipedream"},
            "`schedule` must be one of 'gpipe', '1f1b', 'interleaved', 'zero-bubble', "
            "'zero-bubble-v' or 'auto'. "
            "Received: schedule='pipedream'",
        ),
        (
            4,
            {"strategy": "model", "stages_per_partition": 2},
            "Only schedule='interleaved' has several stages per partition, as many as you say; "
            "schedule='auto' has 1. Received: schedule='auto', "
            "stages_per_partition=2",
        ),
        (
            4,
            {"num_partitions": 0},
            "`num_partitions` must be a positive integer. Received: num_partitions=0",
        ),
        (
            4,
            {"num_partitions": True},
            "`num_partitions` must be a positive integer. Received: num_partitions=True",
        ),
        (
            4,
            {"num_replicas": 2.0},
            "`num_replicas` must be a positive integer. Received: num_replicas=2.0",
        ),
        (
            4,
            {"num_microbatches": -1},
            '`num_microbatches` must be a positive integer or "auto". '
            "Received: num_microbatches=-1",
        ),
        (
            4,
            {"num_microbatches": "many"},
            '`num_microbatches` must be a positive integer or "auto". '
            "Received: num_microbatches='many'",
        ),
        (
            4,
            {"num_microbatches": None},
            '`num_microbatches` must be a positive integer or "auto". '
            "Received: num_microbatches=None",
        ),
        (
            4,
            {"strategy": "data", "num_partitions": 2},
            "`strategy='data'` has num_partitions=1; use strategy='hybrid' for both kinds of "
            "parallelism. Received: num_partitions=2",
        ),
        (
            4,
            {"strategy": "model", "num_replicas": 2},
            "`strategy='model'` has num_replicas=1; use strategy='hybrid' for both kinds of "
            "parallelism. Received: num_replicas=2",
        ),
        (
            4,
            {"strategy": "hybrid"},
            "`strategy='hybrid'` needs `num_partitions`, `num_replicas` or both. "
            "Received: num_partitions=None, num_replicas=None",
        ),
        (
            2,
            {"num_partitions": 2, "num_replicas": 2},
            NOT_THE_SIZE + "num_partitions=2, num_replicas=2, which is 4, but 2 ranks run. "
            "Start it with: mpirun -n 4 python my_script.py",
        ),
        (
            1,
            {"strategy": "hybrid", "num_partitions": 3, "num_replicas": 2},
            NOT_THE_SIZE + "num_partitions=3, num_replicas=2, which is 6, but 1 rank runs. "
            "Start it with: mpirun -n 6 python my_script.py",
        ),
        (
            5,
            {"num_partitions": 2},
            NOT_THE_SIZE + "num_partitions=2, num_replicas=2, which is 4, but 5 ranks run. "
            "Start it with: mpirun -n 4 python my_script.py",
        ),
        (
            2,
            {"num_replicas": 4},
            NOT_THE_SIZE + "num_partitions=1, num_replicas=4, which is 4, but 2 ranks run. "
            "Start it with: mpirun -n 4 python my_script.py",
        ),
        (
            4,
            {"strategy": "model", "num_partitions": 2},
            NOT_THE_SIZE + "num_partitions=2, num_replicas=1, which is 2, but 4 ranks run. "
            "Start it with: mpirun -n 2 python my_script.py",
        ),
        *(
            (
                2,
                {"strategy": "model", "lpp": lpp},
                "`lpp` (layers per partition) must be a list of positive integers, one per "
                f"partition, or per stage of an interleaved schedule. Received: lpp={lpp!r}",
            )
            for lpp in ([], [1, 0], [1, -2], [1.0, 2], ["1", "2"], "12", 3, {1: 2})
        ),
    ],
)
def test_message(size: int, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError) as caught:
        resolve(size, **arguments)
    assert str(caught.value) == message


@pytest.mark.parametrize("name", ["strategy", "schedule"])
def test_a_list_instead_of_a_name(name: str) -> None:
    arguments: dict[str, Any] = {name: ["gpipe"]}
    with pytest.raises(ValueError, match=rf"`{name}` must be one of .* Received: {name}=\['gpipe'"):
        resolve(2, **arguments)


def test_automatic_microbatches_in_range() -> None:
    sizes = itertools.product((1, 2, 7, 16, 33, 128, 1000, 65536), range(1, 9), (1, 2, 3, 5))
    for batch_size, partitions, replicas in sizes:
        count = automatic_microbatches(batch_size, Grid(partitions, replicas))
        rows = max(1, batch_size // replicas)
        assert 1 <= count <= rows
        assert count <= 4 * partitions
        if partitions > 1:
            assert count >= min(partitions, rows)


@pytest.mark.parametrize(
    "batch_size, grid, stages, expected",
    [
        (1024, Grid(1, 1), 1, 1),
        (1024, Grid(1, 4), 1, 1),
        (1024, Grid(4, 1), 1, 16),  # four per partition
        (1024, Grid(4, 8), 1, 8),  # 16 rows each
        (128, Grid(4, 8), 1, 4),  # one per partition
        (48, Grid(2, 1), 1, 3),
        (3, Grid(4, 1), 1, 3),  # one per row
        (3, Grid(4, 8), 1, 1),
        (1024, Grid(4, 1), 2, 16),
        (1024, Grid(4, 1), 4, 16),
        (1024, Grid(4, 1), 6, 10),  # 16 / V per partition
        (1024, Grid(4, 1), 8, 8),
        (1024, Grid(4, 1), 16, 4),  # but one per partition
        (48, Grid(2, 1), 4, 3),
        (1024, Grid(1, 4), 4, 1),
    ],
)
def test_automatic_microbatches(batch_size: int, grid: Grid, stages: int, expected: int) -> None:
    placed = dataclasses.replace(grid, placement=wrapped(grid.num_partitions, stages))
    assert automatic_microbatches(batch_size, placed) == expected


@pytest.mark.parametrize(
    "arguments, balanced_for",
    [
        ({"strategy": "model"}, None),
        ({"strategy": "model", "schedule": "zero-bubble-v"}, ("zero-bubble-v", v_shaped(4), 16)),
        ({"strategy": "data", "schedule": "interleaved", "stages_per_partition": 4}, None),
        ({"strategy": "model", "schedule": "interleaved"}, ("interleaved", wrapped(4, 2), 16)),
        (
            {"strategy": "model", "schedule": "interleaved", "stages_per_partition": 16},
            ("interleaved", wrapped(4, 16), 4),
        ),
        (
            {"strategy": "model", "schedule": "interleaved", "num_microbatches": 6},
            ("interleaved", wrapped(4, 2), 6),
        ),
    ],
)
def test_for_what_stages_are_better_not_equal(
    arguments: dict[str, Any], balanced_for: tuple[str, Placement, int] | None
) -> None:
    assert resolve(4, **arguments).balanced_for == balanced_for


@pytest.mark.parametrize("name", ["strategy", "schedule", "batchnorm", "num_microbatches"])
def test_an_array_is_no_text(name: str) -> None:
    np = pytest.importorskip("numpy")
    with pytest.raises(ValueError, match=f"`{name}` must be"):
        resolve(2, **{name: np.array(["data"])})


def test_numpys_flags_and_numbers_are_taken() -> None:
    np = pytest.importorskip("numpy")
    options = resolve(2, num_partitions=np.int64(2), sharded_data=np.bool_(False))
    assert options.sharded_data is False
    assert options.grid.num_partitions == 2


# --- one option, one place ---

# The files that may name an argument, beside options.py, where it is declared, and api.py, where
# the one signature is written out: what consumes it, and what tells users of it. Plans are JSON,
# which has names of its own.
SEARCH = {"planning/search/layouts.py", "planning/search/problem.py"}
PLAN = {"planning/make_plan.py", "planning/plan.py", "planning/plan_check.py"}
WANTED_RANKS = {"training/plain_model.py", "training/fit_on_ranks.py", "training/auto.py"}
GRID = {"pipeline/grid.py", "training/agreement.py", "tracing/picture.py"} | SEARCH | WANTED_RANKS
SERVING = {"serving/generate_on_ranks.py", "serving/ranks/serving_grid.py"}
CONSUMERS = {
    "strategy": {"pipeline/grid_numbers.py", "planning/as_arguments.py"}
    | {"training/auto.py", "training/make_parallel.py"},
    "num_partitions": GRID
    | SERVING
    | {"pipeline/grid_numbers.py", "planning/check_mixtures.py", "planning/search/saving.py"},
    "num_replicas": GRID - {"tracing/picture.py"}
    | SERVING
    | {"pipeline/grid_numbers.py", "planning/check_mixtures.py", "planning/search/saving.py"}
    | {"tracing/trace.py"},
    "num_microbatches": SEARCH
    | {"planning/check_mixtures.py", "planning/plan_model.py"}
    | {"training/auto.py"}
    | {"training/checks.py", "training/call.py", "training/make_parallel.py"},
    "schedule": SEARCH
    | {"planning/plan_check.py", "training/checks.py"}
    | {"training/notices.py", "training/worker.py"},
    "lpp": PLAN
    | {"model/layout.py", "pipeline/partition.py", "planning/plan_model.py"}
    | {"planning/search/divisions.py", "planning/search/layouts.py", "training/plain_model.py"},
    "batchnorm": {"engine/assembly.py", "engine/stages/batchnorm.py"}
    | {"training/checks.py", "training/notices.py"},
    "sharded_data": {"training/auto.py", "training/checks.py", "training/parallel_model.py"},
    "stages_per_partition": {"pipeline/placement.py", "pipeline/schedules.py"}
    | SEARCH
    | {"planning/make_plan.py", "training/plain_model.py"},
    "allreduce": {"engine/learner.py", "training/checks.py"}
    | {"launching/doctor/ranks.py", "pipeline/actions.py", "planning/gantt.py"},
    "gather": {"training/fit_on_ranks.py", "training/left_weights.py", "training/memory_check.py"}
    | {"planning/make_plan.py", "planning/plan.py"},
    "recompute": {"planning/make_plan.py", "planning/plan_check.py", "planning/search/saving.py"}
    | {"engine/sequence/sequence_builder.py"}
    | {"training/auto.py"}
    | {f"engine/{name}.py" for name in ("assembly", "build_stages", "recomputation")}
    | {"training/checks.py"}
    | {"training/make_parallel.py", "training/parallel_model.py", "training/plain_model.py"}
    | {f"engine/compiled/{name}.py" for name in ("compiler", "plain", "split_function")}
    | {f"engine/compiled/{name}.py" for name in ("split_pair", "surgery")}
    | {f"engine/stages/{name}.py" for name in ("stage", "stage_builder", "stage_calls")},
    "num_sequence_shards": {"tracing/trace.py", "training/checks.py", "checkpoint/keeper.py"}
    | {"planning/make_plan.py", "planning/search/problem.py", "planning/search/saving.py"}
    | {"training/auto.py", "training/fit_on_ranks.py", "training/plain_model.py"},
    "num_sequence_chunks": {"engine/sequence/sequence_builder.py", "planning/make_plan.py"}
    | {"training/plain_model.py"}
    | {"training/automatic_chunks.py", "training/make_parallel.py", "training/parallel_model.py"},
    "sequence_store": {"engine/sequence/sequence_builder.py", "training/plain_model.py"}
    | {"planning/make_plan.py", "planning/search/saving.py"}
    | {"training/agreement.py", "training/notices.py", "training/parallel_model.py"},
    "placement": {"engine/assembly.py", "engine/experts/placed_experts.py"}
    | {"serving/ranks/shared_experts.py", "training/agreement.py"}
    # Fields, heads of tables and texts of errors.
    | {"experts/page.py", "experts/placement_files.py", "pipeline/grid.py"},
    "expert_parallel": {"engine/assembly.py", "engine/experts/expert_calls.py"}
    | {"planning/check_mixtures.py", "planning/make_plan.py", "planning/search/saving.py"}
    | {"training/memory_check.py"}
    | {"cli/serve.py", "serving/generate.py", "serving/serve.py"}
    | {"model/experts/expert_checks.py", "training/parallel_model.py"},
    "shard_optimizer": {"planning/make_plan.py", "planning/search/saving.py"}
    | {"engine/assembly.py", "training/checks.py", "training/notices.py"}
    | {"model/experts/expert_checks.py"}
    | {"training/memory_check.py", "training/parallel_model.py"},
    "kernels": {
        # What trains, and what is measured for a plan.
        *("engine/assembly.py", "engine/build_stages.py", "training/auto.py"),
        *("cli/plan.py", "planning/plan_model.py"),
        *("training/in_engine.py", "training/make_parallel.py", "training/plain_model.py"),
    },
    "compression": {"engine/learner.py", "training/checks.py"}
    | {f"engine/gradients/{name}.py" for name in ("flat_buffer", "horovod_sum", "mpi_sum")},
}
# Also what grids, schedules and batches are made of: their own attributes and parameters do not
# count, only the arguments of users.
PIPELINE_TERMS = ("num_partitions", "num_replicas", "num_microbatches", "schedule", "placement")


@functools.cache
def nodes_of_files() -> dict[str, list[ast.AST]]:
    """What each file of the package is made of, as far as an argument can be named there."""
    root = Path(hyparflow.__file__).parent
    kinds = ast.Constant | ast.Attribute | ast.arg | ast.keyword
    return {
        path.relative_to(root).as_posix(): [
            node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, kinds)
        ]
        for path in root.rglob("*.py")
    }


def files_that_name(argument: str) -> set[str]:
    """Files in which it is an attribute of options, a text, a parameter or a keyword."""
    return {
        file
        for file, nodes in nodes_of_files().items()
        if any(names(node, argument) for node in nodes)
    }


def names(node: ast.AST, argument: str) -> bool:
    if isinstance(node, ast.Constant):
        return node.value == argument
    if isinstance(node, ast.Attribute):
        return node.attr == argument and ast.unparse(node.value).endswith("options")
    is_named = isinstance(node, ast.arg | ast.keyword) and node.arg == argument
    return is_named and argument not in PIPELINE_TERMS


@pytest.mark.parametrize("name", list(declared()))
def test_an_argument_is_named_where_it_is_declared_and_used(name: str) -> None:
    found = files_that_name(name) - {"options.py", "api.py"}
    assert found == CONSUMERS[name]


def test_the_signature_that_is_written_out_is_what_is_declared() -> None:
    written = inspect.signature(hyparflow.parallelize).parameters
    told = {name: p.default for name, p in written.items() if name not in ("model", "plan")}
    assert told == {name: option.default for name, option in declared().items()}


@pytest.mark.parametrize("function", [hyparflow.fit, hyparflow.evaluate, hyparflow.predict])
def test_others_take_their_arguments_from_there(function: Any) -> None:
    assert declared().keys() < inspect.signature(function).parameters.keys()


@pytest.mark.parametrize(
    "function",
    [hyparflow.fit, hyparflow.evaluate, hyparflow.predict, hyparflow.parallelize],
)
def test_each_argument_is_explained(function: Any) -> None:
    for name in inspect.signature(function).parameters:
        assert re.search(rf"^    +(args, )?{name}(, kwargs)?: ", function.__doc__, re.MULTILINE), (
            name
        )
