"""Distinguishes files that a result never had from files that it has lost.

To a Zarr reader, 404 for a chunk means that the chunk was never written and is full of the fill
value. No other status is read that way.
"""

from __future__ import annotations

import re
from collections.abc import Hashable, Iterator
from threading import Lock

from serve_app.files.paths import ResultsUnavailable, split_path
from serve_app.files.protocols import Folder, OpenedFile
from serve_app.files.serving import CHUNK_SIZE
from workflows.errors import ResultsNotFound
from workflows.manifest import CHECKSUMS

# Zarr v3: c, c/0/0, c.0.0; Zarr v2: 0, 0/0, 0.0.
_CHUNK = re.compile(r"(?:.*/)?(?:c|(?:c\.)?\d+(?:\.\d+)*)", re.DOTALL)
_DIGEST = re.compile(rb"^[0-9a-f]{64}", re.MULTILINE)


def may_be_chunk(relative: str) -> bool:
    """Return whether a path is one that Zarr gives to a chunk."""
    return _CHUNK.fullmatch(relative) is not None


class Listings:
    """The checksums of results, which name all their files; thread-safe.

    The last ones are kept, because a Zarr reader asks for many chunks that were never written.

    Parameters
    ----------
    max_bytes : int
        Size of all that are kept; each may have a quarter of it.
    """

    def __init__(self, max_bytes: int = 32 << 20) -> None:
        self._max_bytes = max_bytes
        self._kept: dict[Hashable, tuple[str, bytes]] = {}
        self._lock = Lock()

    def contain(self, result: Hashable, folder: Folder, relative: str) -> bool:
        """Return whether a path is among the checksums of a result.

        Parameters
        ----------
        result : hashable
            Identifies the result.
        folder : Folder
            Its files.
        relative : str
            A path among them.

        Raises
        ------
        ResultsUnavailable
            If there are no checksums: they are written last and removed first, so the folder is
            missing, for example because its mount is.
        """
        wanted = b"/".join(name.encode(errors="surrogateescape") for name in split_path(relative))
        try:
            file = folder.open(CHECKSUMS, whole=False)
        except ResultsNotFound:
            raise ResultsUnavailable("the results cannot be read now") from None
        try:
            return any(_has_line(lines, wanted) for lines in self._lines(result, file))
        finally:
            file.close()

    def _lines(self, result: Hashable, file: OpenedFile) -> Iterator[bytes]:
        """Yield the checksums in parts of whole lines, of which only large files have several."""
        if file.size > self._max_bytes // 4:
            yield from _read_lines(file)
            return
        etag = file.validators.etag
        with self._lock:
            kept_etag, content = self._kept.get(result, ("", b""))
        if kept_etag != etag:
            content = b"".join(_read_lines(file))
        with self._lock:
            self._kept.pop(result, None)
            self._kept[result] = etag, content
            while sum(len(each) for _, each in self._kept.values()) > self._max_bytes:
                del self._kept[next(iter(self._kept))]
        yield content


def _read_lines(file: OpenedFile) -> Iterator[bytes]:
    """Yield a file in parts of whole lines."""
    rest = b""
    for start in range(0, file.size, CHUNK_SIZE):
        content = rest + file.read(range(start, min(start + CHUNK_SIZE, file.size)))
        lines, newline, rest = content.rpartition(b"\n")
        yield lines + newline


def _has_line(lines: bytes, wanted: bytes) -> bool:
    """Return whether a path has a checksum in a part of a file.

    A regular expression would take some 50 times as long, and all other requests would wait for it.
    """
    ending = b"  " + wanted + b"\n"
    at = lines.find(ending)
    while at >= 0:
        if at >= 64 and _DIGEST.fullmatch(lines, at - 64, at):
            return True
        at = lines.find(ending, at + 1)
    return False
