"""Pythons of this machine, and environments that are made of them."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
ENVIRONMENTS = REPOSITORY / ".environments"  # not in git
# What a clone or the shell that runs this would otherwise lend to the environment.
_LENT = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", "PYTHONDONTWRITEBYTECODE")


def find_python(version: str) -> Path | None:
    """An interpreter of that version, "3.12" for example; None if this machine has none.

    It is looked for here, on the PATH, among pyenv's, and by uv, if that is installed.
    """
    for path in _candidates(version):
        if _version_of(path) == version:
            return path
    return None


def _candidates(version: str) -> Iterator[Path]:
    name = f"python{version}"
    yield Path(sys.executable)
    for folder in os.environ.get("PATH", "").split(os.pathsep):
        yield Path(folder) / name
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    yield from sorted(pyenv.glob(f"{version}.*/bin/{name}"))
    if uv := shutil.which("uv"):
        found = subprocess.run([uv, "python", "find", version], capture_output=True, text=True)
        yield Path(found.stdout.strip() or os.devnull)


def _version_of(path: Path) -> str:
    """As "3.12"; empty for what is no Python that starts."""
    code = "import sys; print('%d.%d' % sys.version_info[:2])"
    try:
        done = subprocess.run([path, "-c", code], capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


@dataclass(frozen=True)
class Environment:
    """A folder with a Python of its own."""

    folder: Path

    @classmethod
    def make(cls, name: str, python: Path, is_new: bool = True) -> Environment:
        """An empty one, or the one that is there, if it need not be new."""
        environment = cls(ENVIRONMENTS / name)
        if is_new or not environment.python.exists():
            environment.remove()
            subprocess.run([python, "-m", "venv", environment.folder], check=True, env=alone())
        return environment

    @property
    def programs(self) -> Path:
        """The folder of its programs."""
        return self.folder / "bin"

    @property
    def python(self) -> Path:
        """Its interpreter."""
        return self.programs / "python"

    def install(self, *requirements: str) -> str:
        """Install packages; what pip says, if it cannot, and otherwise nothing."""
        pip = [self.python, "-m", "pip", "install", "-q", "--no-compile", *requirements]
        done = subprocess.run(
            pip, env=alone(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        return done.stdout if done.returncode else ""

    def run(
        self, command: Sequence[str | Path], folder: Path, limit: float = 600
    ) -> subprocess.CompletedProcess[str]:
        """Run a command in a folder, with this environment's programs first on the PATH.

        Args:
            command: its words.
            folder: where it runs.
            limit: seconds after which it is ended, with all that it started.
        """
        environ = alone() | {"PATH": f"{self.programs}{os.pathsep}{os.environ['PATH']}"}
        # `timeout` ends mpirun by a signal that it passes on to its ranks.
        return subprocess.run(
            ["timeout", "-k", "10", str(limit), *command],
            cwd=folder,
            env=environ,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def versions(self, *packages: str) -> dict[str, str]:
        """The versions of those of `packages` that it has."""
        code = (
            "import importlib.metadata as m, json, sys; have = {}\n"
            "for name in sys.argv[1:]:\n"
            "    try: have[name] = m.version(name)\n"
            "    except m.PackageNotFoundError: pass\n"
            "print(json.dumps(have | {'python': sys.version.split()[0]}))"
        )
        done = self.run([self.python, "-c", code, *packages], self.folder)
        versions: dict[str, str] = json.loads(done.stdout)
        return versions

    def remove(self) -> None:
        """Delete it."""
        shutil.rmtree(self.folder, ignore_errors=True)


def alone() -> dict[str, str]:
    """The variables of this process, without what points into other environments."""
    return {name: value for name, value in os.environ.items() if name not in _LENT}
