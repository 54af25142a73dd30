"""The versions of Keras and TensorFlow that hyparflow works with."""

from __future__ import annotations

import contextlib
import re
import sys
from importlib import metadata

__all__ = ["MINIMUM", "found_version", "is_too_old", "require_versions"]

# The oldest versions that `make compat` tries; docs/versions.rst has the results. pyproject.toml
# asks for the same, but pip checks only when hyparflow is installed.
MINIMUM = {"keras": "3.12", "tensorflow": "2.20"}
_NAMES = {"keras": ("keras",), "tensorflow": ("tensorflow", "tensorflow-cpu")}  # on PyPI


def require_versions() -> None:
    """Check that Keras and TensorFlow are not too old. Imports neither.

    Raises:
        ImportError: if one is too old; the message has the pip command.
    """
    for name, least in MINIMUM.items():
        package, version = found_version(name)
        if is_too_old(name, version):
            raise ImportError(
                f"hyparflow works with {name} {least} and newer. Received: {package} {version}. "
                f'Install a newer one: pip install "{package}>={least}"'
            )


def found_version(name: str) -> tuple[str, str]:
    """The installed package that provides module `name`, and its version.

    Args:
        name: "keras" or "tensorflow".

    Returns:
        The name of the package on PyPI, and the version: of the imported module, or else of the
        installed package; an empty string if there is neither.
    """
    package, installed = _installed(name)
    imported = getattr(sys.modules.get(name), "__version__", "")
    return package, str(imported or installed)


def _installed(name: str) -> tuple[str, str]:
    for package in _NAMES[name]:
        with contextlib.suppress(metadata.PackageNotFoundError):
            return package, metadata.version(package)
    # Builds of vendors have other names. Slow: reads the file lists of all installed packages.
    others = metadata.packages_distributions().get(name, [])
    return (others[0], metadata.version(others[0])) if others else (_NAMES[name][0], "")


def is_too_old(name: str, version: str) -> bool:
    """Whether `version` of "keras" or "tensorflow" is older than the minimum; False if empty."""
    return bool(version) and _numbers(version) < _numbers(MINIMUM[name])


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", version)[:2])
