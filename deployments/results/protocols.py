"""The contract between `deployments.results.store` and a storage backend.

`deployments.results.disk` and `deployments.results.blob` implement it, and
``tests/deployments/results`` runs the same tests against both. Any method may be called
concurrently from any number of threads and processes, and may be repeated. FileNotFoundError means
that the execution was removed in the meantime.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from deployments.results.messages import StoredExecution
from deployments.results.work import StoredObject, Work
from deployments.results.zarr import chunk_key, store_objects
from workflows.base import Plan
from workflows.dataset import FIELD_DTYPE, Dataset, Provenance, describe, field_index
from workflows.errors import StageFailed
from workflows.execution import Stage
from workflows.manifest import ZARR

Floats = NDArray[np.float32]
R = TypeVar("R")
T = TypeVar("T")
Step = tuple[int, int]
"""Member and time index."""


class Damaged(Exception):
    """An object of a result is missing, or not what was written."""

    def __init__(self, key: str) -> None:
        super().__init__(key)
        self.key = key


@dataclass(frozen=True)
class Result(ABC):
    """The delivered files of one execution."""

    work: Work
    plan: Plan
    provenance: Provenance
    separator: str
    """Between the numbers in keys of chunks, see `Work.chunk_separator`."""

    def dataset(self) -> Dataset:
        """Return the description of the dataset."""
        return describe(self.plan, self.work.execution_id, self.provenance)

    def store_objects(self) -> Iterator[tuple[str, bytes]]:
        """Yield key and content of the Zarr store's objects, without the fields' chunks."""
        return store_objects(self.dataset(), self.separator)

    @abstractmethod
    def create_zarr(self) -> bool:
        """Create the Zarr store, and return whether there was none.

        Of one that exists the metadata are restored. Nothing is done after an export.
        """

    @abstractmethod
    def write_step(self, member: int, time_index: int, fields: Floats) -> list[StoredObject]:
        """Write one time step of one member, each map as one object.

        Parameters
        ----------
        fields : ndarray, shape (variable, lat, lon) or (variable, y, x)
            As models return them: longitudes 0 to 360.
        """

    def chunk_keys(self, member: int, time_index: int) -> list[str]:
        """Return the keys of the chunks of one time step, in the order of the variables."""
        index = field_index(self.plan, member, time_index)
        keys = (chunk_key(variable, index, self.separator) for variable in self.plan.variables)
        return [f"{ZARR}/{key}" for key in keys]

    def recorded(self, member: int, time_index: int) -> list[StoredObject]:
        """Return the chunks of one time step as they were written, in the order of the variables.

        Raises Damaged without a record of all of them.
        """
        keys = self.chunk_keys(member, time_index)
        try:
            objects = self.work.step_objects(member, time_index)
        except FileNotFoundError:
            objects = []
        if [stored.key for stored in objects] != keys:
            raise Damaged(keys[0])
        return objects

    def read_field(self, variable: str, member: int, time_index: int) -> Floats:
        """Return one map as it is stored: shape (lat, lon), longitudes from -180, or (y, x).

        Raises Damaged if it is not what was written.
        """
        index = self.plan.variables.index(variable)
        return self._read_chunk(self.recorded(member, time_index)[index])

    def read_step(self, member: int, time_index: int) -> Iterator[tuple[str, Floats]]:
        """Yield the maps of one time step, by variable; Damaged as in `read_field`."""
        chunks = self.recorded(member, time_index)
        yield from zip(self.plan.variables, self._each(self._read_chunk, chunks), strict=True)

    def _read_chunk(self, chunk: StoredObject) -> Floats:
        try:
            content = self._read(chunk.key)
        except FileNotFoundError:
            raise Damaged(chunk.key) from None
        if not chunk.agrees(content.nbytes, hashlib.sha256(content.data).hexdigest()):
            raise Damaged(chunk.key)
        return content.view(FIELD_DTYPE).reshape(self.plan.grid.shape)

    @abstractmethod
    def _each(self, call: Callable[[T], R], items: Iterable[T]) -> Iterator[R]:
        """Call a function for every item, a few concurrently; yield its results in order."""

    @abstractmethod
    def _read(self, key: str) -> NDArray[np.uint8]:
        """Return the content of an object; FileNotFoundError if it does not exist."""

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

    def describe_file(self, name: str) -> StoredObject:
        """Return size and SHA-256 of a file; StageFailed if it is missing."""
        found = self._find(name)
        if found is None:
            raise StageFailed(Stage.PACKAGE, f"{name} of the result is missing")
        return found

    @abstractmethod
    def _find(self, name: str) -> StoredObject | None:
        """Return size and SHA-256 of a file; None if it is missing."""

    def describe_dataset(self) -> StoredObject:
        """Return the NetCDF file, or the Zarr store with its total size.

        Raises StageFailed if the NetCDF file was not written.
        """
        if self.plan.output_format == "zarr":
            metadata_size = sum(len(content) for _, content in self.store_objects())
            return StoredObject(ZARR, metadata_size + self.plan.output_bytes, None)
        netcdf = self.exported()
        if netcdf is None:
            raise StageFailed(Stage.PACKAGE, "the NetCDF file was not written")
        return netcdf

    @abstractmethod
    def exported(self) -> StoredObject | None:
        """Return the NetCDF file as it was written; None if it is not complete."""

    def files(self, extra: Sequence[str]) -> Iterator[StoredObject]:
        """Yield all delivered files except the fields' chunks and the checksums.

        `extra` has the names of files that `add_file` wrote. Raises StageFailed if a file is
        missing, and Damaged if it is not what was written.
        """
        is_zarr = self.plan.output_format == "zarr"
        expected = self.metadata() if is_zarr else [self.describe_dataset()]
        yield from self._each(self._check_file, expected)
        yield from self._each(self.describe_file, extra)

    def metadata(self) -> list[StoredObject]:
        """Return all objects of the Zarr store except the fields' chunks, as they must be."""
        return [
            StoredObject(f"{ZARR}/{key}", len(content), hashlib.sha256(content).hexdigest())
            for key, content in self.store_objects()
        ]

    def _check_file(self, expected: StoredObject) -> StoredObject:
        if self._find(expected.key) != expected:
            raise Damaged(expected.key)
        return expected

    @abstractmethod
    def check_steps(self, steps: Iterable[Step]) -> Iterator[list[StoredObject] | Damaged]:
        """Compare the chunks of time steps with what was written.

        Steps of one member follow each other. Yields the chunks of each step, or the first damage
        to it.
        """

    @abstractmethod
    def has_zarr(self) -> bool:
        """Return whether there is a Zarr store."""

    @abstractmethod
    def discard_export(self) -> None:
        """Remove the NetCDF file, so that it is exported again."""

    @abstractmethod
    def checksums(self) -> AbstractContextManager[Path]:
        """Return a path for the checksums file; the file appears when the block succeeds.

        It and all that was written before the block survive a power failure.
        """

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
        """Return the result of an execution that is being written."""

    def clean(self, execution_id: str) -> None:
        """Remove the working records of an execution; its results are kept."""

    def purge(self, workflow: str, execution_id: str) -> None:
        """Remove the results and the working records of an execution."""

    def stored_executions(self, after: str, limit: int) -> list[StoredExecution]:
        """Return one page of the executions that have anything stored, ordered by id.

        The page has at most `limit` executions, with ids greater than `after`.
        """
