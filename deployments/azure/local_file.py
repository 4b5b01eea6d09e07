"""A local file to upload, and what it must contain."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from deployments.runtime.failures import TransientFailure, describe_error, sanitize
from workflows.errors import StageFailed, UploadFailed
from workflows.execution import Stage


@dataclass(frozen=True)
class LocalFile:
    """A file whose size and checksum were recorded; a changed file is not uploaded."""

    key: str
    """Path below the folder of the result."""
    path: Path
    size: int
    sha256: str
    media_type: str
    stage: Stage = Stage.UPLOAD
    """Stage that failures are attributed to."""

    def read(self) -> bytes:
        """Return the content; StageFailed if the file is missing or has changed."""
        with self.open() as file:
            content = self.read_from(file, self.size + 1)
        if hashlib.sha256(content).hexdigest() != self.sha256:
            raise self.changed()
        return content

    def open(self) -> BinaryIO:
        """Open the file for `read_from`; the caller must check the SHA-256."""
        try:
            return open(self.path, "rb", opener=_without_links)
        except OSError as error:
            raise unreadable(self.key, error, self.stage) from None

    def read_from(self, file: BinaryIO, size: int) -> bytes:
        """Return `size` bytes, or fewer at the end of the file."""
        try:
            return file.read(size)
        except OSError as error:
            raise unreadable(self.key, error, self.stage) from None

    def changed(self) -> StageFailed:
        """Return the error for a file whose content has changed."""
        reason = f"{sanitize(self.key)} has changed since it was described"
        return _failure(self.stage)(self.stage, reason)


def _without_links(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NOFOLLOW)


def unreadable(key: str, error: OSError, stage: Stage = Stage.UPLOAD) -> StageFailed:
    """Return the error for a file that cannot be read; transient unless it is missing or denied."""
    if isinstance(error, FileNotFoundError | NotADirectoryError):
        return _failure(stage)(stage, f"{sanitize(key)} is missing")
    # A mount may be unavailable for a moment.
    kind = _failure(stage) if isinstance(error, PermissionError) else TransientFailure
    return kind(stage, f"{sanitize(key)} cannot be read: {describe_error(error)}")


def _failure(stage: Stage) -> type[StageFailed]:
    return UploadFailed if stage == Stage.UPLOAD else StageFailed
