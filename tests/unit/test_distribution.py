"""What `make dist` relies on; it takes minutes itself."""

from __future__ import annotations

import sys
import tarfile
import textwrap
import zipfile
from pathlib import Path

import pytest
from distribution import build
from distribution.dist import examples
from distribution.environments import REPOSITORY, find_python


def test_this_python_is_found() -> None:
    version = "{}.{}".format(*sys.version_info[:2])
    assert find_python(version) is not None
    assert find_python("3.999") is None


BLOCK = """\
    import keras
    import hyparflow as hf

    hf.fit(keras.Sequential(), 1)
"""


@pytest.mark.parametrize("start", ["A script::", ".. code-block:: python", ".. code:: python"])
def test_the_example_of_a_page_is_found(start: str) -> None:
    text = (
        f"Title\n=====\n\n{start}\n\n{BLOCK}\nA part::\n\n    hf.fit(model)\n\n::\n\n    $ ls -l\n"
    )
    assert examples(text) == [textwrap.dedent(BLOCK).strip()]


def test_the_readme_has_an_example() -> None:
    assert examples((REPOSITORY / "README.rst").read_text())


def test_what_is_lacking_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "sources", lambda: {"README.rst", "hyparflow/a.py", ".ci/run"})
    (tmp_path / "a.py").touch()
    with tarfile.open(tmp_path / "s.tar.gz", "w:gz") as sdist:
        sdist.add(tmp_path / "a.py", "hyparflow-0.1.0/hyparflow/a.py")
    with zipfile.ZipFile(tmp_path / "w.whl", "w") as wheel:
        wheel.writestr("hyparflow/b.py", "")
        wheel.writestr("hyparflow-0.1.0.dist-info/entry_points.txt", "[console_scripts]\n")
    assert build.lacks(tmp_path / "s.tar.gz", tmp_path / "w.whl") == [
        "s.tar.gz lacks README.rst",
        "w.whl lacks hyparflow/a.py",
        "w.whl has hyparflow/b.py, which the source has not",
        "w.whl lacks the command hyparflow = hyparflow.cli.main:main",
    ]
