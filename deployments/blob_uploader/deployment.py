"""BlobUploader: copies results into a Blob container, with this server's own identity.

Replicas keep no state: any of them can go on with what another has begun, and twice is harmless.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import AsyncIterator, Callable
from pathlib import Path

from ray import serve

from deployments.azure.blobs import BlobResultsOptions, Blobs
from deployments.azure.token import TokenBridge
from deployments.blob_uploader.container import BlobContainer
from deployments.blob_uploader.limits import SharedLimits
from deployments.blob_uploader.messages import Uploaded, UploadJob, UploadProgress
from deployments.blob_uploader.options import BlobUploaderOptions
from deployments.blob_uploader.upload import Tally, Upload
from deployments.blob_uploader.upload_ahead import UploadAhead
from deployments.results.disk_work import DiskWork
from deployments.runtime.failures import TransientFailure
from deployments.runtime.gpus import hide_gpus
from deployments.runtime.log_context import bind_execution
from deployments.runtime.metrics import RAY, UPLOADED_BYTES, UPLOADED_OBJECTS, Recorder
from workflows.delivery import Container
from workflows.errors import UploadFailed
from workflows.execution import Stage
from workflows.manifest import CHECKSUMS

logger = logging.getLogger("ray.serve")

UPLOADS = 8
"""Calls of one replica at once that upload or sign; the settings add those that upload ahead."""


@serve.deployment(name="BlobUploader", max_ongoing_requests=UPLOADS)
class BlobUploader:
    """Uploads results.

    Parameters
    ----------
    options : BlobUploaderOptions
    results_dir, work_dir : Path
        Folders with results and working files that every replica sees.
    metrics : Recorder
    """

    def __init__(
        self,
        options: BlobUploaderOptions,
        results_dir: Path,
        work_dir: Path,
        metrics: Recorder = RAY,
    ) -> None:
        hide_gpus()
        self._options = options
        self._results_dir = Path(results_dir)
        self._work_dir = Path(work_dir)
        self._metrics = metrics
        self._token = TokenBridge(options.azure)
        self._crew = SharedLimits.of(options.limits)

    async def upload(self, job: UploadJob) -> AsyncIterator[UploadProgress | Uploaded]:
        """Copy a result; a caller that goes away stops it.

        Yields
        ------
        UploadProgress or Uploaded
            The latter once, at the end.

        Raises
        ------
        UploadFailed
            If Blob Storage refuses, or the result is not what was described.
        TransientFailure
            If another try later may succeed; it goes on where this one ended.
        """
        bind_execution(job.execution_id, job.workflow, Stage.UPLOAD)
        container = self._open(job.container)
        source = self._results_dir / job.folder
        upload = Upload(container, job.folder, source, self._options.limits)
        sent = _Sent(upload.tally, self._metrics, job.workflow)
        work = asyncio.create_task(self._run(upload, job))
        told = None
        try:
            while not work.done():
                await asyncio.wait({work}, timeout=self._options.report_every_s)
                sent.count()
                if not work.done() and (progress := _progress(upload.tally)) != told:
                    told = progress
                    yield progress
            await work
        finally:
            work.cancel()
            await asyncio.wait({work})
            sent.count()
            if not work.cancelled():
                # Looked at, or it would be logged as one that nobody has seen.
                work.exception()
            container.close()
        tally = upload.tally
        yield Uploaded(
            url=f"{job.container.url}/{job.folder}",
            container=job.container,
            files=tally.files,
            bytes=tally.bytes,
            uploaded_files=tally.uploaded_files,
            uploaded_bytes=tally.uploaded_bytes,
        )

    async def upload_ahead(self, job: UploadJob, fence: int) -> None:
        """Copy the chunks of a Zarr store as they are written, until all are; may be cancelled.

        It ends also when a newer Conductor writes: one that died has cancelled nothing.

        Raises
        ------
        UploadFailed, TransientFailure
            As `upload`, which sends whatever is missing.
        """
        if not self._options.ahead:
            return
        bind_execution(job.execution_id, job.workflow, Stage.INFERENCE)
        container = self._open(job.container)
        source = self._results_dir / job.folder
        work = DiskWork(self._work_dir / job.execution_id, job.execution_id)
        blobs = self._blobs(job.container)
        ahead = UploadAhead(container, blobs, job.folder, source, work, fence)
        sent = _Sent(ahead.tally, self._metrics, job.workflow)
        try:
            await ahead.run()
        finally:
            sent.count()
            container.close()
            logger.info(
                "uploaded %d files, %d bytes ahead",
                ahead.tally.uploaded_files,
                ahead.tally.uploaded_bytes,
            )

    async def withdraw(self, job: UploadJob) -> None:
        """Remove what was uploaded of a result that this server has not, unless it is there whole.

        A caller that goes away stops it, and so does the next attempt, which may bring there what
        this would remove.

        Raises
        ------
        StageFailed
            If Blob Storage refuses; `TransientFailure` if it is busy or out of reach.
        """
        bind_execution(job.execution_id, job.workflow)
        stop = threading.Event()
        try:
            await asyncio.to_thread(self._withdraw, job, stop.is_set)
        finally:
            stop.set()

    def _withdraw(self, job: UploadJob, should_stop: Callable[[], bool]) -> None:
        blobs = self._blobs(job.container)
        if blobs.head(f"{job.folder}/{CHECKSUMS}") is None:
            source = self._results_dir / job.folder
            blobs.remove(job.folder, lambda: should_stop() or source.exists())

    def _blobs(self, container: Container) -> Blobs:
        options = BlobResultsOptions(
            container=container, azure=self._options.azure, scratch_dir=self._work_dir
        )
        return Blobs(options, threads=1, token=self._token)

    async def sign(
        self, container: Container, workflow: str, execution_id: str, lifetime_s: float
    ) -> str:
        """Give a URL with which anybody can read one result for a while, and nothing else.

        Put the name of a file between its path and its query.

        Raises
        ------
        UploadFailed
            If Blob Storage refuses to sign.
        """
        bind_execution(execution_id, workflow)
        job = UploadJob(workflow=workflow, execution_id=execution_id, container=container)
        opened = self._open(container)
        try:
            return await opened.signed_url(job.folder, lifetime_s)
        finally:
            opened.close()

    async def _run(self, upload: Upload, job: UploadJob) -> None:
        try:
            async with asyncio.timeout(self._options.time_limit_s) as limit:
                await upload.run()
        except TimeoutError:
            if not limit.expired():
                raise
            raise TransientFailure(
                Stage.UPLOAD, f"not done within {self._options.time_limit_s:g} s"
            ) from None
        logger.info(
            "uploaded %d of %d files, %d bytes",
            upload.tally.uploaded_files,
            upload.tally.files,
            upload.tally.uploaded_bytes,
        )

    def _open(self, container: Container) -> BlobContainer:
        allowed = self._options.allowed
        if allowed is not None and not any(each.holds(container) for each in allowed):
            raise UploadFailed(
                Stage.UPLOAD,
                f"container {container.name} of storage account {container.account} is not in "
                "args.azure.blob.allowed_containers any more",
            )
        limits = self._options.limits
        return BlobContainer(container, self._options.azure, self._token, limits, self._crew)


class _Sent:
    """Counts what an upload has sent since it was counted last."""

    def __init__(self, tally: Tally, metrics: Recorder, workflow: str) -> None:
        self._tally = tally
        self._metrics = metrics
        self._workflow = workflow
        self._bytes = self._files = 0

    def count(self) -> None:
        sent, files = self._tally.uploaded_bytes, self._tally.uploaded_files
        self._metrics.add(UPLOADED_BYTES, sent - self._bytes, workflow=self._workflow)
        self._metrics.add(UPLOADED_OBJECTS, files - self._files, workflow=self._workflow)
        self._bytes, self._files = sent, files


def _progress(tally: Tally) -> UploadProgress:
    return UploadProgress(
        bytes=tally.bytes,
        total_bytes=tally.total_bytes,
        files=tally.files,
        total_files=tally.total_files,
    )
