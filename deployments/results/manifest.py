"""The files of a result as its manifest lists them, and the checksums file."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import NamedTuple

from deployments.results.work import StoredObject
from workflows.manifest import CHECKSUMS, OutputFile, Totals

MAX_LISTED = 10_000
"""The chunks of a result with more files than this are not listed."""


class Listing(NamedTuple):
    """The files of a result, as its manifest names them."""

    output_files: tuple[OutputFile, ...]
    totals: Totals


def list_files(
    files: Iterable[StoredObject],
    chunks: Iterable[StoredObject],
    checksums: Path,
    execution_id: str,
    max_listed: int = MAX_LISTED,
) -> Listing:
    """Write the checksums of all delivered files, and return the bounded list of them.

    Parameters
    ----------
    files : iterable of StoredObject
        Files to list first.
    chunks : iterable of StoredObject
        Files to list only if all files together are at most `max_listed`. They are consumed one by
        one: memory does not grow with their number beyond that.
    checksums : Path
        Where to write the checksums, in the format of ``sha256sum -c``.
    execution_id : str
        Put before every key in the list, where Earth2Studio's clients expect it.
    """
    n_files = n_bytes = 0

    def lines(group: Iterable[StoredObject], listed: list[OutputFile]) -> Iterator[bytes]:
        nonlocal n_files, n_bytes
        for file in group:
            n_files += 1
            n_bytes += file.size
            if len(listed) < max_listed - 1:  # the checksums file is listed, too
                listed.append(_output_file(file, execution_id))
            yield f"{file.sha256}  {file.key}\n".encode()

    listed_files: list[OutputFile] = []
    listed_chunks: list[OutputFile] = []
    digest = hashlib.sha256()
    with checksums.open("wb") as output:
        for line in chain(lines(files, listed_files), lines(chunks, listed_chunks)):
            output.write(line)
            digest.update(line)
        own = StoredObject(CHECKSUMS, output.tell(), digest.hexdigest())
    listed_files.append(_output_file(own, execution_id))
    n_files += 1
    n_bytes += own.size
    truncated = n_files > max_listed
    if not truncated:
        listed_files += listed_chunks
    totals = Totals(files=n_files, bytes=n_bytes, listed=len(listed_files), truncated=truncated)
    return Listing(tuple(listed_files), totals)


def _output_file(file: StoredObject, execution_id: str) -> OutputFile:
    return OutputFile(path=f"{execution_id}/{file.key}", size=file.size, sha256=file.sha256)


def hash_file(path: Path, key: str) -> StoredObject:
    """Read a file for its size and SHA-256."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        return StoredObject(key, file.tell(), digest)
