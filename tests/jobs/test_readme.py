"""The README tells the truth: its example runs, prints what it shows, its commands are there."""

from __future__ import annotations

import pathlib
import re
import textwrap

import pytest
from jobs.jobs import run

REPOSITORY = pathlib.Path(__file__).parents[2]
README = (REPOSITORY / "README.rst").read_text()


def block(first: str) -> str:
    """The one literal block of the README that starts with the line `first`."""
    found = [
        text
        for text in re.findall(r"code-block:: \w+\n\n((?: {4}.*\n|\n)+)", README)
        if text.startswith(f"    {first}\n")
    ]
    assert len(found) == 1, f"{len(found)} blocks start with {first!r}"
    return textwrap.dedent(found[0]).strip() + "\n"


def numbers(output: str) -> list[tuple[float, float]]:
    """(accuracy, loss) of each epoch that `output` shows; how long it took is left out."""
    found = re.findall(r"^\d+/\d+ - .*- accuracy: (\S+) - loss: (\S+)$", output, re.MULTILINE)
    return [(float(accuracy), float(loss)) for accuracy, loss in found]


def layouts(output: str) -> list[str]:
    """The lines in which hyparflow says how a batch is dealt out."""
    return [line for line in output.splitlines() if line.startswith("hyparflow:")]


PARALLEL, PLAIN = "$ mpirun -n 2 python train.py", "$ python train.py"


@pytest.mark.parametrize(
    ("ranks", "command", "script"),
    [(2, PARALLEL, "hyparflow"), (0, PLAIN, "hyparflow"), (0, PLAIN, "plain")],
)
def test_example_prints_what_the_readme_shows(
    ranks: int,
    command: str,
    script: str,
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The script of the README and of its picture, and the plain one beside it there."""
    monkeypatch.chdir(tmp_path)  # the example saves its model where it runs
    code = (REPOSITORY / "docs" / "scripts" / f"digits_{script}.py").read_text()
    if script == "hyparflow":
        assert block("import keras") == code
    pathlib.Path("train.py").write_text(code)
    shown = block(command)
    result = run(ranks, "train.py")
    assert result.code == 0, result.output
    expected, received = numbers(shown), numbers(result.output)
    assert len(expected) == 3
    assert len(received) == 3, result.output
    for (accuracy, loss), (accuracy_now, loss_now) in zip(expected, received, strict=True):
        # Another processor rounds differently: one in the last digit shown, and one image of the
        # 1797 that falls on the other side.
        assert loss_now == pytest.approx(loss, abs=1.5e-4)
        assert accuracy_now == pytest.approx(accuracy, abs=1 / 1797 + 1e-4)
    assert layouts(result.output) == layouts(shown)
    assert len(layouts(shown)) == (1 if ranks else 0)
    assert {path.name for path in tmp_path.iterdir()} == {"train.py", "digits.keras"}


def test_make_commands_are_in_the_makefile() -> None:
    named = set(re.findall(r"(?:``|^ {4})make ([\w-]+)", README, re.MULTILINE))
    assert {"demo", "test"} <= named
    makefile = (REPOSITORY / "Makefile").read_text()
    assert named <= set(re.findall(r"^([\w-]+):", makefile, re.MULTILINE))
