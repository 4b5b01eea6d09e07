"""What `deployments.results.store` needs of the place where results lie.

`deployments.results.disk` and `deployments.results.blob` have it. All calls may come from any
number of threads and processes at once, and each may be repeated. FileNotFoundError means that
the execution has gone meanwhile.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from deployments.results.checkpoint import Checkpoint
from deployments.results.disk_work import Written
from workflows.base import Plan
from workflows.dataset import Dataset, Provenance
from workflows.errors import StageFailed
from workflows.execution import EXECUTION_ID

Floats = NDArray[np.float32]


class StoredExecution(NamedTuple):
    """What lies there of one execution."""

    execution_id: str
    workflows: tuple[str, ...]
    """In whose folders there are results of it; an execution has one workflow."""
    is_working: bool
    """Whether there are working records, or files that are not whole."""


def page_of_stored_executions(
    working: Iterable[str], results: Iterable[tuple[str, str]], after: str, limit: int
) -> list[StoredExecution]:
    """Bring together what `Storage.stored_executions` gives.

    Parameters
    ----------
    working : iterable of str
        Names where working records lie; what is no execution's id is left out.
    results : iterable of (str, str)
        Workflows, and names in their folders.
    """
    begun = set(working)
    workflows: dict[str, list[str]] = {}
    for workflow, name in results:
        workflows.setdefault(name, []).append(workflow)
    ids = (each for each in begun | workflows.keys() if each > after)
    return [
        StoredExecution(each, tuple(workflows.get(each, ())), each in begun)
        for each in heapq.nsmallest(limit, filter(EXECUTION_ID.fullmatch, ids))
    ]


class Work(Protocol):
    """Working records of one execution, as `DiskWork` describes them."""

    @property
    def execution_id(self) -> str:
        """Whose they are."""

    def begin(self, plan: Plan, provenance: Provenance, fence: int) -> Provenance:
        """Note what shall be written; of several attempts the first one counts."""

    def plan(self) -> tuple[Plan, Provenance]:
        """Read what shall be written."""

    def admit(self, fence: int) -> None:
        """Let the newest fence pass, and remember it."""

    def gone(self) -> StageFailed:
        """Give the error for an execution that was never begun, or has been removed."""

    def record_step(self, member: int, time_index: int, objects: Sequence[Written]) -> None:
        """Note that one time of one member is written."""

    def is_written(self, member: int, time_index: int) -> bool:
        """Say whether one time of one member is written."""

    def written(self) -> set[tuple[int, int]]:
        """Read which (member, time index) are written."""

    def written_of(self, steps: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
        """Read which of some are written."""

    def write_conditioning(self, member: int, step: int, field: Floats) -> None:
        """Keep a field that conditions a step until the execution has ended."""

    def read_conditioning(self, member: int, step: int) -> Floats | None:
        """Read such a field; None if it is not there yet."""

    def conditioned(self) -> set[tuple[int, int]]:
        """Read which (member, step) have such a field."""

    def checkpoints(self, member: int) -> list[int]:
        """Read at which steps there is a checkpoint of a member, the last one first."""

    def write_checkpoint(self, member: int, checkpoint: Checkpoint) -> None:
        """Keep a checkpoint until it is dropped or the execution has ended."""

    def read_checkpoint(self, member: int, step: int) -> Checkpoint:
        """Read one; FileNotFoundError if it is not there, ValueError if it is damaged."""

    def drop_checkpoint(self, member: int, step: int) -> None:
        """Remove one, if it is there."""


class Result(Protocol):
    """What one execution delivers."""

    @property
    def plan(self) -> Plan:
        """What it was created with."""

    @property
    def provenance(self) -> Provenance:
        """How it came about."""

    @property
    def work(self) -> Work:
        """Its working records."""

    def dataset(self) -> Dataset:
        """Describe what it holds."""

    def create(self) -> None:
        """Create the Zarr store at once, unless it is there or not needed any more."""

    def write_step(self, member: int, time_index: int, fields: Floats) -> list[Written]:
        """Write one time of one member, shape (variable, lat, lon), each map whole."""

    def read_field(self, variable: str, member: int, time_index: int) -> Floats:
        """Read one map, as it is stored; FileNotFoundError if it is not there."""

    def read_step(self, member: int, time_index: int) -> Iterator[tuple[str, Floats]]:
        """Read the maps of one step, by variable; each lasts until the next."""

    def export(
        self, fence: int, should_stop: Callable[[], bool], write: Callable[[Path], str]
    ) -> None:
        """Have the NetCDF file written at a path, and make it appear whole; once is enough.

        `write` gives the SHA-256 of what it has written.
        """

    def add(self, name: str, content: bytes) -> None:
        """Put a further file there, whole."""

    def described(self, name: str) -> Written:
        """Give size and SHA-256 of a file; StageFailed if it is missing."""

    def data(self) -> Written:
        """Give what the dataset is: the NetCDF file, or the Zarr store with its size as a whole."""

    def whole_files(self, extra: Sequence[str]) -> Iterator[Written]:
        """Give what is delivered except the fields' chunks, checked."""

    def chunks(self) -> Iterator[Written]:
        """Give the fields' chunks as they were recorded, one by one, checked."""

    def checksums(self) -> AbstractContextManager[Path]:
        """Give a path to write the checksums to; they appear whole when all went well."""

    def drop_zarr(self) -> None:
        """Make the Zarr store vanish at once; it is gone when the working records are."""


class Storage(Protocol):
    """A place for results."""

    @property
    def poll_s(self) -> float:
        """How long to wait before looking for further steps again."""

    def look(self) -> None:
        """See whether the place is there; StageFailed says why not."""

    def work(self, execution_id: str) -> Work:
        """Give an execution's working records."""

    def result(self, execution_id: str, plan: Plan, provenance: Provenance) -> Result:
        """Give an execution's result."""

    def clean(self, execution_id: str) -> None:
        """Remove an execution's working records; its results stay."""

    def purge(self, workflow: str, execution_id: str) -> None:
        """Remove an execution's results and working records."""

    def stored_executions(self, after: str, limit: int) -> list[StoredExecution]:
        """List of which executions something is there, in the order of their ids.

        Parameters
        ----------
        after : str
            Ids up to this one are left out.
        limit : int
            Executions at most.
        """
