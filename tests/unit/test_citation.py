"""CITATION.cff says what is to be cited. `make dist` holds it to the schema of the format."""

from __future__ import annotations

import re
from pathlib import Path

import hyparflow

TEXT = (Path(__file__).parents[2] / "CITATION.cff").read_text()
OWN, PAPER = TEXT.split("\npreferred-citation:\n")


def test_it_has_what_the_format_asks_for() -> None:
    keys = re.findall(r"^([a-z-]+):", OWN, re.MULTILINE)
    assert {"cff-version", "message", "title", "authors"} <= set(keys)
    assert len(keys) == len(set(keys))
    assert set(re.findall(r"^ {2}(type|title|authors):", PAPER, re.MULTILINE)) == {
        *("type", "title", "authors")
    }


def test_it_is_of_this_version() -> None:
    assert f"\nversion: {hyparflow.__version__}\n" in OWN


def test_it_names_the_paper() -> None:
    names = re.findall(r"family-names: (\w+)", PAPER)
    assert names == ["Awan", "Jain", "Anthony", "Subramoni", "Panda"]
    assert PAPER.count("given-names: ") == len(names)
    assert re.search(r"^ {2}doi: 10\.1007/978-3-030-50743-5_5$", PAPER, re.MULTILINE)
