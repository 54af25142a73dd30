"""Where TensorFlow leaves oneDNN off, though it may be faster."""

from __future__ import annotations

from pathlib import Path

import pytest

from hyparflow.comm.one_dnn import is_left_off, processor_flags

CHOICE = "TF_ENABLE_ONEDNN_OPTS"
AVX2 = frozenset(["sse2", "avx2", "fma"])


@pytest.mark.parametrize(
    ("environ", "flags", "expected"),
    [
        ({}, AVX2, True),
        ({CHOICE: "0"}, AVX2, False),
        ({CHOICE: "1"}, AVX2, False),
        ({}, AVX2 | {"avx512_vnni"}, False),
        ({}, AVX2 | {"amx_tile"}, False),
        ({}, frozenset(["sse2", "avx"]), False),
        ({}, frozenset(), False),
    ],
)
def test_it_is_left_off(environ: dict[str, str], flags: frozenset[str], expected: bool) -> None:
    assert is_left_off(environ, flags) == expected


def test_flags_of_a_processor(tmp_path: Path) -> None:
    file = tmp_path / "cpuinfo"
    file.write_text("processor\t: 0\nflags\t\t: fpu avx2 fma\n\nprocessor\t: 1\nflags\t\t: fpu\n")
    assert processor_flags(file) == {"fpu", "avx2", "fma"}
    assert processor_flags(tmp_path / "none") == frozenset()
