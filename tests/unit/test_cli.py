"""The command `hyparflow plan`, as typed in a shell."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import keras
import pytest
from click.testing import CliRunner, Result

import hyparflow as hf
from hyparflow.cli.main import main

EXAMPLE = Path(__file__).parents[2] / "examples" / "cifar10_resnet.py"
THREADS = ("TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS", "OMP_NUM_THREADS")


@pytest.fixture(autouse=True)
def own_environment(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The command sets threads and a path for the rest of its process."""
    for variable in THREADS:
        monkeypatch.setenv(variable, "1")
    monkeypatch.syspath_prepend(str(EXAMPLE.parent))
    yield


def command(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


OWN = """
import keras

def build(width=4):
    layers = [keras.layers.Dense(width, activation="relu") for _ in range(2)]
    model = keras.Sequential([keras.Input([3]), *layers, keras.layers.Dense(1)], name=f"own{width}")
    model.compile("sgd", "mse")
    return model
"""


def test_plan_of_a_function(tmp_path: Path) -> None:
    """A plan of a user's model, with costs that are measured, kept and used again."""
    (tmp_path / "own.py").write_text(OWN)
    shared = [f"{tmp_path}/own.py:build", "--set", "width=8", "--ranks", 2, "--batch-size", 8]
    first = command("plan", *shared, "--save-costs", tmp_path / "costs.json")
    assert first.exit_code == 0, first.output
    assert "own8 on 2 ranks" in first.output
    assert "costs measured" in first.output
    files = ["--costs", tmp_path / "costs.json", "--save", tmp_path / "plan.json"]
    second = command("plan", *shared, *files, "--memory-limit", "8GiB", "--optimizer", "adam")
    assert second.exit_code == 0, second.output
    plan = hf.Plan.load(tmp_path / "plan.json")
    assert plan.num_ranks == 2
    assert plan.memory_limit == 8 * 2**30
    assert str(plan) in second.output
    assert first.output.split("step")[-1] == second.output.split("step")[-1]


def test_plan_of_a_saved_model(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="pictures need matplotlib (the extra 'plot')")
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(4), keras.layers.Dense(2)])
    model.compile("adam", "mse")
    model.save(tmp_path / "model.keras")
    hf.Cluster(2, 1).save(tmp_path / "cluster.json")
    result = command(
        "plan", tmp_path / "model.keras", "--cluster", tmp_path / "cluster.json",
        "--batch-size", 8, "--costs", "estimate", "--plot", tmp_path / "plan.png",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
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
    require_explained(text, *arguments)


def test_a_function_that_raises_is_explained(tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text("def build():\n    return {}['layers']\n")
    require_explained("raised KeyError: 'layers'", f"{tmp_path}/broken.py:build", "--ranks", 2)


def test_a_script_that_does_not_run_is_explained(tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text("import nowhere_to_be_found\n")
    require_explained("raised ModuleNotFoundError", f"{tmp_path}/broken.py:build", "--ranks", 2)


def test_a_file_that_is_no_model_is_explained(tmp_path: Path) -> None:
    (tmp_path / "model.keras").write_text("weights")
    require_explained(
        "MODEL must be a file that Keras can load", tmp_path / "model.keras", "--ranks", 2
    )


def require_explained(text: str, *arguments: object) -> None:
    """The command ends with code 2 and says this."""
    result = command("plan", *arguments, "--batch-size", 8)
    assert result.exit_code == 2, result.output
    assert "Error: " in result.output and text in result.output
    assert "Traceback" not in result.output


def test_a_builder_that_ends_the_process_is_explained(tmp_path: Path) -> None:
    script = tmp_path / "ends.py"
    script.write_text("import sys\n\ndef build():\n    sys.exit(7)\n")
    result = command("plan", f"{script}:build", "--ranks", 2, "--batch-size", 8)
    assert result.exit_code == 2
    assert "raised SystemExit: 7" in result.output


def test_more_mistakes(tmp_path: Path) -> None:
    """With a saved model, most of which only an option is wrong with."""
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(4), keras.layers.Dense(2)])
    model.save(tmp_path / "model.keras")
    unbuilt = keras.Sequential([keras.layers.Dense(4)])
    unbuilt.save(tmp_path / "unbuilt.keras")
    (tmp_path / "none.json").write_text("[]")
    shared = ("--batch-size", 8, "--costs", "estimate", "--ranks", 2)
    for name, options, text in (
        ("model", ("--cluster", tmp_path / "none.json"), "Expected `object`, got `array`"),
        ("model", ("--set", "a=1"), "--set is for FILE.py:FUNCTION"),
        ("model", ("--plot", tmp_path / "no" / "plan.png"), "into folders that exist"),
        ("model", ("--costs", "guess"), '"measure", "estimate", or a file'),
        ("model", ("--ranks", 100), "Received: 100 ranks, a batch of 8 rows"),
        ("unbuilt", (), "needs a model that is built"),
    ):
        result = command("plan", tmp_path / f"{name}.keras", *shared, *options)
        assert (result.exit_code, text in result.output) == (2, True), result.output


def test_named_pipes_are_not_waited_for(tmp_path: Path) -> None:
    script = tmp_path / "train.py"
    script.touch()
    for name in ("model.keras", "build.py", "file"):
        os.mkfifo(tmp_path / name)
    shared = ("--ranks", 2, "--batch-size", 8)
    for arguments in (
        ("plan", tmp_path / "model.keras", *shared),
        ("plan", f"{tmp_path}/build.py:build", *shared),
        ("run", "-n", 2, tmp_path / "build.py"),
        ("run", "-n", 1, "--hostfile", tmp_path / "file", script),
        ("trace", tmp_path / "file"),
    ):
        result = command(*arguments)
        assert (result.exit_code, "a named pipe" in result.output) == (2, True), result.output


def test_nodes_of_a_cluster_can_be_others(tmp_path: Path) -> None:
    model = keras.Sequential([keras.Input((4,)), *(keras.layers.Dense(4) for _ in range(9))])
    model.save(tmp_path / "model.keras")
    hf.Cluster(1, 2).save(tmp_path / "cluster.json")
    cluster = ("--cluster", tmp_path / "cluster.json", "--nodes", 4)
    shared = ("--batch-size", 8, "--costs", "estimate")
    result = command("plan", tmp_path / "model.keras", *cluster, *shared)
    assert "on 8 ranks" in result.output
    assert "of a model without an optimizer" in result.output


def test_help_is_whole() -> None:
    runner = CliRunner()
    for arguments in (["--help"], *([name, "--help"] for name in main.commands)):
        shown = runner.invoke(main, arguments, terminal_width=40).output
        assert "..." not in shown.split("\n", 1)[1], shown
