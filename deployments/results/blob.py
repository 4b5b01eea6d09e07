"""Results and working records in a Blob container.

::

    {prefix}/{workflow}/{execution_id}/results.zarr/     or results.nc
                                       checksums.sha256
    {prefix}/.work/{execution_id}/                       see `deployments.results.blob_work`
"""

from __future__ import annotations

from deployments.azure.blobs import Blobs
from deployments.results.blob_result import ROOT, BlobResult
from deployments.results.blob_work import WORK, BlobWork
from deployments.results.messages import StoredExecution, page_of_stored_executions
from deployments.results.names import result_folder
from deployments.results.options import BlobResultsOptions
from workflows.base import Plan
from workflows.dataset import Provenance
from workflows.manifest import CHECKSUMS, NETCDF

CHECK_LIMIT_S = 5.0
"""How long a check of the container is retried; readiness waits for it."""


class BlobStorage:
    """A `deployments.results.protocols.Storage` of blobs.

    Notes
    -----
    A writer that is killed between writing a blob and checking that the execution still exists
    leaves that blob behind if the execution is purged in between. Purging again removes it.
    """

    poll_s = 0.5

    def __init__(self, options: BlobResultsOptions, blobs: Blobs | None = None) -> None:
        self._options = options
        self._blobs = blobs or Blobs(options)
        self._checking: Blobs | None = None

    def check_available(self) -> None:
        """Raise StageFailed with the reason if the container cannot be read."""
        if self._checking is None:
            limited = self._options.model_copy(update={"retry_limit_s": CHECK_LIMIT_S})
            self._checking = Blobs(limited, threads=1)
        self._checking.look()

    def work(self, execution_id: str) -> BlobWork:
        """Return the working records of an execution."""
        return BlobWork(self._blobs, execution_id)

    def result(self, execution_id: str, plan: Plan, provenance: Provenance) -> BlobResult:
        """Return the result of an execution."""
        work = self.work(execution_id)
        separator = work.chunk_separator()
        return BlobResult(work, plan, provenance, separator, self._blobs, self._options.scratch_dir)

    def clean(self, execution_id: str) -> None:
        """Remove the working records of an execution; its results are kept."""
        work = self.work(execution_id)
        work.close()
        self._blobs.remove(work.folder)

    def purge(self, workflow: str, execution_id: str) -> None:
        """Remove the results and the working records of an execution."""
        # Without the plan, writers are refused, and those that have just written clean up.
        self.work(execution_id).close()
        folder = result_folder(workflow, execution_id)
        # The marks of a complete result first, so that nobody reads half of it.
        self._blobs.delete(*(f"{folder}/{name}" for name in (CHECKSUMS, ROOT, NETCDF)))
        # Before the results: no time step may count as written after an interrupted purge.
        self.clean(execution_id)
        self._blobs.remove(folder)

    def stored_executions(self, after: str, limit: int) -> list[StoredExecution]:
        """Return one page of the executions that have anything stored, ordered by id."""
        folders = self._blobs.folders
        return page_of_stored_executions(folders(WORK), folders, after, limit)
