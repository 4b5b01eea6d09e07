"""What an execution delivers: the checksums file and the bounded list of files."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import NamedTuple

from deployments.results.disk_work import Written
from workflows.manifest import OutputFile, Totals

CHECKSUMS = "checksums.sha256"
MAX_LISTED = 10_000
"""A manifest with more files than this lists only those that tell what there is."""


class Listing(NamedTuple):
    """The files of a result, as its manifest names them."""

    output_files: tuple[OutputFile, ...]
    totals: Totals


def describe_files(
    whole: Iterable[Written],
    chunks: Iterable[Written],
    checksums: Path,
    execution_id: str,
    max_listed: int = MAX_LISTED,
) -> Listing:
    """Write the checksums of delivered files and return what the manifest says of them.

    Parameters
    ----------
    whole : iterable of Written
        Files that are listed first; keys are relative to the folder of the result.
    chunks : iterable of Written
        Files that are listed only if all are together not more than `max_listed`. They are taken
        one by one: memory does not grow with their number beyond that.
    checksums : Path
        Where to write the checksums, in the form that ``sha256sum -c`` reads.
    execution_id : str
        Comes before every key in the list, where the peer's clients expect it.
    """
    files = size = 0

    def lines(group: Iterable[Written], listed: list[OutputFile]) -> Iterator[bytes]:
        nonlocal files, size
        for file in group:
            files += 1
            size += file.size
            if len(listed) < max_listed - 1:  # the checksums are listed, too
                listed.append(_entry(file, execution_id))
            yield f"{file.sha256}  {file.key}\n".encode()

    output_files: list[OutputFile] = []
    chunk_files: list[OutputFile] = []
    digest = hashlib.sha256()
    with checksums.open("wb") as sums:
        for line in chain(lines(whole, output_files), lines(chunks, chunk_files)):
            sums.write(line)
            digest.update(line)
        own = Written(CHECKSUMS, sums.tell(), digest.hexdigest())
    output_files.append(_entry(own, execution_id))
    files += 1
    size += own.size
    truncated = files > max_listed
    if not truncated:
        output_files += chunk_files
    totals = Totals(files=files, bytes=size, listed=len(output_files), truncated=truncated)
    return Listing(tuple(output_files), totals)


def _entry(file: Written, execution_id: str) -> OutputFile:
    return OutputFile(path=f"{execution_id}/{file.key}", size=file.size, sha256=file.sha256)


def hashed(path: Path, key: str) -> Written:
    """Read a file for its size and SHA-256."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        return Written(key, file.tell(), digest)
