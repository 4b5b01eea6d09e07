"""One container as a destination of uploads.

Each small file is sent once through obstore, which is fast but requests no check of the content.
Blob Storage keeps the MD5 of what it received, so a listing afterwards shows which blobs differ.
Those, and the files that obstore could not send, are sent through `deployments.azure.rest`.
"""

from __future__ import annotations

import asyncio
import hashlib
import re

from deployments.azure.blobs import Blobs
from deployments.azure.calls import RetriedCalls
from deployments.azure.large_file import OnBlock, upload_large_file
from deployments.azure.local_file import LocalFile
from deployments.azure.options import ContainerOptions
from deployments.azure.rest import Stored
from deployments.azure.token import TokenBridge
from deployments.blob_uploader.limits import SharedLimits
from workflows.errors import StageFailed

_PLAIN = re.compile(r"[A-Za-z0-9._/=-]+")
"""Names that obstore does not escape; `deployments.azure.rest` escapes others differently."""


class UploadContainer:
    """A container, or a folder in one; keys are relative to it.

    All methods raise UploadFailed if Blob Storage refuses, and TransientFailure if it stays busy or
    unreachable. Calls that have started continue after a method is cancelled. The options are those
    of a client without retries, since all calls are retried together here.
    """

    def __init__(self, options: ContainerOptions, token: TokenBridge, shared: SharedLimits) -> None:
        self._options = options
        self._shared = shared
        self.limits = shared.limits
        self.blobs = Blobs(options, token=token)
        self.call = RetriedCalls(shared.threads, self.limits.retries)
        self._unchecked: dict[str, tuple[LocalFile, bytes]] = {}

    async def list_blobs(self, folder: str) -> dict[str, Stored]:
        """Return the blobs below a folder, by key."""
        return await self.blobs.rest.list_all(folder, self.call)

    async def put_small(self, key: str, file: LocalFile) -> None:
        """Write a file in one request; `check` verifies it."""
        async with self._shared.small:
            content, md5 = await asyncio.to_thread(_read, file)
            if await self._put_fast(key, file, content):
                self._unchecked[key] = file, md5
            else:
                await self._put(key, file, content, md5)

    async def put_checked(self, key: str, file: LocalFile) -> None:
        """Write a small file in one request, which the service checks."""
        async with self._shared.small:
            await self._put(key, file, *await asyncio.to_thread(_read, file))

    async def put_large(self, key: str, file: LocalFile, on_block: OnBlock) -> None:
        """Write a file block by block."""
        await upload_large_file(
            self.blobs.rest,
            key,
            file,
            call=self.call,
            in_flight=self._shared.blocks,
            block_bytes=self.limits.block_bytes,
            on_block=on_block,
        )

    async def check(self, folder: str) -> dict[str, Stored]:
        """Compare what `put_small` wrote below a folder with a listing; rewrite what differs.

        Returns the blobs below the folder, by key.
        """
        blobs = await self.list_blobs(folder)
        for key, (file, md5) in list(self._unchecked.items()):
            expected = Stored(file.size, file.sha256, md5)
            if blobs.get(key) != expected:
                await self.put_checked(key, file)
                blobs[key] = expected
        self._unchecked.clear()
        return blobs

    def close(self) -> None:
        """Close connections."""
        self.blobs.close()

    async def _put_fast(self, key: str, file: LocalFile, content: bytes) -> bool:
        """Write a small blob through obstore; return whether that succeeded."""
        if not _PLAIN.fullmatch(self._options.name_of(key)):
            return False
        await self.call.wait_if_throttled()
        try:
            await self.blobs.put_async(key, content, file.media_type, file.sha256)
        except StageFailed:
            # The other client reports the reason and retries.
            return False
        return True

    async def _put(self, key: str, file: LocalFile, content: bytes, md5: bytes) -> None:
        put = self.blobs.rest.put
        await self.call(put, key, content, file.media_type, file.sha256, md5)


def _read(file: LocalFile) -> tuple[bytes, bytes]:
    """Return the content of a file and its MD5."""
    content = file.read()
    return content, hashlib.md5(content, usedforsecurity=False).digest()
