"""Which versions are tried together, and the record of how it went."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from itertools import product
from pathlib import Path

from hyparflow.model.versions import MINIMUM

RECORD = Path(__file__).with_name("results.json")
PYTHONS = ("3.10", "3.11", "3.12", "3.13")
OLDEST, NEWEST = "oldest", "newest"


@dataclass(frozen=True)
class Combination:
    """What an environment is made with.

    Attributes:
        python: the version of Python.
        keras, tensorflow: `OLDEST` that hyparflow works with, or `NEWEST` that pip finds.
    """

    python: str
    keras: str
    tensorflow: str

    def __str__(self) -> str:
        return f"python-{self.python}-keras-{self.keras}-tensorflow-{self.tensorflow}"

    def requirements(self) -> list[str]:
        """What pip is asked for, beside hyparflow, so that it takes these."""
        oldest = {"keras": self.keras == OLDEST, "tensorflow-cpu": self.tensorflow == OLDEST}
        return [
            f"{package}=={MINIMUM[package.removesuffix('-cpu')]}.0"
            for package, is_oldest in oldest.items()
            if is_oldest
        ]


@dataclass(frozen=True)
class Result:
    """How a combination went.

    Attributes:
        combination: it.
        outcome: "passed", "failed", or why nothing could be run.
        date: of the day.
        versions: of the packages that took part.
        tests: how many passed.
        files: the test files.
    """

    combination: Combination
    outcome: str
    date: str
    versions: dict[str, str] = field(default_factory=dict)
    tests: int = 0
    files: list[str] = field(default_factory=list)


# Those that differ most come first.
COMBINATIONS = [
    *(Combination(python, both, both) for both, python in product((OLDEST, NEWEST), PYTHONS)),
    *(Combination(python, NEWEST, OLDEST) for python in PYTHONS),
    *(Combination(python, OLDEST, NEWEST) for python in PYTHONS),
]


def read() -> dict[Combination, Result]:
    """The results that are known."""
    if not RECORD.exists():
        return {}
    results = [
        Result(Combination(**values.pop("combination")), **values)
        for values in json.loads(RECORD.read_text())
    ]
    return {result.combination: result for result in results}


def write(results: Mapping[Combination, Result]) -> None:
    """Keep results."""
    ordered = [asdict(results[combination]) for combination in in_order(results)]
    RECORD.write_text(json.dumps(ordered, indent=1) + "\n")


def in_order(combinations: Iterable[Combination]) -> list[Combination]:
    """As they are shown, old versions first."""
    return sorted(
        combinations,
        key=lambda it: (PYTHONS.index(it.python), it.keras == NEWEST, it.tensorflow == NEWEST),
    )
