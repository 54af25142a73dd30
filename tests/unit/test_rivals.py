"""What benchmarks share with frameworks that are installed elsewhere, and how a rival is cut."""

from __future__ import annotations

import ast
import json
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(autouse=True)
def benchmarks(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Lets a test import them, and no other test find their modules, such as "run"."""
    before = set(sys.modules)
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    monkeypatch.syspath_prepend(str(BENCHMARKS / "throughput"))
    yield
    for name in set(sys.modules) - before:
        if str(BENCHMARKS) in (getattr(sys.modules[name], "__file__", None) or ""):
            del sys.modules[name]


def imported(file: str) -> set[str]:
    """The modules that a job of this file imports, with those beside it."""
    found: set[str] = set()
    for node in ast.walk(ast.parse((BENCHMARKS / file).read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module.partition(".")[0])
    own = {name for name in found if (BENCHMARKS / f"{name}.py").exists()}
    return (found - own).union(*(imported(f"{name}.py") for name in own))


def test_a_job_of_pytorch_needs_what_is_said_to_be_installed() -> None:
    assert imported("torch_job.py") - set(sys.stdlib_module_names) == {"numpy", "psutil", "torch"}


def test_programs_that_generate_need_what_is_said_to_be_installed() -> None:
    said = {"ctranslate2", "numpy", "openvino", "openvino_genai", "tokenizers", "torch"}
    said |= {"transformers", "workers"}
    assert imported("serving/rival_case.py") - set(sys.stdlib_module_names) == said
    assert imported("serving/workers.py") <= set(sys.stdlib_module_names)


@pytest.mark.parametrize(
    ("batch", "most", "number"),
    [(128, 8, 8), (128, 4, 4), (64, 8, 4), (32, 8, 2), (16, 8, 2), (96, 8, 6), (80, 8, 4)],
)
def test_microbatches_are_even_and_not_small(batch: int, most: int, number: int) -> None:
    from cuts import number_of_microbatches

    assert number_of_microbatches(batch, most) == number


@pytest.mark.parametrize(
    ("costs", "lengths"),
    [
        ([1, 1, 1, 1], [2, 2]),
        ([3, 1, 1, 1], [1, 3]),
        ([9, 1, 1], [1, 2]),
        ([1, 1, 9], [2, 1]),
        ([1, 1, 9], [1, 1, 1]),
        ([1] * 8, [2, 2, 2, 2]),
        ([5, 5], [1, 1]),
    ],
)
def test_blocks_are_cut_where_costs_are_equal(costs: list[float], lengths: list[int]) -> None:
    from cuts import equal_parts

    parts = equal_parts(costs, len(lengths))
    assert [len(part) for part in parts] == lengths
    assert [index for part in parts for index in part] == list(range(len(costs)))


def test_a_model_of_another_size_is_no_rival() -> None:
    from rivals import RIVALS
    from samples import check_size

    check_size("resnet20", 273_066, 1_376)
    check_size("lstm", 1, 2)  # no framework but Keras has it
    for name in RIVALS["torch"].models or ():
        with pytest.raises(RuntimeError, match=f"The model {name} must have the same size"):
            check_size(name, 1, 2)


def test_setups_of_groups_exist() -> None:
    import run

    for group in run.groups_of("resnet110", ["torch"]):
        assert set(group) <= set(run.ALL)
    asked = run.groups_of("resnet1001", ["torch"])
    assert asked == [*run.GROUPS["resnet1001"]]  # PyTorch has none


def test_a_job_waits_for_each_turn(tmp_path: Path) -> None:
    from turn_files import Turns, number_of_steps

    turns = Turns(tmp_path, steps=2)
    taken: list[int] = []

    def train() -> None:
        for number in range(number_of_steps(steps=2, turns=2)):
            turns.begin_step(number)
            taken.append(number)
            turns.end_step(number)

    def wait_for(name: str) -> dict[str, float]:
        while not (tmp_path / name).exists():
            time.sleep(0.001)
        return json.loads((tmp_path / name).read_text())

    job = threading.Thread(target=train, daemon=True)
    job.start()
    assert wait_for("ready")["first_step"] >= 0
    assert wait_for("warm") == {}
    assert taken == [0, 1]
    (tmp_path / "go-0").touch()
    assert set(wait_for("done-0")) == {"seconds", "cpu_seconds"}
    assert taken == [0, 1, 2, 3, 4]  # one step to get warm again, and two
    (tmp_path / "go-1").touch()
    wait_for("done-1")
    assert taken == list(range(8))
    (tmp_path / "go-2").touch()  # lets it end
    job.join(60)
    assert not job.is_alive()


def test_ranks_wait_for_each_other_and_one_speaks(tmp_path: Path) -> None:
    from turn_files import Turns, number_of_steps

    waited: list[int] = []
    turns = Turns(tmp_path, 1, wait_for_all=lambda: waited.append(1), speaks=False)
    for number in range(2):
        (tmp_path / f"go-{number}").touch()
    for number in range(number_of_steps(steps=1, turns=1)):
        turns.begin_step(number)
        turns.end_step(number)
    assert len(waited) == 5  # around each of two go, and before the step that counts
    assert not {path.name for path in tmp_path.iterdir()} - {"go-0", "go-1"}
