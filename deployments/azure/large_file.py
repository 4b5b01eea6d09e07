"""Upload a large file block by block."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, BinaryIO

from deployments.azure.calls import RetriedCalls
from deployments.azure.local_file import LocalFile
from deployments.azure.rest import RestClient
from deployments.runtime.tasks import task_group

_MAX_BLOCKS = 50_000
"""Blocks that a blob may have."""

OnBlock = Callable[[int, bool], None]
"""Called with the bytes of each block in the container, and whether it was there already."""


@dataclass
class LargeFileUpload:
    """Upload of one file.

    Blocks are named after the content of the whole file and their position in it, so every upload
    of the file sends the same block under a name. Blocks that a killed upload has sent are not sent
    again, and two uploads at once do not disturb each other.
    """

    blobs: RestClient
    key: str
    file: LocalFile
    call: RetriedCalls
    in_flight: asyncio.Semaphore
    """Limits the blocks in memory."""
    block_bytes: int
    overwrite: bool = True
    on_block: OnBlock = lambda *_: None
    _sha256: Any = field(default_factory=hashlib.sha256)
    _md5: Any = field(default_factory=lambda: hashlib.md5(usedforsecurity=False))

    async def run(self) -> bool:
        """Send the blocks that are missing and commit them.

        Returns
        -------
        bool
            False if the blob exists and must not be overwritten.

        Raises
        ------
        UploadFailed
            If Blob Storage refuses, or the file has changed since it was described.
        TransientFailure
            If another attempt may succeed.
        """
        size = max(self.block_bytes, -(-self.file.size // _MAX_BLOCKS))
        sent = await self.call(self.blobs.uncommitted_blocks, self.key)
        names: list[str] = []
        n_read = 0
        with self.file.open() as source:
            async with task_group() as group:
                while content := await self._next_block(source, size):
                    n_read += len(content)
                    name = f"{self.file.sha256[:40]}{size:010d}{len(names):06d}"
                    names.append(name)
                    is_sent = sent.get(name) == len(content)
                    task = group.create_task(self._send(name, content, is_sent))
                    # Not in the task: one that is cancelled at once never starts.
                    task.add_done_callback(lambda _: self.in_flight.release())
                    if n_read > self.file.size:
                        raise self.file.changed()
                    await asyncio.to_thread(self._add_to_digests, content)
        if self._sha256.hexdigest() != self.file.sha256:
            raise self.file.changed()
        return await self.call(
            self.blobs.commit_blocks,
            self.key,
            names,
            self.file.media_type,
            self.file.sha256,
            self._md5.digest(),
            overwrite=self.overwrite,
        )

    async def _next_block(self, source: BinaryIO, size: int) -> bytes:
        """Return the next block once there is room for it; empty at the end."""
        await self.in_flight.acquire()
        content = b""
        try:
            content = await asyncio.to_thread(self.file.read_from, source, size)
        finally:
            if not content:
                self.in_flight.release()
        return content

    async def _send(self, name: str, content: bytes, is_sent: bool) -> None:
        if not is_sent:
            await self.call(self.blobs.put_block, self.key, name, content)
        self.on_block(len(content), is_sent)

    def _add_to_digests(self, content: bytes) -> None:
        self._sha256.update(content)
        self._md5.update(content)
