"""What messages tell users to type works for how hyparflow was installed."""

from __future__ import annotations

import importlib.metadata
import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest

from hyparflow.launching.installation import PACKAGES, install_command

OF_PACKAGES = "pip install matplotlib"
PROJECT = '[project]\nname = "hyparflow"\n'
VERSION = "0.1.0"


def clone_in(folder: Path) -> Path:
    """A clone of hyparflow's repository."""
    folder.mkdir(parents=True)
    (folder / "pyproject.toml").write_text(PROJECT)
    return folder


def site_packages(folder: Path, origin: dict[str, Any] | None = None) -> Path:
    """A folder of packages with hyparflow, and what pip notes of where it got it."""
    information = folder / "site-packages" / f"hyparflow-{VERSION}.dist-info"
    information.mkdir(parents=True)
    (information / "METADATA").write_text(f"Name: hyparflow\nVersion: {VERSION}\n")
    if origin is not None:
        (information / "direct_url.json").write_text(json.dumps(origin))
    return information.parent


def test_from_an_index(tmp_path: Path) -> None:
    assert install_command("plot", site_packages(tmp_path)) == 'pip install "hyparflow[plot]"'
    assert install_command("cpu", site_packages(tmp_path / "b")) == 'pip install "hyparflow[cpu]"'


def test_from_a_clone(tmp_path: Path) -> None:
    clone = clone_in(tmp_path / "my clone")
    folder = site_packages(tmp_path, {"url": clone.as_uri(), "dir_info": {}})
    assert "%20" in clone.as_uri()
    assert install_command("plot", folder) == f'pip install "{clone}[plot]"'
    (clone / "pyproject.toml").unlink()
    assert install_command("plot", folder) == OF_PACKAGES


def test_from_a_clone_that_can_be_edited(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clone = clone_in(tmp_path / "clone")
    origin = {"url": clone.as_uri(), "dir_info": {"editable": True}}
    monkeypatch.setattr(sys, "path", [str(site_packages(tmp_path, origin))])
    assert install_command("plot", clone) == f'pip install -e "{clone}[plot]"'
    # The package that is imported is another clone's, which PYTHONPATH names.
    other = clone_in(tmp_path / "other")
    assert install_command("plot", other) == f'pip install "{other}[plot]"'


def test_on_the_path_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clone = clone_in(tmp_path / "clone")
    monkeypatch.setattr(sys, "path", [str(clone)])
    assert install_command("plot", clone) == f'pip install "{clone}[plot]"'
    # Building leaves a folder from which Python reads that hyparflow is installed there.
    (clone / "hyparflow.egg-info").mkdir()
    (clone / "hyparflow.egg-info" / "PKG-INFO").write_text(f"Name: hyparflow\nVersion: {VERSION}\n")
    assert importlib.metadata.version("hyparflow") == VERSION
    assert install_command("plot", clone) == f'pip install "{clone}[plot]"'


def test_a_copy_without_anything(tmp_path: Path) -> None:
    assert install_command("plot", tmp_path) == OF_PACKAGES
    (tmp_path / "pyproject.toml").write_text('[project]\nname = "of the user"\n')
    assert install_command("plot", tmp_path) == OF_PACKAGES


def test_from_a_file(tmp_path: Path) -> None:
    wheel = tmp_path / "hyparflow-0.1.0-py3-none-any.whl"
    wheel.touch()
    folder = site_packages(tmp_path, {"url": wheel.as_uri(), "archive_info": {"hash": "sha256=0"}})
    assert install_command("plot", folder) == f'pip install "hyparflow[plot] @ {wheel.as_uri()}"'
    wheel.unlink()
    assert install_command("plot", folder) == OF_PACKAGES


def test_from_a_web_page(tmp_path: Path) -> None:
    url = "https://example.org/hyparflow-0.1.0.tar.gz"
    folder = site_packages(tmp_path, {"url": url, "archive_info": {}})
    assert install_command("plot", folder) == f'pip install "hyparflow[plot] @ {url}"'


@pytest.mark.parametrize(
    ("noted", "end"),
    [
        ({"commit_id": "0a1b"}, "@0a1b"),
        ({"commit_id": "0a1b", "requested_revision": "main"}, "@main"),
    ],
)
def test_from_a_repository(tmp_path: Path, noted: dict[str, str], end: str) -> None:
    url = "https://example.org/hyparflow.git"
    folder = site_packages(tmp_path, {"url": url, "vcs_info": {"vcs": "git", **noted}})
    assert install_command("plot", folder) == f'pip install "hyparflow[plot] @ git+{url}{end}"'


def test_from_a_repository_of_this_machine(tmp_path: Path) -> None:
    origin = {"url": clone_in(tmp_path / "a").as_uri(), "vcs_info": {"vcs": "git"}}
    assert install_command("plot", site_packages(tmp_path, origin)) == OF_PACKAGES


def test_what_pip_noted_cannot_be_read(tmp_path: Path) -> None:
    folder = site_packages(tmp_path)
    (folder / f"hyparflow-{VERSION}.dist-info" / "direct_url.json").write_text("{")
    assert install_command("plot", folder) == 'pip install "hyparflow[plot]"'


def test_a_shell_takes_it_as_one_word(tmp_path: Path) -> None:
    clone = clone_in(tmp_path / "a $HOME")
    assert install_command("plot", clone) == f"pip install '{clone}[plot]'"
    assert install_command("gpu", tmp_path) == 'pip install "tensorflow[and-cuda]"'


def test_packages_are_those_of_the_extras() -> None:
    text = (Path(__file__).parents[2] / "pyproject.toml").read_text()
    extras = text.split("[project.optional-dependencies]")[1].split("\n[")[0]
    for extra, packages in PACKAGES.items():
        (listed,) = re.findall(rf"^{extra} = (\[.*?\](?=\n|  #))", extras, re.MULTILINE | re.DOTALL)
        for package in packages:
            assert re.search(rf'"{re.escape(package)}["><=;]', listed), (extra, package)


def test_messages_name_no_index_themselves() -> None:
    """Whether an index has hyparflow, one file finds out."""
    root = Path(__file__).parents[2] / "hyparflow"
    told = [path.name for path in root.rglob("*.py") if "hyparflow[" in path.read_text()]
    assert told == ["installation.py"]
