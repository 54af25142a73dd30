"""The table of versions is written from what was run, and covers what is promised."""

from __future__ import annotations

import re

from distribution.combinations import COMBINATIONS, NEWEST, OLDEST, PYTHONS, Combination, read
from distribution.environments import REPOSITORY
from distribution.page import PAGE, page

PROJECT = (REPOSITORY / "pyproject.toml").read_text()


def test_page_is_not_stale() -> None:
    assert PAGE.read_text() == page(), "run: python tests/distribution/page.py"


def test_nothing_failed() -> None:
    """What fails is mended, or refused, before it is written down."""
    results = read()
    assert set(results) <= set(COMBINATIONS)
    for combination, result in results.items():
        assert result.outcome != "failed", combination
        assert (result.tests > 0) == (result.outcome == "passed")
        assert bool(result.files) == bool(result.versions)


def test_each_version_that_is_promised_passed() -> None:
    passed = [it for it, result in read().items() if result.outcome == "passed"]
    named = re.findall(r'"Programming Language :: Python :: (3\.\d+)"', PROJECT)
    assert set(named) == {it.python for it in passed} == set(PYTHONS)
    assert f'requires-python = ">={PYTHONS[0]}"' in PROJECT
    both = {OLDEST, NEWEST}
    assert {it.keras for it in passed} == {it.tensorflow for it in passed} == both


def test_oldest_are_the_oldest_that_pip_may_take() -> None:
    oldest = Combination("3.12", OLDEST, OLDEST).requirements()
    assert oldest == ["keras==3.12.0", "tensorflow-cpu==2.20.0"]
    assert Combination("3.12", NEWEST, NEWEST).requirements() == []
    for requirement in oldest:
        assert f'"{requirement.replace("==", ">=").removesuffix(".0")}' in PROJECT
