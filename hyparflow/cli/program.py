"""What ``hyparflow run`` starts on each rank."""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
import zipfile
from collections.abc import Sequence
from importlib.machinery import PathFinder
from pathlib import Path

__all__ = ["command_of"]


def command_of(program: Sequence[str], is_module: bool) -> list[str]:
    """The command of a rank: Python scripts and modules run by this Python.

    Raises:
        ValueError: if there is no such program.
    """
    name = program[0]
    if is_module:
        _require_module(name)
        return [sys.executable, "-m", *program]
    if name == "-":
        raise ValueError(
            "PROGRAM must be a file: several ranks cannot read it from one standard input. "
            "Received: -. Write it into a file first."
        )
    if name.startswith("-"):
        raise ValueError(f"Options stand before PROGRAM. Received: {name}, which is none")
    if _is_python(Path(name)):
        return [sys.executable, *program]
    if not name or shutil.which(name) is None:
        raise ValueError(
            f"PROGRAM must be a Python script, or a program on the PATH. Received: {name}"
        )
    return list(program)


def _is_python(path: Path) -> bool:
    """Whether Python runs it: a script, or a folder or archive with a main program."""
    if path.is_dir() and (path / "__main__.py").exists():
        return True
    if path.suffix in (".py", ".pyc", ".pyz"):
        if not path.exists():
            raise ValueError(f"PROGRAM must be there. Received: {path}, which does not exist")
        if path.is_dir():
            raise ValueError(
                f"PROGRAM must be a script. Received: {path}, a folder without __main__.py"
            )
        if not os.access(path, os.R_OK):
            raise ValueError(f"PROGRAM must be readable. Received: {path}, which is not")
        return True
    return path.is_file() and zipfile.is_zipfile(path)


def _require_module(name: str) -> None:
    """Look for the module's package, without importing it."""
    first = name.split(".")[0]
    try:
        found = PathFinder.find_spec(first, [os.getcwd()]) or importlib.util.find_spec(first)
    except (ImportError, ValueError, OSError):
        found = None
    if found is None:
        raise ValueError(f"PROGRAM must be a module with -m. Received: {name}, which is not there")
