"""One upload of one result."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from deployments.azure.listing import Stored
from deployments.blob_uploader.container import BlobContainer
from deployments.blob_uploader.files import UploadFile, described_files
from deployments.blob_uploader.limits import BlobLimits
from deployments.runtime.failures import TransientFailure
from deployments.runtime.tasks import task_group
from workflows.execution import Stage


@dataclass
class Tally:
    """What is in the container, and how much of it this upload has sent."""

    files: int = 0
    bytes: int = 0
    total_files: int = 0
    total_bytes: int = 0
    uploaded_files: int = 0
    uploaded_bytes: int = 0


class Upload:
    """Brings a result into a container; what is there already is not sent again.

    Data come first, then what describes them, and the checksums last: who finds those finds all.

    Parameters
    ----------
    container : BlobContainer
    folder : str
        Where in it.
    source : Path
        Folder of the result on this server.
    """

    def __init__(
        self, container: BlobContainer, folder: str, source: Path, limits: BlobLimits
    ) -> None:
        self._container = container
        self._folder = folder
        self._source = source
        self._limits = limits
        self.tally = Tally()

    async def run(self) -> None:
        """Do it."""
        *files, checksums = await asyncio.to_thread(described_files, self._source)
        everything = [*files, checksums]
        self.tally.total_files = len(everything)
        self.tally.total_bytes = sum(file.size for file in everything)
        there = await self._container.listed(self._folder)
        missing = set()
        for file in everything:
            if self._is_in(there, file):
                self.tally.files += 1
                self.tally.bytes += file.size
            else:
                missing.add(file)
        del there
        await self._put_all(f for f in files if f in missing and not f.is_descriptive)
        await self._put_all(f for f in files if f in missing and f.is_descriptive)
        there = await self._container.check(self._folder)
        if not all(self._is_in(there, file) for file in files):
            # Somebody removes what an earlier attempt has left: the next look will find it.
            raise TransientFailure(Stage.UPLOAD, "files were removed while others were uploaded")
        if checksums in missing:
            await self._container.put_checked(self._key(checksums), checksums)
            self._note_block(checksums.size, False)
            self._note_file()

    async def _put_all(self, files: Iterable[UploadFile]) -> None:
        small: list[UploadFile] = []
        large: list[UploadFile] = []
        for file in files:
            (large if file.size > self._limits.small_bytes else small).append(file)
        waiting = iter(small)
        async with task_group() as group:
            for _ in range(min(len(small), self._limits.small_in_flight)):
                group.create_task(self._put_small(waiting))
            # One after the other: the blocks of one are enough to keep the line busy.
            for file in large:
                await self._container.put_large(self._key(file), file, self._note_block)
                self._note_file()

    async def _put_small(self, waiting: Iterator[UploadFile]) -> None:
        for file in waiting:
            await self._container.put_small(self._key(file), file)
            self._note_block(file.size, False)
            self._note_file()

    def _is_in(self, there: Mapping[str, Stored], file: UploadFile) -> bool:
        stored = there.get(self._key(file))
        return stored is not None and (stored.size, stored.sha256) == (file.size, file.sha256)

    def _key(self, file: UploadFile) -> str:
        return f"{self._folder}/{file.key}"

    def _note_block(self, size: int, was_there: bool) -> None:
        self.tally.bytes += size
        self.tally.uploaded_bytes += 0 if was_there else size

    def _note_file(self) -> None:
        self.tally.files += 1
        self.tally.uploaded_files += 1
