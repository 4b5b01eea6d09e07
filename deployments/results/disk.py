"""Results and working files in folders that every process sees.

::

    {results_dir}/{workflow}/{execution_id}/results.zarr/     or results.nc
                                            checksums.sha256
    {results_dir}/.partial/{execution_id}/                    incomplete files
    {work_dir}/{execution_id}/                                see `deployments.results.disk_work`
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from deployments.results.disk_result import DiskResult
from deployments.results.disk_work import DiskWork
from deployments.results.messages import StoredExecution, page_of_stored_executions
from deployments.results.names import PARTIAL, result_folder
from deployments.results.netcdf import POLL_S
from deployments.runtime.files import remove_tree
from deployments.runtime.log_context import ContextThreadPool
from workflows.base import Plan
from workflows.dataset import Provenance

_PURGED = ".purged"


class DiskStorage:
    """A `deployments.results.protocols.Storage` of folders.

    Parameters
    ----------
    results_dir : Path
        Folder for results. Everything in an execution's folder there is delivered.
    work_dir : Path
        Folder for working files, which are never delivered.
    """

    poll_s = POLL_S

    def __init__(self, results_dir: Path, work_dir: Path) -> None:
        self._results_dir = Path(results_dir)
        self._work_dir = Path(work_dir)
        threads = min(4, os.cpu_count() or 1)
        self._writers = ContextThreadPool(threads, "results-writer")
        self._readers = ContextThreadPool(threads, "results-reader")

    def check_available(self) -> None:
        """Do nothing: folders are created when they are needed."""

    def folder(self, workflow: str, execution_id: str) -> Path:
        """Return the folder of an execution's result."""
        return self._results_dir / result_folder(workflow, execution_id)

    def work(self, execution_id: str) -> DiskWork:
        """Return the working files of an execution."""
        return DiskWork(self._work_dir / execution_id, execution_id)

    def result(self, execution_id: str, plan: Plan, provenance: Provenance) -> DiskResult:
        """Return the result of an execution."""
        work = self.work(execution_id)
        return DiskResult(
            work,
            plan,
            provenance,
            work.chunk_separator(),
            self.folder(plan.workflow, execution_id),
            self._partial(execution_id),
            self._writers,
            self._readers,
        )

    def clean(self, execution_id: str) -> None:
        """Remove an execution's working files; its results are kept and cannot change any more."""
        remove_tree(self.work(execution_id).path)
        remove_tree(self._partial(execution_id))
        remove_tree(self._purged(execution_id))

    def purge(self, workflow: str, execution_id: str) -> None:
        """Remove the results and the working files of an execution."""
        # Working files first: without them every writer is refused.
        remove_tree(self.work(execution_id).path)
        # Renamed before it is removed, so that nobody reads half a result.
        purged = self._purged(execution_id)
        remove_tree(purged)
        purged.parent.mkdir(parents=True, exist_ok=True)
        with suppress(FileNotFoundError):
            self.folder(workflow, execution_id).rename(purged)
        remove_tree(purged)
        self.clean(execution_id)

    def stored_executions(self, after: str, limit: int) -> list[StoredExecution]:
        """Return one page of the executions that have anything stored, ordered by id."""
        working = (
            name.removesuffix(_PURGED)
            for folder in (self._work_dir, self._results_dir / PARTIAL)
            for name in _folders(folder)
        )
        return page_of_stored_executions(
            working, lambda folder: _folders(self._results_dir / folder), after, limit
        )

    def _partial(self, execution_id: str) -> Path:
        return self._results_dir / PARTIAL / execution_id

    def _purged(self, execution_id: str) -> Path:
        return self._results_dir / PARTIAL / f"{execution_id}{_PURGED}"


def _folders(path: Path) -> list[str]:
    try:
        with os.scandir(path) as entries:
            return [entry.name for entry in entries if entry.is_dir(follow_symlinks=False)]
    except FileNotFoundError:
        return []
