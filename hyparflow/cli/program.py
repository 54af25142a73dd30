"""The command that ``hyparflow run`` starts on each rank."""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
import zipfile
from collections.abc import Sequence
from importlib.machinery import PathFinder
from pathlib import Path

from hyparflow.formats.plain_files import kind_of, require_plain

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
            "PROGRAM must be a Python script, or a program on the PATH. "
            f"Received: {name}{_why_not(name)}"
        )
    return list(program)


def _why_not(name: str) -> str:
    """Why a file of this name is no program; an empty string if there is no such file."""
    if not name or not os.path.exists(name):
        return ""
    if os.path.isdir(name):
        return ", a folder without __main__.py"
    if kind := kind_of(os.stat(name).st_mode):
        return f", which is {kind}"
    if os.path.dirname(name):
        return ", a file that may not be executed, and does not end with .py"
    return f", which is not on the PATH. Name the file ./{name}, or with the ending .py"


def _is_python(path: Path) -> bool:
    """Whether Python can run `path`: a script, or a folder or archive with a main program."""
    if path.is_dir() and (path / "__main__.py").is_file():
        return True
    if path.suffix in (".py", ".pyc", ".pyz"):
        if not path.exists():
            raise ValueError(f"PROGRAM must be there. Received: {path}, which does not exist")
        if path.is_dir():
            raise ValueError(
                f"PROGRAM must be a script. Received: {path}, a folder without __main__.py"
            )
        require_plain(path, "PROGRAM must be a plain file: each rank reads it.")
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
