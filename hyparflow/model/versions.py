"""The versions of Keras and TensorFlow that hyparflow works with."""

from __future__ import annotations

import contextlib
import re
import sys
from importlib import metadata

__all__ = ["LEAST", "found_version", "is_too_old", "require_versions"]

# The oldest that `make compat` tries; docs/versions.rst has the results. pyproject.toml asks for
# the same, but TensorFlow may have been there before, and either may be changed afterwards.
LEAST = {"keras": "3.12", "tensorflow": "2.20"}
_NAMES = {"keras": ("keras",), "tensorflow": ("tensorflow", "tensorflow-cpu")}  # to pip


def require_versions() -> None:
    """Check that Keras and TensorFlow are not too old. Imports neither.

    Raises:
        ImportError: naming the one that is, and the command that replaces it.
    """
    for name, least in LEAST.items():
        package, version = found_version(name)
        if is_too_old(name, version):
            raise ImportError(
                f"hyparflow works with {name} {least} and newer. Received: {package} {version}. "
                f'Install a newer one: pip install "{package}>={least}"'
            )


def found_version(name: str) -> tuple[str, str]:
    """The package that has `name`, and its version; an empty one if there is none.

    Args:
        name: "keras" or "tensorflow".

    Returns:
        The package as pip knows it, and the version: of what is imported, or else installed.
    """
    package, installed = _installed(name)
    imported = getattr(sys.modules.get(name), "__version__", "")
    return package, str(imported or installed)


def _installed(name: str) -> tuple[str, str]:
    for package in _NAMES[name]:
        with contextlib.suppress(metadata.PackageNotFoundError):
            return package, metadata.version(package)
    # Nightly builds and those of vendors have other names. This reads every package's list.
    others = metadata.packages_distributions().get(name, [])
    return (others[0], metadata.version(others[0])) if others else (_NAMES[name][0], "")


def is_too_old(name: str, version: str) -> bool:
    """Whether `version` of "keras" or "tensorflow" is; an empty one is not known to be."""
    return bool(version) and _numbers(version) < _numbers(LEAST[name])


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", version)[:2])
