"""The contract between `deployments.results.store` and a storage backend.

`deployments.results.disk` and `deployments.results.blob` implement it, and
``tests/deployments/results`` runs the same tests against both. Any method may be called
concurrently from any number of threads and processes, and may be repeated. FileNotFoundError means
that the execution was removed in the meantime.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from deployments.results.checkpoint import Checkpoint
from deployments.results.messages import StoredExecution
from workflows.base import Plan
from workflows.dataset import Dataset, Provenance
from workflows.errors import StageFailed
from workflows.execution import Stage

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class StoredObject:
    """A file or blob that was written completely."""

    key: str
    """Path below the folder of the result."""
    size: int
    """Bytes."""
    sha256: str | None
    """Hexadecimal; None for an object that is not delivered."""


def not_being_written(execution_id: str) -> StageFailed:
    """Return the error for an execution that was never created, or has been removed.

    Not StaleConductor, which ends the process that receives it: a removed folder does not mean
    that another Conductor took over, and all other executions of that process would end with it.
    """
    return StageFailed(Stage.PACKAGE, f"{execution_id} is not being written")


class Work(Protocol):
    """Working records of one execution, removed when it ends."""

    @property
    def execution_id(self) -> str:
        """Execution that they belong to."""

    def create(self, plan: Plan, provenance: Provenance, fence: int) -> Provenance:
        """Record the plan and provenance; of several attempts the first one counts.

        Returns
        -------
        Provenance
            The recorded one.

        Raises
        ------
        StaleConductor
            If a newer fence was seen.
        StageFailed
            If another plan was recorded.
        """

    def read_plan(self) -> tuple[Plan, Provenance]:
        """Return what was recorded; FileNotFoundError if there is no record."""

    def check_fence(self, fence: int) -> None:
        """Check that no newer fence was seen, and remember this one.

        Raises
        ------
        StaleConductor
            If a newer fence was seen.
        StageFailed
            If the execution is not being written.
        """

    def record_step(self, member: int, time_index: int, objects: Sequence[StoredObject]) -> None:
        """Record that one time step of one member is written."""

    def is_written(self, member: int, time_index: int) -> bool:
        """Return whether one time step of one member is written."""

    def written_steps(self) -> set[tuple[int, int]]:
        """Return all (member, time index) that are written."""

    def filter_written(self, steps: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
        """Return those of some (member, time index) that are written."""

    def write_conditioning(self, member: int, step: int, field: Floats) -> None:
        """Keep a field that conditions a time step, until the execution ends."""

    def read_conditioning(self, member: int, step: int) -> Floats | None:
        """Return such a field; None if it is not written yet.

        Raises
        ------
        StageFailed
            If the execution is not being written.
        """

    def conditioning_steps(self) -> set[tuple[int, int]]:
        """Return all (member, step) whose conditioning field is written."""

    def checkpoint_steps(self, member: int) -> list[int]:
        """Return the time steps at which a member has a checkpoint, latest first."""

    def write_checkpoint(self, member: int, checkpoint: Checkpoint) -> None:
        """Keep a checkpoint until it is removed or the execution ends."""

    def read_checkpoint(self, member: int, step: int) -> Checkpoint:
        """Return a checkpoint.

        Raises
        ------
        FileNotFoundError
            If it does not exist.
        ValueError
            If it is damaged.
        """

    def remove_checkpoint(self, member: int, step: int) -> None:
        """Remove a checkpoint, if it exists."""


class Result(Protocol):
    """The delivered files of one execution."""

    @property
    def plan(self) -> Plan:
        """Plan with which it was created."""

    @property
    def provenance(self) -> Provenance:
        """Models, data sources and software that compute it."""

    @property
    def work(self) -> Work:
        """Working records of the execution."""

    def dataset(self) -> Dataset:
        """Return the description of the dataset."""

    def create_zarr(self) -> None:
        """Create the Zarr store, unless it exists or has been exported and removed."""

    def write_step(self, member: int, time_index: int, fields: Floats) -> list[StoredObject]:
        """Write one time step of one member, each map as one object.

        Parameters
        ----------
        fields : ndarray, shape (variable, lat, lon) or (variable, y, x)
            As models return them: longitudes 0 to 360.
        """

    def read_field(self, variable: str, member: int, time_index: int) -> Floats:
        """Return one map as it is stored: shape (lat, lon), longitudes from -180, or (y, x).

        Raises
        ------
        FileNotFoundError
            If it does not exist.
        """

    def read_step(self, member: int, time_index: int) -> Iterator[tuple[str, Floats]]:
        """Yield the maps of one time step, by variable."""

    def export(
        self, fence: int, should_stop: Callable[[], bool], write: Callable[[Path], str]
    ) -> None:
        """Write the NetCDF file, unless that is done; it appears complete.

        Parameters
        ----------
        should_stop : callable
            Polled while another call exports.
        write : callable
            Writes the file at a path and returns its SHA-256.
        """

    def add_file(self, name: str, content: bytes) -> None:
        """Add a further file; it appears complete."""

    def describe_file(self, name: str) -> StoredObject:
        """Return size and SHA-256 of a file.

        Raises
        ------
        StageFailed
            If it is missing.
        """

    def describe_dataset(self) -> StoredObject:
        """Return the NetCDF file, or the Zarr store with its total size.

        Raises
        ------
        StageFailed
            If the NetCDF file was not written.
        """

    def files(self, extra: Sequence[str]) -> Iterator[StoredObject]:
        """Yield all delivered files but the fields' chunks and the checksums.

        Parameters
        ----------
        extra : sequence of str
            Names of files that `add_file` wrote.

        Raises
        ------
        StageFailed
            If a file is missing or damaged.
        """

    def chunks(self) -> Iterator[StoredObject]:
        """Yield the fields' chunks as they were recorded.

        Raises
        ------
        StageFailed
            If a chunk is missing or damaged.
        """

    def checksums(self) -> AbstractContextManager[Path]:
        """Return a path for the checksums file; the file appears when the block succeeds."""

    def remove_zarr(self) -> None:
        """Make the Zarr store disappear at once; its space may be freed later."""


class Storage(Protocol):
    """A place for results."""

    @property
    def poll_s(self) -> float:
        """Pause between two queries for written steps, seconds."""

    def check_available(self) -> None:
        """Check that the place exists and can be read.

        Raises
        ------
        StageFailed
            With the reason, if not.
        """

    def work(self, execution_id: str) -> Work:
        """Return the working records of an execution."""

    def result(self, execution_id: str, plan: Plan, provenance: Provenance) -> Result:
        """Return the result of an execution."""

    def clean(self, execution_id: str) -> None:
        """Remove the working records of an execution; its results are kept."""

    def purge(self, workflow: str, execution_id: str) -> None:
        """Remove the results and the working records of an execution."""

    def stored_executions(self, after: str, limit: int) -> list[StoredExecution]:
        """Return one page of the executions that have anything stored, ordered by id.

        Parameters
        ----------
        after : str
            Only ids greater than this one.
        limit : int
            Maximum number of executions.
        """
