"""Whether a result has lost a file or never had it, on disk and in Blob Storage."""

from __future__ import annotations

import pytest

from serve_app.files.absence import Listings, may_be_chunk
from serve_app.files.paths import ResultsUnavailable
from serve_app.files.protocols import Folder, OpenedFile
from serve_app.files.serving import CHUNK_SIZE
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

    def is_listed(folder: Folder, path: str) -> bool:
        # What is kept, and what is too large for that, is read in different ways.
        found = [each.contain("result", folder, path) for each in (Listings(), Listings(0))]
        assert found[0] == found[1]
        return found[0]

    with pytest.raises(ResultsUnavailable):
        is_listed(folder, "r.zarr/t/c/0/1")
    lines = [f"{n:064x}  r.zarr/t/c/{n}/1\n" for n in range(CHUNK_SIZE // 80 + 100)]
    write(CHECKSUMS, "".join([*lines, f"{1:064x}  two  names\n"]).encode())
    for path in ("r.zarr/t/c/0/1", "./r.zarr//t/c/7/1", *(line[66:-1] for line in lines[::5000])):
        assert is_listed(folder, path)
    assert is_listed(folder, lines[-1][66:-1])
    for path in ("r.zarr/t/c/0/10", "r.zarr/t/c/0", "t/c/0/1", "r.zarr/t/c.0/1", "names"):
        assert not is_listed(folder, path)


class Counting:
    """Counts the reads of checksums."""

    def __init__(self, folder: Folder) -> None:
        self.folder = folder
        self.reads = 0

    def open(self, relative: str, *, whole: bool) -> OpenedFile:
        assert not whole  # which would read them from Blob Storage
        file = self.folder.open(relative, whole=whole)
        read = file.read

        def counted(part: range) -> bytes:
            self.reads += 1
            return read(part)

        file.read = counted  # type: ignore[method-assign]
        return file


def test_checksums_are_read_once_until_they_change(place: tuple[Folder, Write]) -> None:
    folder, write = Counting(place[0]), place[1]
    listings = Listings()
    write(CHECKSUMS, f"{1:064x}  t/c/1\n".encode())
    assert [listings.contain("a", folder, f"t/c/{n}") for n in (1, 2, 3)] == [True, False, False]
    assert folder.reads == 1
    write(CHECKSUMS, f"{1:064x}  t/c/22\n".encode())
    assert [listings.contain("a", folder, f"t/c/{n}") for n in (1, 22)] == [False, True]
    assert folder.reads == 2


def test_only_the_checksums_used_last_are_kept(place: tuple[Folder, Write]) -> None:
    folder, write = Counting(place[0]), place[1]
    content = f"{1:064x}  t/c/1\n".encode()
    write(CHECKSUMS, content)
    listings = Listings(max_bytes=4 * len(content))
    for result in ("a", "b", "c", "d", "a", "e"):
        assert listings.contain(result, folder, "t/c/1")
    assert folder.reads == 5
    assert listings.contain("a", folder, "t/c/1")
    assert folder.reads == 5
    assert listings.contain("b", folder, "t/c/1")
    assert folder.reads == 6
    large = Listings(max_bytes=4 * len(content) - 1)
    for _ in range(2):
        assert large.contain("a", folder, "t/c/1")
    assert folder.reads == 8
