"""What an execution delivers: the checksums file and the bounded list of files."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any

from deployments.results.disk_work import Written

CHECKSUMS = "checksums.sha256"
MAX_LISTED = 10_000
"""A manifest with more files than this lists only those that tell what there is."""


def describe_files(
    whole: Iterable[Written],
    chunks: Iterable[Written],
    checksums: Path,
    execution_id: str,
    max_listed: int = MAX_LISTED,
) -> dict[str, Any]:
    """Write the checksums of delivered files and give the manifest's part about them.

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

    Returns
    -------
    dict
        ``output_files``: path, size and sha256 of each; ``totals``: how many files and bytes there
        are, how many are listed, and whether that left any out.
    """
    files = size = 0

    def lines(group: Iterable[Written], listed: list[dict[str, Any]]) -> Iterator[bytes]:
        nonlocal files, size
        for file in group:
            files += 1
            size += file.size
            if len(listed) < max_listed - 1:  # the checksums are listed, too
                listed.append(_entry(file, execution_id))
            yield f"{file.sha256}  {file.key}\n".encode()

    output_files: list[dict[str, Any]] = []
    chunk_files: list[dict[str, Any]] = []
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
    return {
        "output_files": output_files,
        "totals": {
            "files": files,
            "bytes": size,
            "listed": len(output_files),
            "truncated": truncated,
        },
    }


def _entry(file: Written, execution_id: str) -> dict[str, Any]:
    return {"path": f"{execution_id}/{file.key}", "size": file.size, "sha256": file.sha256}


def hashed(path: Path, key: str) -> Written:
    """Read a file for its size and SHA-256."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        return Written(key, file.tell(), digest)
