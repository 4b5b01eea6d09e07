"""Distinguishes files that a result never had from files that it has lost.

To a Zarr reader, 404 for a chunk means that the chunk was never written and is full of the fill
value. No other status is read that way.
"""

from __future__ import annotations

import re

from serve_app.files.paths import ResultsUnavailable, split_path
from serve_app.files.serving import CHUNK_SIZE, Folder
from workflows.errors import ResultsNotFound
from workflows.manifest import CHECKSUMS

# Zarr v3: c, c/0/0, c.0.0; Zarr v2: 0, 0/0, 0.0.
_CHUNK = re.compile(r"(?:.*/)?(?:c|(?:c\.)?\d+(?:\.\d+)*)", re.DOTALL)


def may_be_chunk(relative: str) -> bool:
    """Return whether a path is one that Zarr gives to a chunk."""
    return _CHUNK.fullmatch(relative) is not None


def is_listed(folder: Folder, relative: str) -> bool:
    """Return whether a path is among the checksums of a result, which name all its files.

    Raises
    ------
    ResultsUnavailable
        If there are no checksums: they are written last and removed first, so the folder is
        missing, for example because its mount is.
    """
    wanted = b"/".join(name.encode(errors="surrogateescape") for name in split_path(relative))
    line = re.compile(rb"^[0-9a-f]{64}  %s$" % re.escape(wanted), re.MULTILINE)
    try:
        file = folder.open(CHECKSUMS, whole=True)
    except ResultsNotFound:
        raise ResultsUnavailable("the results cannot be read now") from None
    try:
        rest = b""
        for start in range(0, file.size, CHUNK_SIZE):
            content = rest + file.read(range(start, min(start + CHUNK_SIZE, file.size)))
            lines, _, rest = content.rpartition(b"\n")
            if line.search(lines):
                return True
        return False
    finally:
        file.close()
