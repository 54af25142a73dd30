"""The code in docs/ and the README runs, and prints what the pages show.

A comment before a block says what is done with it:

    .. test: 2 ranks      it belongs to the page's script that mpirun starts with 2 ranks
    .. test: alone        to the page's script for plain Python
    .. test: output       the lines that the script of the block before writes, in this order; "..."
                          stands for anything

Blocks of a page with the same comment are one script, in their order: the later continue the first.
"""

from __future__ import annotations

import pathlib
import re
import textwrap
from dataclasses import dataclass, field

import pytest
from jobs.jobs import run

from hyparflow.launching.flags import physical_cores

REPOSITORY = pathlib.Path(__file__).parents[2]
DOCS = REPOSITORY / "docs"
PAGES = [REPOSITORY / "README.rst", *sorted(DOCS.glob("*.rst"))]
MARK = ".. test: "
BLOCK = re.compile(
    r"^\.\. test: (?P<what>.+)\n\n\.\. code-block:: \w+\n\n(?P<text>(?:(?: {4}.*)?\n)+)",
    re.MULTILINE,
)


@dataclass
class Script:
    """What a page has for one kind of job.

    Attributes:
        ranks: for mpirun; 0 for plain Python.
        code: all blocks, one after the other.
        shown: lines that it writes.
    """

    ranks: int
    code: str = ""
    shown: list[str] = field(default_factory=list)


def scripts(page: pathlib.Path) -> dict[str, Script]:
    """The scripts of a page by the comments of their blocks."""
    found: dict[str, Script] = {}
    script: Script | None = None
    for block in BLOCK.finditer(page.read_text()):
        what, text = block["what"], textwrap.dedent(block["text"]).strip() + "\n"
        if what == "output":
            assert script is not None, f"{page}: output without a script"
            script.shown += text.splitlines()
            continue
        ranks = 0 if what == "alone" else int(what.removesuffix(" ranks"))
        script = found.setdefault(what, Script(ranks))
        script.code += text
    return found


CASES = {f"{page.stem}, {what}": script for page in PAGES for what, script in scripts(page).items()}


def require_shown(shown: list[str], output: str) -> None:
    """Check that `output` has these lines in this order."""
    start = 0
    for line in shown:
        pattern = ".*".join(re.escape(part) for part in line.strip().split("..."))
        found = re.compile(pattern).search(output, start)
        assert found, f"not written, or not in this order: {line}\n{output}"
        start = found.end()


def test_each_comment_has_a_block() -> None:
    for page in PAGES:
        text = page.read_text()
        assert len(BLOCK.findall(text)) == text.count(f"\n{MARK}"), page
    assert len(CASES) >= 4


@pytest.mark.parametrize("name", CASES)
def test_code_runs_and_prints_what_is_shown(
    name: str, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = CASES[name]
    if not script.ranks and "launch" in script.code and physical_cores() < 2:
        pytest.skip("ranks that are started from Python need a core each")
    monkeypatch.chdir(tmp_path)  # some blocks write files where they run
    path = tmp_path / "script.py"
    path.write_text(script.code)
    result = run(script.ranks, path)
    assert result.code == 0, result.output
    assert not result.left
    require_shown(script.shown, result.output)


def test_the_script_that_came_from_horovod(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = run(2, DOCS / "scripts" / "with_hyparflow.py")
    assert result.code == 0, result.output
    assert not result.left
    layout = "hyparflow: 2 x 1 (replicas x partitions); global batch 64 = 2 x 1 x 32"
    require_shown([layout, "Epoch 3/3"], result.output)
    assert {path.name for path in tmp_path.iterdir()} == {"last.keras", "digits.keras"}
