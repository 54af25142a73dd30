"""The command `hyparflow`, as typed in a shell."""

from __future__ import annotations

import json
import pathlib

import keras
import pytest
from jobs.jobs import Result, run, run_alone

import hyparflow as hf

EXAMPLE = pathlib.Path(__file__).parents[2] / "examples" / "cifar10_resnet.py"


def command(*arguments: object) -> Result:
    return run_alone("-m", "hyparflow.cli", *arguments)


def test_plan_of_a_function(tmp_path: pathlib.Path) -> None:
    """A plan of a small ResNet, with costs that are measured, kept and used again."""
    shared = [f"{EXAMPLE}:build", "--set", "depth=8", "--ranks", 2, "--batch-size", 8]
    first = command("plan", *shared, "--save-costs", tmp_path / "costs.json")
    assert first.code == 0, first.output
    assert "resnet8_v1 on 2 ranks" in first.output
    assert "costs measured" in first.output
    files = ["--costs", tmp_path / "costs.json", "--save", tmp_path / "plan.json"]
    second = command("plan", *shared, *files, "--memory-limit", "8GiB", "--optimizer", "adam")
    assert second.code == 0, second.output
    plan = hf.Plan.load(tmp_path / "plan.json")
    assert plan.num_ranks == 2
    assert plan.memory_limit == 8 * 2**30
    assert str(plan) in second.output
    assert first.output.split("step")[-1] == second.output.split("step")[-1]


def test_plan_of_a_saved_model(tmp_path: pathlib.Path) -> None:
    pytest.importorskip("matplotlib", reason="pictures need matplotlib (the extra 'plot')")
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(4), keras.layers.Dense(2)])
    model.compile("adam", "mse")
    model.save(tmp_path / "model.keras")
    hf.Cluster(2, 1).save(tmp_path / "cluster.json")
    result = command(
        "plan", tmp_path / "model.keras", "--cluster", tmp_path / "cluster.json",
        "--batch-size", 8, "--costs", "estimate", "--plot", tmp_path / "plan.png",
    )  # fmt: skip
    assert result.code == 0, result.output
    assert "on 2 ranks" in result.output
    assert (tmp_path / "plan.png").stat().st_size > 5000


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["nowhere.keras", "--ranks", 2], "nowhere.keras, which does not exist"),
        ([f"{EXAMPLE}:nothing", "--ranks", 2], "has no function 'nothing'"),
        ([f"{EXAMPLE}:build", "--ranks", 2, "--set", "deep=3"], "--set NAME=VALUE"),
        ([f"{EXAMPLE}:build", "--set", "depth=8"], "--ranks or --cluster"),
        (
            [f"{EXAMPLE}:build", "--set", "depth=8", "--ranks", 2, "--memory-limit", "1MiB"]
            + ["--costs", "estimate"],
            "No layout fits in the memory limit",
        ),
    ],
)
def test_mistakes_are_explained(arguments: list[object], text: str) -> None:
    result = command("plan", *arguments, "--batch-size", 8)
    assert result.code == 1, result.output
    assert "Error: " in result.output and text in result.output
    assert "Traceback" not in result.output


def test_doctor_measures_the_network(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "cluster.json"
    result = run(2, "-m", "hyparflow.cli", "doctor", "--network", path)
    assert result.code == 0, result.output
    cluster = hf.Cluster.load(path)
    assert cluster.num_ranks == 2
    assert 0 < cluster.within.latency < 1e-2
    assert cluster.within.bandwidth > 1e6
    assert cluster.between == hf.Cluster().between  # there is no other node to measure
    assert set(json.loads(path.read_text())) >= {"nodes", "within", "between"}


def test_doctor_needs_two_ranks(tmp_path: pathlib.Path) -> None:
    result = command("doctor", "--network", tmp_path / "cluster.json")
    assert result.code == 1
    assert "mpirun -n 2" in result.output
