"""Upload a large file block by block."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable
from typing import BinaryIO

from deployments.azure.calls import RetriedCalls
from deployments.azure.local_file import LocalFile
from deployments.azure.rest import RestClient
from deployments.runtime.tasks import task_group

_MAX_BLOCKS = 50_000

OnBlock = Callable[[int, bool], None]


async def upload_large_file(
    client: RestClient,
    key: str,
    file: LocalFile,
    *,
    call: RetriedCalls,
    in_flight: asyncio.Semaphore,
    block_bytes: int,
    overwrite: bool = True,
    on_block: OnBlock = lambda *_: None,
) -> bool:
    """Send the missing blocks of a file and commit them.

    Blocks are named after the content of the whole file and their position in it, so every upload
    of the file sends the same block under a name. Blocks that a killed upload has sent are not sent
    again, and two concurrent uploads do not disturb each other.

    Parameters
    ----------
    in_flight : Semaphore
        Limits the blocks in memory.
    on_block : callable, optional
        Called with the size of each block in the container, and whether it was there already.

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
    size = max(block_bytes, -(-file.size // _MAX_BLOCKS))
    sent = await call(client.uncommitted_blocks, key)
    names: list[str] = []
    n_read = 0
    sha256, md5 = hashlib.sha256(), hashlib.md5(usedforsecurity=False)

    async def send(name: str, content: bytes) -> None:
        is_sent = sent.get(name) == len(content)
        if not is_sent:
            await call(client.put_block, key, name, content)
        on_block(len(content), is_sent)

    def add_to_digests(content: bytes) -> None:
        sha256.update(content)
        md5.update(content)

    with file.open() as source:
        async with task_group() as group:
            while content := await _next_block(file, source, size, in_flight):
                n_read += len(content)
                names.append(f"{file.sha256[:40]}{size:010d}{len(names):06d}")
                task = group.create_task(send(names[-1], content))
                # Not in the task: one that is cancelled immediately never starts.
                task.add_done_callback(lambda _: in_flight.release())
                if n_read > file.size:
                    raise file.changed()
                await asyncio.to_thread(add_to_digests, content)
    if sha256.hexdigest() != file.sha256:
        raise file.changed()
    commit = client.commit_blocks
    digests = file.sha256, md5.digest()
    return await call(commit, key, names, file.media_type, *digests, overwrite=overwrite)


async def _next_block(
    file: LocalFile, source: BinaryIO, size: int, in_flight: asyncio.Semaphore
) -> bytes:
    """Return the next block once there is room for it; empty at the end."""
    await in_flight.acquire()
    content = b""
    try:
        content = await asyncio.to_thread(file.read_from, source, size)
    finally:
        if not content:
            in_flight.release()
    return content
