"""One upload of one result."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from deployments.azure.local_file import LocalFile
from deployments.azure.rest import Stored
from deployments.blob_uploader.container import UploadContainer
from deployments.blob_uploader.files import described_files
from deployments.blob_uploader.messages import UploadProgress
from deployments.runtime.failures import TransientFailure
from deployments.runtime.tasks import for_each, task_group
from workflows.execution import Stage

_DESCRIPTIVE = {".json", ".png", ".txt"}
"""Suffixes of files that describe others."""


@dataclass
class Tally:
    """How much of a result is in the container, and how much of that this upload has sent."""

    files: int = 0
    bytes: int = 0
    total_files: int = 0
    total_bytes: int = 0
    uploaded_files: int = 0
    uploaded_bytes: int = 0

    def progress(self) -> UploadProgress:
        """Return what is in the container."""
        return UploadProgress(
            bytes=self.bytes,
            total_bytes=self.total_bytes,
            files=self.files,
            total_files=self.total_files,
        )

    def note_file(self, size: int) -> None:
        """Count a file that was sent in one request."""
        self.note_block(size, False)
        self.note_last_block()

    def note_block(self, size: int, was_there: bool) -> None:
        """Count a block of a file; one that was there already was not sent."""
        self.bytes += size
        self.uploaded_bytes += 0 if was_there else size

    def note_last_block(self) -> None:
        """Count a file whose blocks were counted."""
        self.files += 1
        self.uploaded_files += 1


class Upload:
    """Copy a result into a container; files that are there already are not sent again.

    Data are sent first, then the files that describe them, then the checksums: a result with
    checksums is complete.

    Parameters
    ----------
    folder : str
        Destination in the container.
    source : Path
        Folder of the result on this server.
    """

    def __init__(self, container: UploadContainer, folder: str, source: Path) -> None:
        self._container = container
        self._folder = folder
        self._source = source
        self.tally = Tally()

    async def run(self) -> None:
        """Upload what is missing; raises the errors of `BlobUploader.upload`."""
        *files, checksums = await asyncio.to_thread(described_files, self._source)
        everything = [*files, checksums]
        self.tally.total_files = len(everything)
        self.tally.total_bytes = sum(file.size for file in everything)
        blobs = await self._container.list_blobs(self._folder)
        missing = set()
        for file in everything:
            if self._is_stored(blobs, file):
                self.tally.files += 1
                self.tally.bytes += file.size
            else:
                missing.add(file)
        del blobs
        await self._put_all(f for f in files if f in missing and not _is_descriptive(f))
        await self._put_all(f for f in files if f in missing and _is_descriptive(f))
        blobs = await self._container.check(self._folder)
        if not all(self._is_stored(blobs, file) for file in files):
            # An earlier attempt is being withdrawn. The next listing will show what is missing.
            raise TransientFailure(Stage.UPLOAD, "files were removed during the upload")
        if checksums in missing:
            await self._container.put_checked(self._key(checksums), checksums)
            self.tally.note_file(checksums.size)

    async def _put_all(self, files: Iterable[LocalFile]) -> None:
        limits = self._container.limits
        small: list[LocalFile] = []
        large: list[LocalFile] = []
        for file in files:
            (large if file.size > limits.small_bytes else small).append(file)
        async with task_group() as group:
            group.create_task(for_each(self._put_small, small, limits.small_in_flight))
            # One at a time: the blocks of one file saturate the connection.
            group.create_task(for_each(self._put_large, large, 1))

    async def _put_small(self, file: LocalFile) -> None:
        await self._container.put_small(self._key(file), file)
        self.tally.note_file(file.size)

    async def _put_large(self, file: LocalFile) -> None:
        await self._container.put_large(self._key(file), file, self.tally.note_block)
        self.tally.note_last_block()

    def _is_stored(self, blobs: Mapping[str, Stored], file: LocalFile) -> bool:
        return is_stored(blobs, self._key(file), file.size, file.sha256)

    def _key(self, file: LocalFile) -> str:
        return f"{self._folder}/{file.key}"


def is_stored(blobs: Mapping[str, Stored], key: str, size: int, sha256: str | None) -> bool:
    """Return whether a listing has a file as it was described."""
    stored = blobs.get(key)
    return stored is not None and (stored.size, stored.sha256) == (size, sha256)


def _is_descriptive(file: LocalFile) -> bool:
    return PurePosixPath(file.key).suffix in _DESCRIPTIVE
