"""Arrays arrive on ranks as they were: of their class, byte order and layout."""

from __future__ import annotations

from pathlib import Path

import pytest

np = pytest.importorskip("numpy")
pytest.importorskip("cloudpickle")

from hyparflow.launching.payload import RemoteCall, read_call, write_call  # noqa: E402


def test_arrays_arrive_as_they_were(tmp_path: Path) -> None:
    large = np.arange(200_000.0).reshape(400, 500)
    arrays = [
        np.ma.masked_array(large, large > 5),
        np.asfortranarray(large),
        large.astype(">f8"),
        large.view(np.recarray),
        large,
    ]
    write_call(tmp_path, RemoteCall(print, (arrays,), {}))
    (found,) = read_call(tmp_path).args
    for array, twin in zip(arrays, found, strict=True):
        assert type(twin) is type(array)
        assert twin.dtype.str == array.dtype.str
        assert twin.flags.f_contiguous == array.flags.f_contiguous
        np.testing.assert_array_equal(twin, array)
    assert found[0].sum() == arrays[0].sum() == 15
