"""The contract between `deployments.results.store` and a storage backend.

`deployments.results.disk` and `deployments.results.blob` implement it, and
``tests/deployments/results`` runs the same tests against both. Any method may be called
concurrently from any number of threads and processes, and may be repeated. FileNotFoundError means
that the execution was removed in the meantime.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from deployments.results.messages import StoredExecution
from deployments.results.work import StoredObject, Work
from deployments.results.zarr import store_objects
from workflows.base import Plan
from workflows.dataset import Dataset, Provenance, describe
from workflows.errors import StageFailed
from workflows.execution import Stage
from workflows.manifest import ZARR

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Result(ABC):
    """The delivered files of one execution."""

    work: Work
    plan: Plan
    provenance: Provenance

    def dataset(self) -> Dataset:
        """Return the description of the dataset."""
        return describe(self.plan, self.work.execution_id, self.provenance)

    @abstractmethod
    def create_zarr(self) -> None:
        """Create the Zarr store, unless it exists or has been exported and removed."""

    @abstractmethod
    def write_step(self, member: int, time_index: int, fields: Floats) -> list[StoredObject]:
        """Write one time step of one member, each map as one object.

        Parameters
        ----------
        fields : ndarray, shape (variable, lat, lon) or (variable, y, x)
            As models return them: longitudes 0 to 360.
        """

    @abstractmethod
    def read_field(self, variable: str, member: int, time_index: int) -> Floats:
        """Return one map as it is stored: shape (lat, lon), longitudes from -180, or (y, x).

        Raises FileNotFoundError if it does not exist.
        """

    def read_step(self, member: int, time_index: int) -> Iterator[tuple[str, Floats]]:
        """Yield the maps of one time step, by variable."""
        for variable in self.plan.variables:
            yield variable, self.read_field(variable, member, time_index)

    @abstractmethod
    def export(
        self, fence: int, should_stop: Callable[[], bool], write: Callable[[Path], str]
    ) -> None:
        """Write the NetCDF file, unless that is done; it appears complete.

        `should_stop` is polled while another call exports. `write` writes the file at a path and
        returns its SHA-256.
        """

    @abstractmethod
    def add_file(self, name: str, content: bytes) -> None:
        """Add a further file; it appears complete."""

    @abstractmethod
    def describe_file(self, name: str) -> StoredObject:
        """Return size and SHA-256 of a file; StageFailed if it is missing."""

    def describe_dataset(self) -> StoredObject:
        """Return the NetCDF file, or the Zarr store with its total size.

        Raises StageFailed if the NetCDF file was not written.
        """
        if self.plan.output_format == "zarr":
            metadata_size = sum(len(content) for _, content in store_objects(self.dataset()))
            return StoredObject(ZARR, metadata_size + self.plan.output_bytes, None)
        netcdf = self.exported()
        if netcdf is None:
            raise StageFailed(Stage.PACKAGE, "the NetCDF file was not written")
        return netcdf

    @abstractmethod
    def exported(self) -> StoredObject | None:
        """Return the NetCDF file; None if it is not complete."""

    @abstractmethod
    def files(self, extra: Sequence[str]) -> Iterator[StoredObject]:
        """Yield all delivered files except the fields' chunks and the checksums.

        `extra` has the names of files that `add_file` wrote. Raises StageFailed if a file is
        missing or damaged.
        """

    @abstractmethod
    def chunks(self) -> Iterator[StoredObject]:
        """Yield the fields' chunks as recorded; StageFailed if one is missing or damaged."""

    @abstractmethod
    def checksums(self) -> AbstractContextManager[Path]:
        """Return a path for the checksums file; the file appears when the block succeeds."""

    @abstractmethod
    def remove_zarr(self) -> None:
        """Make the Zarr store disappear at once; its space may be freed later."""


class Storage(Protocol):
    """A place for results."""

    @property
    def poll_s(self) -> float:
        """Pause between two queries for written steps, seconds."""

    def check_available(self) -> None:
        """Raise StageFailed with the reason if the place cannot be read."""

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

        The page has at most `limit` executions, with ids greater than `after`.
        """
