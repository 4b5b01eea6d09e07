"""Results of executions: datasets that many processes write, on disk or in Blob Storage."""

from __future__ import annotations

import threading
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from deployments.results.manifest import MAX_LISTED, Listing, list_files
from deployments.results.messages import CompletedMembers, StoredExecution
from deployments.results.names import check_name
from deployments.results.netcdf import export_steps
from deployments.results.protocols import Damaged, Result, Storage
from deployments.results.work import StoredObject, Work, not_being_written
from workflows.base import Plan
from workflows.dataset import Provenance
from workflows.errors import StageFailed
from workflows.execution import Stage
from workflows.manifest import NETCDF

MAX_OPEN_RESULTS = 64


class WrittenStep(NamedTuple):
    """A time step that a call has written."""

    workflow: str
    bytes: int


class ResultsStore:
    """Creates, fills, exports, describes and removes results.

    Methods may be called concurrently from any number of threads and processes, and any call may
    be repeated: nothing is written twice. Those that take a fence raise StaleConductor if a newer
    one was seen, and StageFailed if the execution was never created or has been removed. A manifest
    lists at most `max_listed` files.
    """

    def __init__(self, storage: Storage, *, max_listed: int = MAX_LISTED) -> None:
        self._storage = storage
        self._max_listed = max_listed
        self._open_results: OrderedDict[str, Result] = OrderedDict()
        self._lock = threading.Lock()

    def check_available(self) -> None:
        """Raise StageFailed with the reason if results cannot be stored."""
        self._storage.check_available()

    def create(
        self, plan: Plan, execution_id: str, provenance: Provenance, fence: int
    ) -> CompletedMembers:
        """Create all arrays and metadata with every value missing.

        Data of an earlier attempt are kept, unless another model or other initial conditions would
        compute the rest.

        Returns
        -------
        CompletedMembers
            Members that the earlier attempt has completed.

        Raises
        ------
        StageFailed
            If the execution was created with a different plan.
        """
        work = self._work(execution_id)
        check_name(plan.workflow)
        recorded = work.create(plan, provenance, fence)
        written = set(work.filter_written(work.written_steps()))
        if written and recorded.origins != provenance.origins:
            self.purge(plan.workflow, execution_id)
            recorded, written = work.create(plan, provenance, fence), set()
        result = self._cache(self._storage.result(execution_id, plan, recorded))
        if result.create_zarr() and written:
            # The store was lost, and what was written with it.
            for step in written:
                work.forget_step(*step)
            written = set()
        conditioning = work.conditioning_steps() if plan.conditioning is not None else set()
        return CompletedMembers(
            members=_completed(written, plan.n_times),
            conditioning=_completed(conditioning, plan.n_steps),
        )

    def write_step(
        self,
        execution_id: str,
        fence: int,
        member: int,
        time_index: int,
        fields: NDArray[np.float32],
    ) -> WrittenStep | None:
        """Write one time step of one member; return None if it was written before.

        Parameters
        ----------
        fields : ndarray, shape (variable, lat, lon) or (variable, y, x)
            In the order of the plan's variables, as models return them: longitudes 0 to 360.
        """
        work = self._work(execution_id)
        work.check_fence(fence)
        if work.is_written(member, time_index):
            return None
        result = self._open(execution_id)
        plan = result.plan
        shape = (len(plan.variables), *plan.grid.shape)
        if fields.shape != shape:
            raise ValueError(f"the fields have shape {fields.shape}, not {shape}")
        if member not in plan.members or time_index not in range(plan.n_times):
            raise ValueError(f"the plan has no time {time_index} of member {member}")
        try:
            objects = result.write_step(member, time_index, fields)
        except FileNotFoundError:
            raise not_being_written(execution_id) from None
        work.record_step(member, time_index, objects)
        return WrittenStep(plan.workflow, sum(stored.size for stored in objects))

    def read_field(
        self, execution_id: str, variable: str, member: int, time_index: int
    ) -> NDArray[np.float32] | None:
        """Return one map before `describe`: shape (lat, lon), longitudes from -180, or (y, x).

        Returns None if it is not written yet, or has been removed. Raises StageFailed if it is
        damaged; see `describe`.
        """
        if not self._work(execution_id).is_written(member, time_index):
            return None
        result = self._open(execution_id)
        try:
            return result.read_field(variable, member, time_index)
        except Damaged as damage:
            if not result.has_zarr():
                return None
            raise self._discard_damaged(execution_id, damage) from None

    def export_netcdf(
        self,
        execution_id: str,
        fence: int,
        *,
        should_stop: Callable[[], bool] = lambda: False,
    ) -> None:
        """Write the NetCDF4 file as the time steps are written; return when it is complete.

        Of several concurrent calls one writes and the others wait for it. An export whose process
        was killed starts again. Raises ExecutionCancelled if `should_stop` becomes true.
        """
        work = self._work(execution_id)
        work.check_fence(fence)
        result = self._open(execution_id, reload=True)
        try:
            result.export(
                fence,
                should_stop,
                lambda path: export_steps(path, result, fence, should_stop, self._storage.poll_s),
            )
        except FileNotFoundError:
            raise not_being_written(execution_id) from None
        except Damaged as damage:
            raise self._discard_damaged(execution_id, damage) from None

    def add_file(self, execution_id: str, fence: int, name: str, content: bytes) -> None:
        """Add a further file, such as a map, to the result; it appears complete."""
        work = self._work(execution_id)
        work.check_fence(fence)
        try:
            self._open(execution_id).add_file(check_name(name), content)
        except FileNotFoundError:
            raise not_being_written(execution_id) from None

    def origin(self, execution_id: str) -> tuple[Plan, Provenance]:
        """Return the plan and provenance with which a result was created."""
        result = self._open(execution_id, reload=True)
        return result.plan, result.provenance

    def assets(self, execution_id: str, names: Sequence[str]) -> dict[str, StoredObject]:
        """Return the dataset and files that `add_file` wrote, by key.

        Raises StageFailed if a file is missing.
        """
        result = self._open(execution_id, reload=True)
        files = (result.describe_file(check_name(name)) for name in names)
        return {stored.key: stored for stored in (result.describe_dataset(), *files)}

    def describe(self, execution_id: str, fence: int, *, extra: Sequence[str] = ()) -> Listing:
        """Check that the result is complete, write its checksums and return the list of its files.

        All that was written before is compared with what is there. What is lost or damaged is no
        longer recorded as written, so that a retry writes it again. What is listed survives a power
        failure. Removes the Zarr store from which a NetCDF4 file was exported.

        Parameters
        ----------
        extra : sequence of str
            Names of files that `add_file` wrote, which are delivered as well.

        Raises
        ------
        StageFailed
            If a time step or a file is missing or damaged.
        """
        work = self._work(execution_id)
        work.check_fence(fence)
        result = self._open(execution_id, reload=True)
        plan = result.plan
        missing = len(plan.seeds) * plan.n_times - len(work.written_steps())
        if missing:
            raise StageFailed(Stage.PACKAGE, f"{missing} steps of the result were not written")
        try:
            with result.checksums() as checksums:
                listing = list_files(
                    result.files([check_name(name) for name in extra]),
                    _checked_chunks(result) if plan.output_format == "zarr" else (),
                    checksums,
                    execution_id,
                    self._max_listed,
                )
        except FileNotFoundError:
            raise not_being_written(execution_id) from None
        except Damaged as damage:
            raise self._discard_damaged(execution_id, damage) from None
        if plan.output_format == "netcdf4":
            result.remove_zarr()
        return listing

    def _discard_damaged(self, execution_id: str, first: Damaged) -> StageFailed:
        """Discard all that is damaged, so that a retry writes it again, and return the error.

        Metadata are restored whenever a result is created.
        """
        # Raises if the execution was removed, which is no damage.
        result = self._open(execution_id, reload=True)
        if first.key == NETCDF:
            result.discard_export()
        steps = sorted(result.work.written_steps()) if result.has_zarr() else []
        checked = zip(steps, result.check_steps(steps), strict=True)
        damaged = [step for step, found in checked if isinstance(found, Damaged)]
        for step in damaged:
            result.work.forget_step(*step)
        reason = f"{first.key} of the result is missing or damaged"
        if damaged:
            reason += f", in all {len(damaged)} of {len(steps)} time steps"
        return StageFailed(Stage.PACKAGE, f"{reason}; a retry writes again what was lost")

    def clean(self, execution_id: str) -> None:
        """Remove an execution's working files; its results are kept and cannot change any more."""
        self._storage.clean(check_name(execution_id))
        self._evict(execution_id)

    def purge(self, workflow: str, execution_id: str) -> None:
        """Remove an execution's results and working files."""
        self._storage.purge(check_name(workflow), check_name(execution_id))
        self._evict(execution_id)

    def stored_executions(self, after: str, limit: int) -> list[StoredExecution]:
        """Return one page of the executions that have anything stored, see `protocols.Storage`."""
        return self._storage.stored_executions(after, limit)

    def workflow_of(self, execution_id: str) -> str | None:
        """Return the workflow of an execution; None if it is not being written."""
        try:
            return self._open(execution_id).plan.workflow
        except StageFailed:
            return None

    def _work(self, execution_id: str) -> Work:
        return self._storage.work(check_name(execution_id))

    def _open(self, execution_id: str, *, reload: bool = False) -> Result:
        """Return a result; `reload` if another replica may have created it again."""
        with self._lock:
            result = self._open_results.get(execution_id)
        if result is None or reload:
            work = self._work(execution_id)
            try:
                result = self._storage.result(execution_id, *work.read_plan())
            except FileNotFoundError:
                raise not_being_written(execution_id) from None
        return self._cache(result)

    def _cache(self, result: Result) -> Result:
        execution_id = result.work.execution_id
        with self._lock:
            self._open_results[execution_id] = result
            self._open_results.move_to_end(execution_id)
            while len(self._open_results) > MAX_OPEN_RESULTS:
                self._open_results.popitem(last=False)
        return result

    def _evict(self, execution_id: str) -> None:
        with self._lock:
            self._open_results.pop(execution_id, None)


def _checked_chunks(result: Result) -> Iterator[StoredObject]:
    """Yield the fields' chunks as they were written; Damaged if one is missing or another."""
    plan = result.plan
    steps = ((member, time) for member in plan.members for time in range(plan.n_times))
    for chunks in result.check_steps(steps):
        if isinstance(chunks, Damaged):
            raise chunks
        yield from chunks


def _completed(written: set[tuple[int, int]], steps_per_member: int) -> tuple[int, ...]:
    """Return the members of which all steps are written."""
    counts = Counter(member for member, _ in written)
    return tuple(sorted(member for member, n in counts.items() if n == steps_per_member))
