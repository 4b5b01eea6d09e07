"""Upload the chunks of a Zarr store while the rest is still computed.

Only chunks are sent. Readers do not see a result without the store's metadata, which the regular
upload sends. The chunks are removed if the execution does not complete.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence
from pathlib import Path

from deployments.azure.local_file import LocalFile
from deployments.azure.rest import Stored
from deployments.blob_uploader.container import UploadContainer
from deployments.blob_uploader.files import described_file
from deployments.blob_uploader.upload import Tally, is_stored
from deployments.results.disk_work import DiskWork
from deployments.runtime.tasks import for_each
from workflows.errors import StageFailed, StaleConductor
from workflows.manifest import CHECKSUMS

IN_FLIGHT = 4
"""Files that are sent concurrently. Few, because complete results are uploaded at the same time and
inference is slower."""
STEPS_PER_LISTING = 16
POLL_S = 0.5
"""Pause between two listings of the written steps."""
LAST_CALL_S = 5.0
"""Time for a file in flight to arrive after a cancellation."""


class UploadAhead:
    """Follow the steps of one execution and send their chunks.

    Parameters
    ----------
    folder : str
        Destination in the container.
    source : Path
        Folder of the result on this server.
    work : DiskWork
        Records of the written steps.
    fence : int
        Fencing token of the calling Conductor.
    """

    def __init__(
        self,
        container: UploadContainer,
        folder: str,
        source: Path,
        work: DiskWork,
        fence: int,
    ) -> None:
        self._container = container
        self._folder = folder
        self._source = source
        self._work = work
        self._fence = fence
        self.tally = Tally()

    async def run(self) -> None:
        """Send chunks until all are sent, the execution ends or another Conductor takes over."""
        blobs = await self._container.list_blobs(self._folder)
        sent: set[tuple[int, int]] = set()
        try:
            plan, _ = await asyncio.to_thread(self._work.read_plan)
            while len(sent) < len(plan.seeds) * plan.n_times:
                written = await asyncio.to_thread(self._work.written_steps) - sent
                steps = sorted(written)[:STEPS_PER_LISTING]
                missing = await asyncio.to_thread(self._missing, steps, blobs)
                await for_each(self._send, missing, IN_FLIGHT)
                sent.update(steps)
                if not steps:
                    await asyncio.sleep(POLL_S)
                if not await asyncio.to_thread(self._is_current):
                    return
        except FileNotFoundError:
            return

    def _is_current(self) -> bool:
        """Return whether the execution is still written by the Conductor that started this."""
        try:
            self._work.read_plan()
            self._work.check_fence(self._fence)
        except (FileNotFoundError, StageFailed, StaleConductor):
            return False
        return True

    def _missing(
        self, steps: Sequence[tuple[int, int]], blobs: dict[str, Stored]
    ) -> list[LocalFile]:
        """Return the files of some steps that are not in the container."""
        folder, missing = Path(os.path.realpath(self._source)), []
        for step in steps:
            for written in self._work.step_objects(*step):
                key = self._key(written.key)
                if not is_stored(blobs, key, written.size, written.sha256):
                    missing.append(described_file(folder, written.key, written.sha256 or ""))
        return missing

    async def _send(self, file: LocalFile) -> None:
        put = asyncio.create_task(self._put(file))
        try:
            await asyncio.shield(put)
        except asyncio.CancelledError:
            # A request in flight would arrive after the caller has cleaned up.
            await asyncio.wait({put}, timeout=LAST_CALL_S)
            put.cancel()
            await asyncio.wait({put})
            # Retrieved, or asyncio would log the exception.
            if not put.cancelled() and put.exception() is None:
                self.tally.note_file(file.size)
            raise
        self.tally.note_file(file.size)

    async def _put(self, file: LocalFile) -> None:
        # The service checks it: the regular upload trusts the sizes and SHA-256 in a listing.
        await self._container.put_checked(self._key(file.key), file)
        if not self._source.exists():
            await self._container.call(self._withdraw, self._key(file.key))

    def _withdraw(self, key: str) -> None:
        """Remove a blob that was written after its execution was removed."""
        # A complete result is kept: it was delivered before the execution was removed.
        if self._container.blobs.head(f"{self._folder}/{CHECKSUMS}") is None:
            self._container.blobs.delete(key)

    def _key(self, key: str) -> str:
        return f"{self._folder}/{key}"
