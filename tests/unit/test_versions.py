"""Versions that hyparflow does not work with are refused by name, before anything is sent."""

from __future__ import annotations

import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace

import pytest

import hyparflow as hf
from hyparflow.model import versions
from hyparflow.model.versions import MINIMUM, found_version, require_versions

REPOSITORY = Path(__file__).parents[2]


def import_as(name: str, version: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, name, SimpleNamespace(__version__=version))


def test_what_is_here_is_taken() -> None:
    require_versions()
    assert found_version("keras")[1] == metadata.version("keras")


@pytest.mark.parametrize(
    ("name", "version"),
    [("keras", "2.15.0"), ("keras", "3.11.3"), ("tensorflow", "2.19.1"), ("tensorflow", "1.15")],
)
def test_older_ones_are_refused(name: str, version: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import_as(name, version, monkeypatch)
    with pytest.raises(ImportError) as caught:
        require_versions()
    text = str(caught.value)
    assert f"hyparflow works with {name} {MINIMUM[name]} and newer. Received: {name}" in text
    assert f" {version}. Install a newer one: pip install" in text


@pytest.mark.parametrize("version", ["3.12.0", "3.100", "4.0.0.dev2026"])
def test_newer_ones_are_taken(version: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import_as("keras", version, monkeypatch)
    require_versions()


def test_each_way_in_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before it imports what older versions lack, or looks at the model."""
    import_as("keras", "3.0.5", monkeypatch)
    for function in (hf.fit, hf.evaluate, hf.predict, hf.parallelize):
        with pytest.raises(ImportError, match=r"Received: keras 3\.0\.5\."):
            function(None)
    with pytest.raises(ImportError, match=r"Received: keras 3\.0\.5\."):
        _ = hf.plan


def test_a_package_of_another_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(versions._NAMES, "tensorflow", ("no-such-package",))
    monkeypatch.delitem(sys.modules, "tensorflow", raising=False)
    package, version = found_version("tensorflow")
    assert package.startswith("tensorflow")
    assert version == metadata.version(package)


def test_nothing_installed_is_not_too_old(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(versions._NAMES, "tensorflow", ("no-such-package",))
    monkeypatch.setattr(metadata, "packages_distributions", dict)
    monkeypatch.delitem(sys.modules, "tensorflow", raising=False)
    assert found_version("tensorflow") == ("no-such-package", "")
    require_versions()


def test_the_command_says_that_there_is_no_tensorflow(tmp_path: Path) -> None:
    script = f"""
import importlib.metadata, sys
sys.modules["tensorflow"] = None
importlib.metadata.version = lambda name: (_ for _ in ()).throw(
    importlib.metadata.PackageNotFoundError(name))
importlib.metadata.packages_distributions = dict
from hyparflow.cli.plan import plan
plan(["{tmp_path / "model.keras"}", "--ranks", "2", "--batch-size", "8"])
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 2
    assert "Received: an environment without it. Install it by: pip install" in done.stderr


def test_the_package_asks_for_the_same() -> None:
    text = (REPOSITORY / "pyproject.toml").read_text()
    assert f'"keras>={MINIMUM["keras"]}"' in text
    asked = re.findall(r'"tensorflow[^"]*>=([\d.]+)', text)
    assert len(asked) == 3
    assert set(asked) == {MINIMUM["tensorflow"]}
