"""A checkpoint of each layout loads on each, and training ends with plain Keras's numbers."""

from __future__ import annotations

import itertools
import pathlib
import re
import shutil
from typing import Any

import numpy as np
import pytest
from jobs.jobs import SCRIPTS, Job

SCRIPT = SCRIPTS / "any_layout.py"
LAYOUTS = {1: ["1x1"], 2: ["2x1", "1x2"], 4: ["4x1", "2x2"]}  # number of ranks -> theirs
LINE = re.compile(r"saved (\S+) loaded (\S+) begins (\S+) ends (\S+)")


def run(ranks: int, *words: object) -> str:
    result = Job(ranks, SCRIPT, *words).wait(400)
    assert result.code == 0, result.output
    return result.output


@pytest.mark.parametrize(
    ("kind", "most"),
    [
        ("deep", 2),
        pytest.param("deep", 4, marks=pytest.mark.slow),
        pytest.param("half", 4, marks=pytest.mark.slow),
    ],
)
def test_each_loads_on_each(kind: str, most: int, tmp_path: pathlib.Path) -> None:
    """On up to so many ranks."""
    tried = {ranks: layouts for ranks, layouts in LAYOUTS.items() if ranks <= most}
    everyone = list(itertools.chain(*tried.values()))
    pairs = list(itertools.product(everyone, everyone))
    for ranks, layouts in tried.items():
        run(ranks, tmp_path, kind, "save", *layouts)
    for saved, loaded in pairs:
        shutil.copytree(tmp_path / saved, tmp_path / f"{saved}-on-{loaded}")
    found: dict[tuple[str, str], Any] = {}
    for ranks, layouts in tried.items():
        output = run(ranks, tmp_path, kind, "load", *layouts, "from", *everyone)
        for saved, loaded, begins, ends in LINE.findall(output):
            found[saved, loaded] = float(begins), float(ends)
    assert found.keys() == set(pairs)
    assert [pair for pair, (begins, _) in found.items() if begins] == []
    limit = 1e-10 if kind == "deep" else float(np.finfo("float16").eps)
    assert [pair for pair, (_, ends) in found.items() if not ends < limit] == []
