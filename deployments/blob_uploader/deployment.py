"""BlobUploader: copy results into a Blob container, with this server's own identity.

Replicas keep no state. Any of them can resume what another has started, and an upload that runs
twice does no harm.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import AsyncIterator
from contextlib import closing

from ray import serve

from deployments.azure.blobs import Blobs
from deployments.azure.calls import RetriedCalls
from deployments.azure.options import ContainerOptions
from deployments.azure.signed_urls import sign_folder
from deployments.azure.token import TokenBridge
from deployments.blob_uploader.container import UploadContainer
from deployments.blob_uploader.limits import SharedLimits
from deployments.blob_uploader.messages import Uploaded, UploadJob, UploadProgress
from deployments.blob_uploader.options import BlobUploaderOptions
from deployments.blob_uploader.upload import Tally, Upload
from deployments.blob_uploader.upload_ahead import UploadAhead
from deployments.results.disk_work import DiskWork
from deployments.results.options import StorageOptions
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
"""Concurrent calls of one replica that upload or sign; the settings add those that upload ahead."""


@serve.deployment(
    name="BlobUploader",
    max_ongoing_requests=UPLOADS,
    health_check_period_s=5,
    health_check_timeout_s=15,
)
class BlobUploader:
    """Upload results.

    Parameters
    ----------
    storage : StorageOptions
        The folders with results and working files.
    """

    def __init__(
        self, options: BlobUploaderOptions, storage: StorageOptions, metrics: Recorder = RAY
    ) -> None:
        hide_gpus()
        self._options = options
        self._storage = storage
        self._metrics = metrics
        self._token = TokenBridge(options.azure)
        self._shared = SharedLimits(options.limits)

    async def upload(self, job: UploadJob) -> AsyncIterator[UploadProgress | Uploaded]:
        """Copy a result; stop when the caller disconnects.

        Yields
        ------
        UploadProgress or Uploaded
            The latter once, at the end.

        Raises
        ------
        UploadFailed
            If Blob Storage refuses, or the result is not what was described.
        TransientFailure
            If another call may succeed, which resumes this one.
        """
        bind_execution(job.execution_id, job.workflow, Stage.UPLOAD)
        source = self._storage.results_dir / job.folder
        with self._open(self._allowed(job.container)) as container:
            upload = Upload(container, job.folder, source)
            counter = _UploadCounter(upload.tally, self._metrics, job.workflow)
            work = asyncio.create_task(self._run(upload))
            reported = None
            try:
                while not work.done():
                    await asyncio.wait({work}, timeout=self._options.report_every_s)
                    counter.update()
                    if not work.done() and (progress := upload.tally.progress()) != reported:
                        reported = progress
                        yield progress
                await work
            finally:
                work.cancel()
                await asyncio.wait({work})
                counter.update()
                if not work.cancelled():
                    # Retrieved, or asyncio would log the exception.
                    work.exception()
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

        Also returns when another Conductor takes over: a dead one cannot cancel the call. Raises
        the same errors as `upload`, which sends what is missing afterwards.
        """
        if not self._options.upload_ahead:
            return
        bind_execution(job.execution_id, job.workflow, Stage.INFERENCE)
        source = self._storage.results_dir / job.folder
        work = DiskWork(self._storage.work_dir / job.execution_id, job.execution_id)
        with self._open(self._allowed(job.container)) as container:
            ahead = UploadAhead(container, job.folder, source, work, fence)
            counter = _UploadCounter(ahead.tally, self._metrics, job.workflow)
            try:
                await ahead.run()
            finally:
                counter.update()
                logger.info(
                    "uploaded %d files, %d bytes ahead",
                    ahead.tally.uploaded_files,
                    ahead.tally.uploaded_bytes,
                )

    async def withdraw(self, job: UploadJob) -> None:
        """Remove what was uploaded of a removed result, unless its upload was complete.

        Stops when the caller disconnects or the result is written again: the next attempt may
        upload what this would remove. Raises StageFailed if Blob Storage refuses, and
        TransientFailure if it is busy or unreachable.
        """
        bind_execution(job.execution_id, job.workflow)
        source = self._storage.results_dir / job.folder
        stop = threading.Event()

        def withdraw(blobs: Blobs) -> None:
            if blobs.head(f"{job.folder}/{CHECKSUMS}") is None:
                blobs.remove(job.folder, lambda: stop.is_set() or source.exists())

        # Not `_allowed`: the container may have been removed from the list after the upload.
        with self._open(job.container) as container:
            try:
                await container.call(withdraw, container.blobs)
            finally:
                stop.set()

    async def sign(
        self, container: Container, workflow: str, execution_id: str, lifetime_s: float
    ) -> str:
        """Return a URL with which anybody can read one result for a limited time.

        Append file names to its path, before the query. Raises UploadFailed if Blob Storage
        refuses.
        """
        bind_execution(execution_id, workflow)
        job = UploadJob(workflow=workflow, execution_id=execution_id, container=container)
        call = RetriedCalls(self._shared.threads, self._options.limits.retries)
        options = self._container_options(self._allowed(container))
        return await call(sign_folder, options, self._token, job.folder, lifetime_s)

    async def _run(self, upload: Upload) -> None:
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

    def _allowed(self, container: Container) -> Container:
        """Return the container if it may be written; raise UploadFailed if not."""
        allowed = self._options.allowed
        if allowed is not None and not any(each.contains(container) for each in allowed):
            raise UploadFailed(
                Stage.UPLOAD,
                f"container {container.name} of storage account {container.account} is not in "
                "args.azure.blob.allowed_containers any more",
            )
        return container

    def _container_options(self, container: Container) -> ContainerOptions:
        return ContainerOptions(
            container=container,
            azure=self._options.azure,
            stage=Stage.UPLOAD,
            retry_limit_s=0,
            request_timeout_s=self._options.limits.request_timeout_s,
        )

    def _open(self, container: Container) -> closing[UploadContainer]:
        options = self._container_options(container)
        return closing(UploadContainer(options, self._token, self._shared))


class _UploadCounter:
    """Adds to the metrics what an upload has sent since the last update."""

    def __init__(self, tally: Tally, metrics: Recorder, workflow: str) -> None:
        self._tally = tally
        self._metrics = metrics
        self._workflow = workflow
        self._bytes = self._files = 0

    def update(self) -> None:
        n_bytes, n_files = self._tally.uploaded_bytes, self._tally.uploaded_files
        self._metrics.add(UPLOADED_BYTES, n_bytes - self._bytes, workflow=self._workflow)
        self._metrics.add(UPLOADED_OBJECTS, n_files - self._files, workflow=self._workflow)
        self._bytes, self._files = n_bytes, n_files
