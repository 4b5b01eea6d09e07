"""Results of executions: a Zarr store that any number of processes fill, on disk or in Blob.

On disk::

    {results_dir}/{workflow}/{execution_id}/results.zarr/     or results.nc
                                            checksums.sha256
    {results_dir}/.partial/{execution_id}/                    files that are not whole yet
    {work_dir}/{execution_id}/                                see `deployments.results.disk_work`

In a container::

    {prefix}/{workflow}/{execution_id}/                       the same
    {prefix}/.work/{execution_id}/                            see `deployments.results.blob_work`
"""

from __future__ import annotations

import logging
import re
import threading
from collections import Counter, OrderedDict
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from deployments.results.checkpoint import Checkpoint
from deployments.results.disk_work import Written
from deployments.results.manifest import MAX_LISTED, Listing, describe_files
from deployments.results.netcdf import follow
from deployments.results.protocols import Result, Storage, StoredExecution, Work
from workflows.base import Plan
from workflows.dataset import Provenance
from workflows.errors import StageFailed
from workflows.execution import Stage

logger = logging.getLogger("ray.serve")

_OPENED = 64


class WrittenStep(NamedTuple):
    """What writing one step came to."""

    workflow: str
    bytes: int


class Begun(NamedTuple):
    """What an earlier attempt at an execution has left whole."""

    members: tuple[int, ...] = ()
    """All whose steps are written."""
    conditioning: tuple[int, ...] = ()
    """Members of the conditioning forecast all whose fields are there."""


class ResultsStore:
    """Creates, fills, exports, describes and removes results.

    Parameters
    ----------
    storage : Storage
        Where they lie: `deployments.results.disk` or `deployments.results.blob`.
    max_listed : int
        Bound on the files that a manifest names.

    Notes
    -----
    Methods may be called at once from any number of threads and processes, and any call may be
    repeated: what was done stays as it is. All that take a fence raise StaleConductor if a newer
    one was seen, and StageFailed if the execution was never created or has been removed.
    """

    def __init__(self, storage: Storage, *, max_listed: int = MAX_LISTED) -> None:
        self._storage = storage
        self._max_listed = max_listed
        self._opened: OrderedDict[str, Result] = OrderedDict()
        self._opened_lock = threading.Lock()

    def look(self) -> None:
        """See whether the place for results is there.

        Raises
        ------
        StageFailed
            Saying why not.
        """
        self._storage.look()

    def create(
        self,
        plan: Plan,
        execution_id: str,
        provenance: Provenance | Mapping[str, Any],
        fence: int,
    ) -> Begun:
        """Create all arrays and metadata, every value missing; the store appears at once.

        What an earlier attempt has written stays, unless another model or other initial
        conditions would compute the rest.

        Raises
        ------
        StageFailed
            If the execution was created with another plan.
        """
        work = self._work(execution_id)
        _name(plan.workflow)
        now = Provenance.model_validate(provenance)
        first = work.begin(plan, now, fence)
        written = work.written()
        if written and first.origins != now.origins:
            self.purge(plan.workflow, execution_id)
            first, written = work.begin(plan, now, fence), set()
        self._keep(self._storage.result(execution_id, plan, first)).create()
        conditioned = work.conditioned() if plan.conditioning is not None else set()
        return Begun(_whole(written, plan.n_times), _whole(conditioned, plan.n_steps))

    def write_step(
        self,
        execution_id: str,
        fence: int,
        member: int,
        time_index: int,
        fields: NDArray[np.float32],
    ) -> WrittenStep | None:
        """Write one time of one member, unless that is written already.

        Parameters
        ----------
        fields : ndarray, shape (variable, lat, lon)
            In the order of the plan's variables, as models give them: longitudes 0 to 360. Of a
            regional grid (variable, y, x).

        Returns
        -------
        WrittenStep or None
            None if it was written before.
        """
        work = self._work(execution_id)
        work.admit(fence)
        if work.is_written(member, time_index):
            return None
        result = self._open(execution_id)
        plan = result.plan
        shape = (len(plan.variables), *plan.grid.shape)
        if fields.shape != shape:
            raise ValueError(f"fields of shape {shape} are needed, not {fields.shape}")
        if member not in plan.members or time_index not in range(plan.n_times):
            raise ValueError(f"the plan has no time {time_index} of member {member}")

        try:
            objects = result.write_step(member, time_index, fields)
        except FileNotFoundError:
            raise work.gone() from None
        work.record_step(member, time_index, objects)
        return WrittenStep(plan.workflow, sum(each.size for each in objects))

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

    def write_checkpoint(
        self, execution_id: str, fence: int, member: int, checkpoint: Checkpoint
    ) -> None:
        """Keep the state of a member's model, in place of earlier ones."""
        work = self._work(execution_id)
        work.admit(fence)
        work.write_checkpoint(member, checkpoint)
        for step in work.checkpoints(member):
            if step < checkpoint.step:
                work.drop_checkpoint(member, step)

    def read_checkpoint(self, execution_id: str, member: int) -> Checkpoint | None:
        """Read the last checkpoint of a member up to which all its steps are written.

        Returns
        -------
        Checkpoint or None
            None if there is none. A damaged one costs time, but no execution.
        """
        work = self._work(execution_id)
        steps = work.checkpoints(member)
        written = work.written() if steps else set()
        for step in steps:
            if not written.issuperset((member, before) for before in range(step + 1)):
                continue
            try:
                return work.read_checkpoint(member, step)
            except FileNotFoundError:
                continue
            except (OSError, ValueError):
                logger.exception("a checkpoint of member %d cannot be used", member)
        return None

    def drop_checkpoints(self, execution_id: str, fence: int, member: int) -> None:
        """Remove the checkpoints of a member that is whole."""
        work = self._work(execution_id)
        work.admit(fence)
        for step in work.checkpoints(member):
            work.drop_checkpoint(member, step)

    def written(self, execution_id: str) -> set[tuple[int, int]]:
        """Read which (member, time index) are written."""
        return self._work(execution_id).written()

    def recorded(self, execution_id: str) -> tuple[Plan, Provenance]:
        """Give what a result was created with."""
        result = self._open(execution_id, again=True)
        return result.plan, result.provenance

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
        poll_s: float | None = None,
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
        result = self._open(execution_id, again=True)
        wait_s = self._storage.poll_s if poll_s is None else poll_s
        try:
            result.export(
                fence,
                should_stop,
                lambda path: follow(path, result, fence, should_stop, wait_s),
            )
        except FileNotFoundError:
            raise work.gone() from None

    def add_file(self, execution_id: str, fence: int, name: str, content: bytes) -> None:
        """Put a further file, such as a map, into the folder of the result; it appears whole."""
        work = self._work(execution_id)
        work.admit(fence)
        try:
            self._open(execution_id).add(_name(name), content)
        except FileNotFoundError:
            raise work.gone() from None

    def assets(self, execution_id: str, names: Sequence[str]) -> dict[str, Written]:
        """Give what a catalogue refers to, by key: the dataset and files that `add_file` put there.

        Raises
        ------
        StageFailed
            If something is missing.
        """
        result = self._open(execution_id, again=True)
        found = (result.described(_name(name)) for name in names)
        return {asset.key: asset for asset in (result.data(), *found)}

    def finish(self, execution_id: str, fence: int, *, extra: Sequence[str] = ()) -> Listing:
        """Check that the result is whole and describe its files; a NetCDF request loses its Zarr.

        Parameters
        ----------
        extra : sequence of str
            Names of files that `add_file` put there; they are delivered, too.

        Raises
        ------
        StageFailed
            If something is missing.
        """
        work = self._work(execution_id)
        work.admit(fence)
        result = self._open(execution_id, again=True)
        plan = result.plan
        missing = len(plan.seeds) * plan.n_times - len(work.written())
        if missing:
            raise StageFailed(Stage.PACKAGE, f"{missing} steps of the result were not written")
        try:
            with result.checksums() as checksums:
                description = describe_files(
                    result.whole_files([_name(name) for name in extra]),
                    result.chunks() if plan.output_format == "zarr" else (),
                    checksums,
                    execution_id,
                    self._max_listed,
                )
        except FileNotFoundError:
            raise work.gone() from None
        if plan.output_format == "netcdf4":
            result.drop_zarr()
        return description

    def clean(self, execution_id: str) -> None:
        """Remove an execution's working files; its results stay, and cannot be changed any more."""
        self._storage.clean(_name(execution_id))
        self._forget(execution_id)

    def purge(self, workflow: str, execution_id: str) -> None:
        """Remove an execution's results and working files."""
        self._storage.purge(_name(workflow), _name(execution_id))
        self._forget(execution_id)

    def stored_executions(self, after: str, limit: int) -> list[StoredExecution]:
        """Return the executions of which something is stored, see `protocols.Storage`."""
        return self._storage.stored_executions(after, limit)

    def workflow_of(self, execution_id: str) -> str | None:
        """Say of which workflow an execution is; None if nothing is left of it."""
        try:
            return self._open(execution_id).plan.workflow
        except StageFailed:
            return None

    def _work(self, execution_id: str) -> Work:
        return self._storage.work(_name(execution_id))

    def _open(self, execution_id: str, *, again: bool = False) -> Result:
        """Give a result; `again` where another replica may have created it anew meanwhile."""
        with self._opened_lock:
            result = self._opened.get(execution_id)
        if result is None or again:
            work = self._work(execution_id)
            try:
                result = self._storage.result(execution_id, *work.plan())
            except FileNotFoundError:
                raise work.gone() from None
        return self._keep(result)

    def _keep(self, result: Result) -> Result:
        execution_id = result.work.execution_id
        with self._opened_lock:
            self._opened[execution_id] = result
            self._opened.move_to_end(execution_id)
            while len(self._opened) > _OPENED:
                self._opened.popitem(last=False)
        return result

    def _forget(self, execution_id: str) -> None:
        with self._opened_lock:
            self._opened.pop(execution_id, None)


def _whole(found: set[tuple[int, int]], each: int) -> tuple[int, ...]:
    """Give the members of which there are as many as of a whole one."""
    counts = Counter(member for member, _ in found)
    return tuple(sorted(member for member, count in counts.items() if count == each))


def _name(name: str) -> str:
    """Refuse what cannot be one part of a path."""
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9._-]*", name):
        raise ValueError(f"not a name: {name[:80]!r}")
    return name
