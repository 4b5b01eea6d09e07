"""Results of executions on disk: a Zarr store that any number of processes fill.

::

    {results_dir}/{workflow}/{execution_id}/results.zarr/     or results.nc
                                            checksums.sha256
    {results_dir}/.partial/{execution_id}/                    files that are not whole yet
    {work_dir}/{execution_id}/                                see `deployments._work_folder`
"""

from __future__ import annotations

import os
import re
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deployments._result_files import NETCDF, ResultFiles, flush, remove_tree
from deployments._work_folder import WorkFolder, Written
from deployments.manifest import CHECKSUMS, MAX_LISTED, describe_files, hashed
from deployments.netcdf_export import POLL_S, follow
from workflows.base import Plan
from workflows.dataset import Provenance
from workflows.errors import StageFailed
from workflows.execution import Stage

_OPENED = 64
_SMALL_FIELD_BYTES = 1 << 16
"""Below this, handing a field to a thread costs more than writing it."""


class ResultsStore:
    """Creates, fills, exports, describes and removes results.

    Parameters
    ----------
    results_dir : Path
        Results; what lies in an execution's folder there is delivered.
    work_dir : Path
        Working files, never delivered.
    threads : int
        Fields of a step that are written at once.
    max_listed : int
        Bound on the files that a manifest names.

    Notes
    -----
    Methods may be called at once from any number of threads and processes, and any call may be
    repeated: what was done stays as it is. All that take a fence raise StaleConductor if a newer
    one was seen, and StageFailed if the execution was never created or has been removed.
    """

    def __init__(
        self,
        results_dir: Path,
        work_dir: Path,
        *,
        threads: int = min(4, os.cpu_count() or 1),
        max_listed: int = MAX_LISTED,
    ) -> None:
        self._results_dir = Path(results_dir)
        self._work_dir = Path(work_dir)
        self._max_listed = max_listed
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="results-store")
        self._opened: OrderedDict[str, ResultFiles] = OrderedDict()
        self._opened_lock = threading.Lock()

    def folder(self, workflow: str, execution_id: str) -> Path:
        """Give the folder with an execution's results."""
        return self._results_dir / _name(workflow) / _name(execution_id)

    def create(
        self,
        plan: Plan,
        execution_id: str,
        provenance: Provenance | Mapping[str, Any],
        fence: int,
    ) -> None:
        """Create all arrays and metadata, every value missing; the store appears at once.

        Raises
        ------
        StageFailed
            If the execution was created with another plan.
        """
        work = self._work(execution_id)
        provenance = work.begin(plan, Provenance.model_validate(provenance), fence)
        files = self._keep(self._files(execution_id, plan, provenance))
        files.make_folders()
        # A NetCDF request has no Zarr any more once it is finished.
        if not files.zarr.exists() and work.export() is None:
            files.create_zarr()

    def write_step(
        self,
        execution_id: str,
        fence: int,
        member: int,
        time_index: int,
        fields: NDArray[np.float32],
    ) -> None:
        """Write one time of one member, unless that is written already.

        Parameters
        ----------
        fields : ndarray, shape (variable, lat, lon)
            In the order of the plan's variables, as models give them: longitudes 0 to 360. Of a
            regional grid (variable, y, x).
        """
        work = self._work(execution_id)
        work.admit(fence)
        if work.is_written(member, time_index):
            return
        files = self._open(execution_id)
        plan = files.plan
        shape = (len(plan.variables), *plan.grid.shape)
        if fields.shape != shape:
            raise ValueError(f"fields of shape {shape} are needed, not {fields.shape}")
        if member not in plan.members or time_index not in range(plan.n_times):
            raise ValueError(f"the plan has no time {time_index} of member {member}")

        def write(variable: str, field: NDArray[np.float32]) -> Written:
            return files.write_field(variable, member, time_index, field)

        mapped = map if plan.field_bytes < _SMALL_FIELD_BYTES else self._pool.map
        try:
            objects = list(mapped(write, plan.variables, fields))
        except FileNotFoundError:
            raise work.gone() from None
        work.record_step(member, time_index, objects)

    def write_conditioning(
        self, execution_id: str, fence: int, member: int, step: int, field: NDArray[np.float32]
    ) -> None:
        """Keep a field that conditions a step of the forecast, unless it is there already."""
        work = self._work(execution_id)
        work.admit(fence)
        work.write_conditioning(member, step, field)

    def read_conditioning(
        self, execution_id: str, member: int, step: int
    ) -> NDArray[np.float32] | None:
        """Read such a field; None if it is not there yet."""
        return self._work(execution_id).read_conditioning(member, step)

    def written(self, execution_id: str) -> set[tuple[int, int]]:
        """Read which (member, time index) are written."""
        return self._work(execution_id).written()

    def recorded(self, execution_id: str) -> tuple[Plan, Provenance]:
        """Give what a result was created with."""
        files = self._open(execution_id)
        return files.plan, files.provenance

    def read_field(
        self, execution_id: str, variable: str, member: int, time_index: int
    ) -> NDArray[np.float32] | None:
        """Read a map before `finish`, as it is stored: shape (lat, lon), longitudes from -180.

        Returns
        -------
        ndarray or None
            None if it is not written yet, or has been removed.
        """
        if not self._work(execution_id).is_written(member, time_index):
            return None
        try:
            return self._open(execution_id).read_field(variable, member, time_index)
        except FileNotFoundError:
            return None

    def export_netcdf(
        self,
        execution_id: str,
        fence: int,
        *,
        should_stop: Callable[[], bool] = lambda: False,
        poll_s: float = POLL_S,
    ) -> None:
        """Write the NetCDF4 file, following the steps as they are written; ends when it is whole.

        Of several calls one works, the others wait for it. One that was killed is begun anew.

        Raises
        ------
        ExecutionCancelled
            If told to stop.
        """
        work = self._work(execution_id)
        work.admit(fence)
        files = self._open(execution_id)
        with work.exporting(should_stop):
            if work.export() is not None:
                return
            if files.netcdf.exists():
                work.record_export(hashed(files.netcdf, NETCDF))
                return
            # Named by fence: a mount that does not honour the lock costs time, not the result.
            partial = files.partial / f"{fence}.nc"
            try:
                follow(partial, files, work, fence, should_stop, poll_s)
                flushed = self._pool.submit(flush, partial)
                exported = hashed(partial, NETCDF)
                flushed.result()
                work.admit(fence)
                partial.replace(files.netcdf)
            except FileNotFoundError:
                raise work.gone() from None
            work.record_export(exported)

    def add_file(self, execution_id: str, fence: int, name: str, content: bytes) -> None:
        """Put a further file, such as a map, into the folder of the result; it appears whole."""
        work = self._work(execution_id)
        work.admit(fence)
        files = self._open(execution_id)
        partial = files.new_partial()
        try:
            partial.write_bytes(content)
            partial.replace(files.folder / _name(name))
        except FileNotFoundError:
            raise work.gone() from None

    def finish(self, execution_id: str, fence: int, *, extra: Sequence[str] = ()) -> dict[str, Any]:
        """Check that the result is whole and describe its files; a NetCDF request loses its Zarr.

        Parameters
        ----------
        extra : sequence of str
            Names of files that `add_file` put there; they are delivered, too.

        Returns
        -------
        dict
            As `deployments.manifest.describe_files` gives it.

        Raises
        ------
        StageFailed
            If something is missing.
        """
        work = self._work(execution_id)
        work.admit(fence)
        files = self._open(execution_id)
        plan = files.plan
        missing = len(plan.seeds) * plan.n_times - len(work.written())
        if missing:
            raise StageFailed(Stage.PACKAGE, f"{missing} steps of the result were not written")
        checksums = files.new_partial()
        try:
            description = describe_files(
                files.whole_files(work, [_name(name) for name in extra]),
                files.chunks(work) if plan.output_format == "zarr" else (),
                checksums,
                execution_id,
                self._max_listed,
            )
        except FileNotFoundError:
            raise work.gone() from None
        checksums.replace(files.folder / CHECKSUMS)
        if plan.output_format == "netcdf4":
            files.discard(files.zarr)
        return description

    def clean(self, execution_id: str) -> None:
        """Remove an execution's working files; its results stay, and cannot be changed any more."""
        remove_tree(self._work(execution_id).path)
        remove_tree(self._partial(execution_id))
        with self._opened_lock:
            self._opened.pop(execution_id, None)

    def purge(self, workflow: str, execution_id: str) -> None:
        """Remove an execution's results and working files."""
        # The working files first: without them no writer is admitted.
        remove_tree(self._work(execution_id).path)
        folder = self.folder(workflow, execution_id)
        # Renamed first, so that nobody gets half a result.
        moved = self._results_dir / ".partial" / f"{execution_id}.purged"
        remove_tree(moved)
        moved.parent.mkdir(parents=True, exist_ok=True)
        with suppress(FileNotFoundError):
            folder.rename(moved)
        remove_tree(moved)
        self.clean(execution_id)

    def _work(self, execution_id: str) -> WorkFolder:
        return WorkFolder(self._work_dir / _name(execution_id), execution_id)

    def _partial(self, execution_id: str) -> Path:
        return self._results_dir / ".partial" / _name(execution_id)

    def _files(self, execution_id: str, plan: Plan, provenance: Provenance) -> ResultFiles:
        folder = self.folder(plan.workflow, execution_id)
        return ResultFiles(execution_id, plan, provenance, folder, self._partial(execution_id))

    def _open(self, execution_id: str) -> ResultFiles:
        with self._opened_lock:
            files = self._opened.get(execution_id)
        if files is None:
            work = self._work(execution_id)
            try:
                files = self._files(execution_id, *work.plan())
            except FileNotFoundError:
                raise work.gone() from None
        return self._keep(files)

    def _keep(self, files: ResultFiles) -> ResultFiles:
        with self._opened_lock:
            self._opened[files.execution_id] = files
            self._opened.move_to_end(files.execution_id)
            while len(self._opened) > _OPENED:
                self._opened.popitem(last=False)
        return files


def _name(name: str) -> str:
    """Refuse what cannot be one part of a path."""
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9._-]*", name):
        raise ValueError(f"not a name: {name[:80]!r}")
    return name
