"""Results and working records in folders, see `deployments.results.store`."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from deployments.results.disk_result import DiskResult
from deployments.results.disk_work import DiskWork
from deployments.results.netcdf import POLL_S
from deployments.results.protocols import StoredExecution, page_of_stored_executions
from deployments.runtime.files import remove_tree
from deployments.runtime.log_context import ContextThreadPool
from workflows.base import Plan
from workflows.dataset import Provenance

_PARTIAL, _PURGED = ".partial", ".purged"


class DiskStorage:
    """Folders that every process sees; what they share is `deployments.results.protocols.Storage`.

    Parameters
    ----------
    results_dir : Path
        Results; what lies in an execution's folder there is delivered.
    work_dir : Path
        Working files, never delivered.
    threads : int
        Fields of a step that are written at once.
    """

    poll_s = POLL_S

    def __init__(
        self, results_dir: Path, work_dir: Path, *, threads: int = min(4, os.cpu_count() or 1)
    ) -> None:
        self._results_dir = Path(results_dir)
        self._work_dir = Path(work_dir)
        self._pool = ContextThreadPool(threads, "results-store")

    def look(self) -> None:
        """Nothing can be missing: folders are made where they are needed."""

    def folder(self, workflow: str, execution_id: str) -> Path:
        """Give the folder with an execution's results."""
        return self._results_dir / workflow / execution_id

    def work(self, execution_id: str) -> DiskWork:
        """Give an execution's working files."""
        return DiskWork(self._work_dir / execution_id, execution_id)

    def result(self, execution_id: str, plan: Plan, provenance: Provenance) -> DiskResult:
        """Give the files of an execution's result."""
        return DiskResult(
            self.work(execution_id),
            plan,
            provenance,
            self.folder(plan.workflow, execution_id),
            self._partial(execution_id),
            self._pool,
        )

    def clean(self, execution_id: str) -> None:
        """Remove an execution's working files; its results stay, and cannot be changed any more."""
        remove_tree(self.work(execution_id).path)
        remove_tree(self._partial(execution_id))
        remove_tree(self._moved(execution_id))

    def purge(self, workflow: str, execution_id: str) -> None:
        """Remove an execution's results and working files."""
        # The working files first: without them no writer is admitted.
        remove_tree(self.work(execution_id).path)
        # Renamed first, so that nobody gets half a result.
        moved = self._moved(execution_id)
        remove_tree(moved)
        moved.parent.mkdir(parents=True, exist_ok=True)
        with suppress(FileNotFoundError):
            self.folder(workflow, execution_id).rename(moved)
        remove_tree(moved)
        self.clean(execution_id)

    def stored_executions(self, after: str, limit: int) -> list[StoredExecution]:
        """List of which executions something is there, in the order of their ids."""
        working = (
            name.removesuffix(_PURGED)
            for folder in (self._work_dir, self._results_dir / _PARTIAL)
            for name in _folders(folder)
        )
        results = (
            (workflow, name)
            for workflow in _folders(self._results_dir)
            if not workflow.startswith(".")
            for name in _folders(self._results_dir / workflow)
        )
        return page_of_stored_executions(working, results, after, limit)

    def _partial(self, execution_id: str) -> Path:
        return self._results_dir / _PARTIAL / execution_id

    def _moved(self, execution_id: str) -> Path:
        return self._results_dir / _PARTIAL / f"{execution_id}{_PURGED}"


def _folders(path: Path) -> list[str]:
    try:
        with os.scandir(path) as entries:
            return [entry.name for entry in entries if entry.is_dir(follow_symlinks=False)]
    except FileNotFoundError:
        return []
