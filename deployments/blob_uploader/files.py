"""Files of a result as they were described, for those who hand them on.

What is read is checked: a file that is not any more what its checksum says is not handed on.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from deployments.results.media_types import media_type
from deployments.runtime.failures import TransientFailure, describe_error, sanitize
from workflows.errors import StageFailed, UploadFailed
from workflows.execution import Stage
from workflows.manifest import CHECKSUMS

_LINE = re.compile(r"([0-9a-f]{64})  ([^\0]+)")
_DESCRIPTIVE = {".json", ".png", ".txt"}


@dataclass(frozen=True)
class UploadFile:
    """A file, and what it has to be."""

    key: str
    """Path below the folder of the result."""
    path: Path
    size: int
    sha256: str

    @property
    def media_type(self) -> str:
        """Its media type."""
        return media_type(self.key)

    @property
    def is_descriptive(self) -> bool:
        """Whether it says what is there: who finds it shall find the rest, too."""
        return PurePosixPath(self.key).suffix in _DESCRIPTIVE

    def read(self) -> bytes:
        """Read all of it.

        Raises
        ------
        UploadFailed
            If it is gone, or not any more what was described.
        """
        with self.open() as file:
            content = self.read_from(file, self.size + 1)
        if hashlib.sha256(content).hexdigest() != self.sha256:
            raise self.changed()
        return content

    def open(self) -> BinaryIO:
        """Open it for `read_from`; whoever reads it piecemeal has to check its SHA-256."""
        try:
            return open(self.path, "rb", opener=_without_links)
        except OSError as error:
            raise _unreadable(self.key, error) from None

    def read_from(self, file: BinaryIO, size: int) -> bytes:
        """Read so many bytes; fewer only at the end."""
        try:
            return file.read(size)
        except OSError as error:
            raise _unreadable(self.key, error) from None

    def changed(self) -> UploadFailed:
        """Give the error for a file that is not any more what was described."""
        return UploadFailed(
            Stage.UPLOAD, f"{sanitize(self.key)} has changed since it was described"
        )


def described_files(folder: Path) -> list[UploadFile]:
    """Give the files of a result, the one with all checksums last.

    Raises
    ------
    UploadFailed
        If the result was never described, or one of its files is missing.
    """
    checksums = folder / CHECKSUMS
    try:
        content = checksums.read_bytes()
    except FileNotFoundError:
        raise UploadFailed(Stage.UPLOAD, "this server has no results to upload") from None
    except OSError as error:
        raise _unreadable(CHECKSUMS, error) from None
    real = Path(os.path.realpath(folder))
    files = [described_file(real, key, sha256) for sha256, key in _lines(content)]
    own = hashlib.sha256(content).hexdigest()
    files.append(UploadFile(CHECKSUMS, real / CHECKSUMS, len(content), own))
    return files


def _lines(content: bytes) -> Iterator[tuple[str, str]]:
    for line in filter(None, content.decode("utf-8", "surrogateescape").split("\n")):
        match = _LINE.fullmatch(line)
        if match is None:
            raise UploadFailed(Stage.UPLOAD, f"{CHECKSUMS} cannot be read: {line[:80]!r}")
        yield match[1], match[2]


def described_file(folder: Path, key: str, sha256: str) -> UploadFile:
    """Give a file of a result whose folder, no link and behind none, is given.

    Raises
    ------
    UploadFailed
        If it is missing, or no file of that result.
    """
    path = folder / key
    # A workflow class of somebody's own may have put anything there.
    if str(path) != f"{folder}/{key}" or ".." in path.parts:
        raise UploadFailed(Stage.UPLOAD, f"{key[:80]!r} is no path below the folder of the result")
    try:
        size = path.stat().st_size
    except OSError as error:
        raise _unreadable(key, error) from None
    if os.path.realpath(path) != str(path):
        raise UploadFailed(Stage.UPLOAD, f"{sanitize(key)} is a link, or lies behind one")
    return UploadFile(key, path, size, sha256)


def _without_links(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NOFOLLOW)


def _unreadable(key: str, error: OSError) -> StageFailed:
    if isinstance(error, FileNotFoundError | NotADirectoryError):
        return UploadFailed(Stage.UPLOAD, f"{sanitize(key)} is missing")
    # A mount may be away for a moment; who may not read will not.
    kind = UploadFailed if isinstance(error, PermissionError) else TransientFailure
    return kind(Stage.UPLOAD, f"{sanitize(key)} cannot be read: {describe_error(error)}")
