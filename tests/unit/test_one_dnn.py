"""Ranks compute with oneDNN where it is faster; other processes do what TensorFlow does."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from hyparflow.launching.one_dnn import choose_one_dnn, is_left_off, processor_flags

RANK = {"OMPI_COMM_WORLD_SIZE": "2"}
CHOICE = "TF_ENABLE_ONEDNN_OPTS"
AVX2 = frozenset(["sse2", "avx2", "fma"])


@pytest.fixture
def before_tensorflow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "tensorflow", raising=False)


@pytest.mark.usefixtures("before_tensorflow")
@pytest.mark.parametrize(
    ("environ", "flags", "expected"),
    [
        (RANK, AVX2, "1"),
        ({}, AVX2, None),
        (RANK | {CHOICE: "0"}, AVX2, "0"),
        (RANK, AVX2 | {"avx512_vnni"}, None),
        (RANK, frozenset(["sse2", "avx"]), None),
        (RANK, frozenset(), None),
    ],
)
def test_it_is_chosen_where_it_gains(
    environ: dict[str, str], flags: frozenset[str], expected: str | None
) -> None:
    found = dict(environ)
    choose_one_dnn(found, flags)
    assert found.get(CHOICE) == expected


def test_it_is_too_late_once_tensorflow_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorflow", object())
    environ = dict(RANK)
    choose_one_dnn(environ, AVX2)
    assert environ == RANK
    assert is_left_off(environ, AVX2)
    assert not is_left_off(environ | {CHOICE: "0"}, AVX2)
    assert not is_left_off(environ, AVX2 | {"amx_tile"})


def test_flags_of_a_processor(tmp_path: Path) -> None:
    file = tmp_path / "cpuinfo"
    file.write_text("processor\t: 0\nflags\t\t: fpu avx2 fma\n\nprocessor\t: 1\nflags\t\t: fpu\n")
    assert processor_flags(file) == {"fpu", "avx2", "fma"}
    assert processor_flags(tmp_path / "none") == frozenset()


def test_tensorflow_takes_the_choice() -> None:
    """A rank that imports hyparflow first computes with oneDNN, wherever it could."""
    if not processor_flags() >= {"avx2", "fma"}:
        pytest.skip("oneDNN is chosen on processors with AVX2")
    code = (
        "import hyparflow, tensorflow\n"
        "from tensorflow.python.util import _pywrap_util_port as port\n"
        "print('enabled:', port.IsMklEnabled())\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", f"import os; os.environ.update({RANK})\n{code}"],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert "enabled: True" in done.stdout, done.stderr
