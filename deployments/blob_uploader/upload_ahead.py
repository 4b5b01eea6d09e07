"""Bringing the chunks of a Zarr store into a container while the rest is still computed.

Only chunks are sent: without the store's metadata, which go with the upload proper, nobody takes
them for a result. They are removed with an execution that does not come to its end.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from deployments.azure.blobs import Blobs
from deployments.azure.listing import Stored
from deployments.blob_uploader.container import BlobContainer
from deployments.blob_uploader.files import UploadFile, described_file
from deployments.blob_uploader.upload import Tally
from deployments.results.disk_work import DiskWork
from deployments.runtime.tasks import task_group
from workflows.errors import StageFailed, StaleConductor
from workflows.manifest import CHECKSUMS

IN_FLIGHT = 4
"""Files on their way. Few, as uploads of what is whole go beside it, and inference is slower."""
STEPS_AT_ONCE = 16
LOOK_S = 0.5
"""Between two looks at what is written."""
LAST_CALL_S = 5.0
"""What a file on its way gets to arrive in, when the rest shall not be sent any more."""


class UploadAhead:
    """Follows the steps of one execution, and sends what they wrote.

    Parameters
    ----------
    container : BlobContainer
    blobs : Blobs
        Of the same container.
    folder : str
        Where in it.
    source : Path
        Folder of the result on this server.
    work : WorkFolder
        Says what is written.
    fence : int
        Token of the Conductor that asked for it.
    """

    def __init__(
        self,
        container: BlobContainer,
        blobs: Blobs,
        folder: str,
        source: Path,
        work: DiskWork,
        fence: int,
    ) -> None:
        self._container = container
        self._blobs = blobs
        self._folder = folder
        self._source = source
        self._work = work
        self._fence = fence
        self.tally = Tally()
        """What was sent."""

    async def run(self) -> None:
        """Do so until the last step is sent, or the execution has gone or has another Conductor."""
        there = await self._container.listed(self._folder)
        sent: set[tuple[int, int]] = set()
        try:
            plan, _ = await asyncio.to_thread(self._work.read_plan)
            while len(sent) < len(plan.seeds) * plan.n_times:
                written = await asyncio.to_thread(self._work.written_steps) - sent
                steps = sorted(written)[:STEPS_AT_ONCE]
                await self._send(await asyncio.to_thread(self._missing, steps, there))
                sent.update(steps)
                if not steps:
                    await asyncio.sleep(LOOK_S)
                if not await asyncio.to_thread(self._goes_on):
                    return
        except FileNotFoundError:
            return

    def _goes_on(self) -> bool:
        """Say whether the execution is still written, by the Conductor that asked for this."""
        try:
            self._work.read_plan()
            self._work.check_fence(self._fence)
        except (FileNotFoundError, StageFailed, StaleConductor):
            return False
        return True

    def _missing(
        self, steps: Sequence[tuple[int, int]], there: dict[str, Stored]
    ) -> list[UploadFile]:
        """Give the files of some steps that are not in the container."""
        folder, missing = Path(os.path.realpath(self._source)), []
        for step in steps:
            for written in self._work.step_objects(*step):
                stored = there.get(self._key(written.key))
                if stored is None or (stored.size, stored.sha256) != (written.size, written.sha256):
                    missing.append(described_file(folder, written.key, written.sha256 or ""))
        return missing

    async def _send(self, files: Sequence[UploadFile]) -> None:
        waiting = iter(files)
        async with task_group() as group:
            for _ in range(min(IN_FLIGHT, len(files))):
                group.create_task(self._send_each(waiting))

    async def _send_each(self, waiting: Iterator[UploadFile]) -> None:
        for file in waiting:
            put = asyncio.create_task(self._put(file))
            try:
                await asyncio.shield(put)
            except asyncio.CancelledError:
                # It would arrive behind our back.
                await asyncio.wait({put}, timeout=LAST_CALL_S)
                put.cancel()
                await asyncio.wait({put})
                # Looked at, or it would be logged as one that nobody has seen.
                if not put.cancelled() and put.exception() is None:
                    self._note(file)
                raise
            self._note(file)

    def _note(self, file: UploadFile) -> None:
        self.tally.uploaded_files += 1
        self.tally.uploaded_bytes += file.size

    async def _put(self, file: UploadFile) -> None:
        # Checked on arrival: the upload proper takes what it finds for what it says to be.
        await self._container.put_checked(self._key(file.key), file)
        if not self._source.exists():
            await asyncio.to_thread(self._take_back, self._key(file.key))

    def _take_back(self, key: str) -> None:
        """Remove what was written behind the back of somebody who has removed the execution."""
        # Whole, it is not ours to remove: it was delivered before it was removed here.
        if self._blobs.head(f"{self._folder}/{CHECKSUMS}") is None:
            self._blobs.delete(key)

    def _key(self, key: str) -> str:
        return f"{self._folder}/{key}"
