"""Scripts of plain Keras become parallel by two lines, and give the same numbers."""

from __future__ import annotations

import difflib
import json
import pathlib
import re
from typing import Any

import pytest
from jobs.jobs import Job, Result, run

SCRIPTS = pathlib.Path(__file__).parents[2] / "examples/scripts"
NAMES = sorted(path.name.removesuffix("_plain.py") for path in SCRIPTS.glob("*_plain.py"))
TEXT = pathlib.Path(__file__).parents[3] / "shared/data/tinyshakespeare.txt"
# float32, and sums in another order: about 1e-6 comes out.
TOLERANCE = 1e-4


def few(name: str) -> tuple[object, ...]:
    """Arguments for a short run; on the real text where there is one."""
    if name == "speakers_transformer" and TEXT.exists():
        return ("--epochs", 2, "--text", TEXT, "--speeches", 500)
    return ("--epochs", 2)


def lines(name: str, kind: str) -> list[str]:
    return (SCRIPTS / f"{name}_{kind}.py").read_text().splitlines()


def numbers(result: Result, ranks: int) -> list[dict[str, Any]]:
    """The History and the scores that each rank has printed."""
    assert result.code == 0, result.output
    assert not result.left
    found = re.findall(r'^\{"history": .*\}\r?$', result.output, re.MULTILINE)
    assert len(found) == ranks, result.output
    return [json.loads(text) for text in found]


def require_equal(actual: dict[str, Any], expected: dict[str, Any]) -> None:
    for part in ("history", "test"):
        assert list(actual[part]) == list(expected[part])
        for key, value in expected[part].items():
            assert actual[part][key] == pytest.approx(value, rel=TOLERANCE), (part, key)


@pytest.mark.parametrize("name", NAMES)
def test_scripts_differ_in_an_import_and_a_call(name: str) -> None:
    difference = difflib.ndiff(lines(name, "plain"), lines(name, "hyparflow"))
    removed, added = [], []
    for line in difference:
        if line.startswith("- "):
            removed.append(line[2:])
        if line.startswith("+ ") and line[2:]:  # an empty line goes with the import
            added.append(line[2:])
    assert len(removed) == 1
    arguments = re.fullmatch(r"history = model\.fit\((.*)\)", removed[0])
    assert arguments, removed
    partitions = 'num_partitions=int(os.getenv("PARTITIONS", 1))'
    assert added == [
        "import hyparflow as hf",
        f"history = hf.fit(model, {arguments[1]}, {partitions})",
    ]


@pytest.mark.parametrize(
    ("name", "ranks", "partitions"),
    [
        pytest.param("digits_convnet", 2, 1, marks=pytest.mark.slow),
        ("wine_features", 2, 2),
        pytest.param("speakers_transformer", 4, 2, marks=pytest.mark.slow),
    ],
)
def test_scripts_give_the_same_numbers(name: str, ranks: int, partitions: int) -> None:
    plain = Job(0, SCRIPTS / f"{name}_plain.py", *few(name))  # side by side
    script = SCRIPTS / f"{name}_hyparflow.py"
    result = run(ranks, script, *few(name), PARTITIONS=str(partitions))
    (expected,) = numbers(plain.wait(), 1)
    layout = f"hyparflow: {ranks // partitions} x {partitions} (replicas x partitions)"
    assert result.output.count(layout) == 1, result.output
    for actual in numbers(result, ranks):
        require_equal(actual, expected)
