"""Results and working records in Blob Storage, see `deployments.results.store`."""

from __future__ import annotations

from deployments.azure.blobs import BlobResultsOptions, Blobs
from deployments.results.blob_result import ROOT, BlobResult, result_folder
from deployments.results.blob_work import WORK, BlobWork
from deployments.results.disk_result import NETCDF
from deployments.results.manifest import CHECKSUMS
from deployments.results.protocols import StoredExecution, page_of_stored_executions
from workflows.base import Plan
from workflows.dataset import Provenance

LOOK_LIMIT_S = 5.0
"""How long somebody waits who only asks whether the container can be read."""


class BlobStorage:
    """A container, or a folder in one; what it shares is `deployments.results.protocols.Storage`.

    Parameters
    ----------
    options : BlobResultsOptions
    blobs : Blobs, optional
        By default those of the container.

    Notes
    -----
    A writer that is killed after his blob was written and before he looked whether the execution
    is still there, while that is purged, leaves that blob behind. Purging again removes it.
    """

    poll_s = 0.5

    def __init__(self, options: BlobResultsOptions, blobs: Blobs | None = None) -> None:
        self._options = options
        self._blobs = blobs or Blobs(options)
        self._looking: Blobs | None = None

    def look(self) -> None:
        """See whether the container can be read: it is there, and this server may.

        Raises
        ------
        StageFailed
            If it cannot.
        """
        if self._looking is None:
            limited = self._options.model_copy(update={"retry_limit_s": LOOK_LIMIT_S})
            self._looking = Blobs(limited, threads=1)
        self._looking.look()

    def work(self, execution_id: str) -> BlobWork:
        """Give an execution's working records."""
        return BlobWork(self._blobs, execution_id)

    def result(self, execution_id: str, plan: Plan, provenance: Provenance) -> BlobResult:
        """Give the blobs of an execution's result."""
        return BlobResult(
            self._blobs, self.work(execution_id), plan, provenance, self._options.scratch_dir
        )

    def clean(self, execution_id: str) -> None:
        """Remove an execution's working records; its results stay."""
        work = self.work(execution_id)
        work.close()
        self._blobs.remove(work.folder)

    def stored_executions(self, after: str, limit: int) -> list[StoredExecution]:
        """List of which executions something is there, in the order of their ids."""
        working = self._blobs.folders(WORK)
        results = (
            (workflow, name)
            for workflow in self._blobs.folders("")
            if not workflow.startswith(".")
            for name in self._blobs.folders(workflow)
        )
        return page_of_stored_executions(working, results, after, limit)

    def purge(self, workflow: str, execution_id: str) -> None:
        """Remove an execution's results and working records."""
        # Without its plan no writer is admitted, and one who has just written looks for it.
        self.work(execution_id).close()
        folder = result_folder(workflow, execution_id)
        # What tells that it is whole goes first, so that nobody gets half a result.
        self._blobs.delete(*(f"{folder}/{name}" for name in (CHECKSUMS, ROOT, NETCDF)))
        # Before the results: after half a purge nobody shall take steps for written.
        self.clean(execution_id)
        self._blobs.remove(folder)
