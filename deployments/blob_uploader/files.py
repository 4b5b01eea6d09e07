"""The files of a result, as its checksums describe them."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator
from pathlib import Path

from deployments.azure.local_file import LocalFile, unreadable
from deployments.results.media_types import media_type
from deployments.runtime.failures import sanitize
from workflows.errors import UploadFailed
from workflows.execution import Stage
from workflows.manifest import CHECKSUMS

_LINE = re.compile(r"([0-9a-f]{64})  ([^\0]+)")


def described_files(folder: Path) -> list[LocalFile]:
    """Return the files of a result; the one with all checksums comes last.

    Raises UploadFailed if the result was never described, or one of its files is missing.
    """
    checksums = folder / CHECKSUMS
    try:
        content = checksums.read_bytes()
    except FileNotFoundError:
        raise UploadFailed(Stage.UPLOAD, "this server has no results to upload") from None
    except OSError as error:
        raise unreadable(CHECKSUMS, error) from None
    real = Path(os.path.realpath(folder))
    files = [described_file(real, key, sha256) for sha256, key in _parse(content)]
    sha256 = hashlib.sha256(content).hexdigest()
    files.append(_file(real, CHECKSUMS, len(content), sha256))
    return files


def _parse(content: bytes) -> Iterator[tuple[str, str]]:
    for line in filter(None, content.decode("utf-8", "surrogateescape").split("\n")):
        match = _LINE.fullmatch(line)
        if match is None:
            raise UploadFailed(Stage.UPLOAD, f"{CHECKSUMS} cannot be read: {line[:80]!r}")
        yield match[1], match[2]


def described_file(folder: Path, key: str, sha256: str) -> LocalFile:
    """Return a file of a result; UploadFailed if it is missing or outside of the folder.

    Links in the path of the folder must be resolved.
    """
    path = folder / key
    # A user's own workflow class may have written anything into the checksums.
    if str(path) != f"{folder}/{key}" or ".." in path.parts:
        raise UploadFailed(Stage.UPLOAD, f"{key[:80]!r} is no path below the folder of the result")
    try:
        size = path.stat().st_size
    except OSError as error:
        raise unreadable(key, error) from None
    if os.path.realpath(path) != str(path):
        raise UploadFailed(Stage.UPLOAD, f"{sanitize(key)} is a link or lies behind one")
    return _file(folder, key, size, sha256)


def _file(folder: Path, key: str, size: int, sha256: str) -> LocalFile:
    return LocalFile(key, folder / key, size, sha256, media_type(key))
