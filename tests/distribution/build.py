"""Builds sdist and wheel, and says what they lack."""

from __future__ import annotations

import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

from distribution.environments import REPOSITORY, Environment

_TOOLS = ("build", "twine", "cffconvert")
_NOT_HANDED_OUT = (".ci/",)  # of the repository
_COMMAND = "hyparflow = hyparflow.cli.main:main"


def tools() -> Environment:
    """An environment with what builds and checks."""
    environment = Environment.make("tools", Path(sys.executable), is_new=False)
    if problem := environment.install(*_TOOLS):
        raise SystemExit(f"{' '.join(_TOOLS)} could not be installed.\n{problem}")
    return environment


def build(with_tools: Environment, folder: Path) -> tuple[Path, Path]:
    """Build sdist and wheel, that from this, into `folder`; their paths."""
    for old in folder.glob("hyparflow-*"):
        old.unlink()
    command = [with_tools.python, "-m", "build", "--outdir", folder, REPOSITORY]
    done = with_tools.run(command, with_tools.folder)
    if done.returncode:
        raise SystemExit(f"sdist and wheel could not be built.\n{done.stdout}")
    (sdist,), (wheel,) = folder.glob("hyparflow-*.tar.gz"), folder.glob("hyparflow-*.whl")
    return sdist, wheel


def check(with_tools: Environment, sdist: Path, wheel: Path) -> list[str]:
    """What is wrong with the two, and with CITATION.cff; nothing if all is well."""
    found = [*lacks(sdist, wheel)]
    for command in (
        [with_tools.programs / "twine", "check", "--strict", sdist, wheel],
        [with_tools.programs / "cffconvert", "--validate", "-i", REPOSITORY / "CITATION.cff"],
    ):
        done = with_tools.run(command, with_tools.folder)
        if done.returncode:
            found.append(f"{command[0].name}: {done.stdout}")
    return found


def lacks(sdist: Path, wheel: Path) -> list[str]:
    """Each file that one of the two should have and has not, and what it has beside."""
    files = sources()
    package = {name for name in files if name.startswith("hyparflow/")}
    with tarfile.open(sdist) as archive:
        members = {name.partition("/")[2] for name in archive.getnames()}
    in_sdist = {name for name in files if not name.startswith(_NOT_HANDED_OUT)}
    with zipfile.ZipFile(wheel) as archive:
        in_wheel = {name for name in archive.namelist() if ".dist-info/" not in name}
        (points,) = (name for name in archive.namelist() if name.endswith("entry_points.txt"))
        commands = archive.read(points).decode()
    return [
        *(f"{sdist.name} lacks {name}" for name in sorted(in_sdist - members)),
        *(f"{wheel.name} lacks {name}" for name in sorted(package - in_wheel)),
        *(f"{wheel.name} has {name}, which the source has not" for name in in_wheel - package),
        *([] if _COMMAND in commands else [f"{wheel.name} lacks the command {_COMMAND}"]),
    ]


def sources() -> set[str]:
    """The files of this repository, as git knows them, and those that it does not ignore."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True)
    return {name for name in listed.stdout.splitlines() if (REPOSITORY / name).is_file()}
