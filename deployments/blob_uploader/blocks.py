"""A large file as a blob, block by block."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, BinaryIO

from deployments.azure.listing import DIGEST
from deployments.blob_uploader.files import UploadFile
from deployments.blob_uploader.retry import code_of
from deployments.runtime.failures import TransientFailure
from deployments.runtime.tasks import task_group
from workflows.execution import Stage

if TYPE_CHECKING:
    from azure.storage.blob import BlobClient

_MOST_BLOCKS = 50_000

Call = Callable[..., Awaitable[Any]]
"""Makes a call that blocks, in a thread and as often as needed."""
OnBlock = Callable[[int, bool], None]
"""Is told the bytes of each block that is there, and whether it was there before."""


@dataclass
class BlockUpload:
    """One upload of one file.

    A block is named after the content of the whole file and its place in it, so whoever sends it
    under that name sends the same: what an upload that was killed has sent is not sent again, and
    two at once do each other no harm.
    """

    client: BlobClient
    file: UploadFile
    call: Call
    in_flight: asyncio.Semaphore
    block_bytes: int
    on_block: OnBlock
    _sha256: Any = field(default_factory=hashlib.sha256)
    _md5: Any = field(default_factory=lambda: hashlib.md5(usedforsecurity=False))

    async def run(self) -> None:
        """Send the blocks, and make a blob of them if they are what was described."""
        size = max(self.block_bytes, -(-self.file.size // _MOST_BLOCKS))
        there: dict[str, int] = await self.call(_uncommitted, self.client)
        names: list[str] = []
        read = 0
        with self.file.open() as source:
            async with task_group() as group:
                while content := await self._next_block(source, size):
                    read += len(content)
                    name = f"{self.file.sha256[:40]}{size:010d}{len(names):06d}"
                    names.append(name)
                    known = there.get(name) == len(content)
                    task = group.create_task(self._send(name, content, known))
                    # Not in the task, which does not even begin if it is cancelled at once.
                    task.add_done_callback(self._release)
                    if read > self.file.size:
                        raise self.file.changed()
                    await asyncio.to_thread(self._add_to_digests, content)
        if self._sha256.hexdigest() != self.file.sha256:
            raise self.file.changed()
        await self.call(self._commit, names)

    async def _next_block(self, source: BinaryIO, size: int) -> bytes:
        """Read a block as soon as there is room for one more; empty at the end."""
        await self.in_flight.acquire()
        content = b""
        try:
            content = await asyncio.to_thread(self.file.read_from, source, size)
        finally:
            if not content:
                self.in_flight.release()
        return content

    def _release(self, task: asyncio.Task[None]) -> None:
        self.in_flight.release()

    async def _send(self, name: str, content: bytes, known: bool) -> None:
        if not known:
            await self.call(
                self.client.stage_block, name, content, len(content), validate_content=True
            )
        self.on_block(len(content), known)

    def _add_to_digests(self, content: bytes) -> None:
        self._sha256.update(content)
        self._md5.update(content)

    def _commit(self, names: list[str]) -> None:
        from azure.core.exceptions import HttpResponseError
        from azure.storage.blob import BlobBlock, ContentSettings

        try:
            self.client.commit_block_list(
                [BlobBlock(name) for name in names],
                metadata={DIGEST: self.file.sha256},
                content_settings=ContentSettings(
                    content_type=self.file.media_type,
                    content_md5=bytearray(self._md5.digest()),
                ),
            )
        except HttpResponseError as error:
            if code_of(error) != "InvalidBlockList":
                raise
            raise TransientFailure(
                Stage.UPLOAD, f"{self.file.key} was written by somebody else meanwhile"
            ) from None


def _uncommitted(client: BlobClient) -> dict[str, int]:
    """Give names and sizes of the blocks that wait to become a blob."""
    from azure.core.exceptions import ResourceNotFoundError

    try:
        _, waiting = client.get_block_list("uncommitted")
    except ResourceNotFoundError as error:
        if code_of(error) == "ContainerNotFound":
            raise
        return {}
    return {block.id: block.size for block in waiting}
