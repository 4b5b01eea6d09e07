"""Whether a result has lost a file or never had it, on disk and in Blob Storage."""

from __future__ import annotations

import pytest

from serve_app.files.absence import is_listed, may_be_chunk
from serve_app.files.paths import ResultsUnavailable
from serve_app.files.serving import CHUNK_SIZE, Folder
from tests.serve_app.files.conftest import Write
from workflows.manifest import CHECKSUMS


@pytest.mark.parametrize(
    "path", ["r.zarr/t/c/0/1", "r.zarr/t/c.0.1", "r.zarr/crs/c", "any/t/0.1", "0", "a\nb/t/c/0"]
)
def test_names_of_zarr_chunks_are_recognized(path: str) -> None:
    assert may_be_chunk(path)


@pytest.mark.parametrize(
    "path",
    [
        "r.zarr/zarr.json",
        "r.zarr/t/.zarray",
        ".zmetadata",
        "results.nc",
        "",
        "r.zarr/",
        "c.",
        "1.nc",
    ],
)
def test_other_names_are_not(path: str) -> None:
    assert not may_be_chunk(path)


def test_checksums_tell_what_a_result_had(place: tuple[Folder, Write]) -> None:
    folder, write = place
    with pytest.raises(ResultsUnavailable):
        is_listed(folder, "r.zarr/t/c/0/1")
    lines = [f"{n:064x}  r.zarr/t/c/{n}/1\n" for n in range(CHUNK_SIZE // 80 + 100)]
    write(CHECKSUMS, "".join([*lines, f"{1:064x}  two  names\n"]).encode())
    for path in ("r.zarr/t/c/0/1", "./r.zarr//t/c/7/1", *(line[66:-1] for line in lines[::500])):
        assert is_listed(folder, path)
    assert is_listed(folder, lines[-1][66:-1])
    for path in ("r.zarr/t/c/0/10", "r.zarr/t/c/0", "t/c/0/1", "r.zarr/t/c.0/1", "names"):
        assert not is_listed(folder, path)
