"""One container as a destination of uploads.

Each small file is tried once through obstore, which is quick but has nothing checked on arrival.
Blob Storage keeps the MD5 of what arrived, so a listing afterwards shows what differs. Whatever
obstore could not send or sent wrong goes through azure-storage-blob.
"""

from __future__ import annotations

import asyncio
import hashlib
import re

from deployments.azure.blobs import Blobs
from deployments.azure.calls import RetriedCalls
from deployments.azure.large_file import LargeFileUpload, OnBlock
from deployments.azure.local_file import LocalFile
from deployments.azure.options import ContainerOptions
from deployments.azure.rest import Stored
from deployments.azure.token import TokenBridge
from deployments.blob_uploader.limits import BlobLimits, SharedLimits
from workflows.errors import StageFailed

_PLAIN = re.compile(r"[A-Za-z0-9._/=-]+")
"""Names that obstore does not escape; it escapes others differently from azure-storage-blob."""


class UploadContainer:
    """A container, or a folder in one; keys are relative to it.

    All methods raise UploadFailed if Blob Storage refuses, and TransientFailure if it stays busy or
    unreachable. Calls that have started go on after a method is cancelled.

    Parameters
    ----------
    options : ContainerOptions
        Without retries: these are made here, for all calls together.
    token : TokenBridge
    limits : BlobLimits
    shared : SharedLimits
    """

    def __init__(
        self,
        options: ContainerOptions,
        token: TokenBridge,
        limits: BlobLimits,
        shared: SharedLimits,
    ) -> None:
        self._options = options
        self._limits = limits
        self._shared = shared
        self.blobs = Blobs(options, token=token)
        self.call = RetriedCalls(shared.threads, limits.retries)
        self._unchecked: dict[str, tuple[LocalFile, bytes]] = {}

    async def list_blobs(self, folder: str) -> dict[str, Stored]:
        """Return the blobs below a folder, by key."""
        blobs: dict[str, Stored] = {}
        marker = ""
        while True:
            page, marker = await self.call(self.blobs.rest.list_page, folder, marker)
            blobs |= page
            if not marker:
                return blobs

    async def put_small(self, key: str, file: LocalFile) -> None:
        """Write a file in one request; `check` finds out whether it arrived."""
        async with self._shared.small:
            content, md5 = await asyncio.to_thread(_read, file)
            if await self._put_fast(key, file, content):
                self._unchecked[key] = file, md5
            else:
                await self._put(key, file, content, md5)

    async def put_checked(self, key: str, file: LocalFile) -> None:
        """Write a small file in one request, checked on arrival."""
        async with self._shared.small:
            await self._put(key, file, *await asyncio.to_thread(_read, file))

    async def put_large(self, key: str, file: LocalFile, on_block: OnBlock) -> None:
        """Write a file block by block."""
        await LargeFileUpload(
            self.blobs.rest,
            key,
            file,
            call=self.call,
            in_flight=self._shared.blocks,
            block_bytes=self._limits.block_bytes,
            on_block=on_block,
        ).run()

    async def check(self, folder: str) -> dict[str, Stored]:
        """Compare what `put_small` wrote below a folder with a listing; write again what differs.

        Returns
        -------
        dict
            The blobs below the folder, by key.
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
