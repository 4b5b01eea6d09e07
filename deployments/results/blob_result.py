"""The result of one execution as blobs: one for every map, or one for the NetCDF file."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from deployments.azure.blobs import Blobs
from deployments.results.blob_work import BlobWork
from deployments.results.media_types import media_type
from deployments.results.names import result_folder
from deployments.results.protocols import Result
from deployments.results.scratch import scratch_folder
from deployments.results.work import StoredObject
from deployments.results.zarr import chunk_content, chunk_key, store_objects
from workflows.dataset import FIELD_DTYPE, field_index
from workflows.errors import StageFailed
from workflows.execution import Stage
from workflows.manifest import CHECKSUMS, NETCDF, ZARR

ROOT = f"{ZARR}/zarr.json"
"""Metadata of the root group. The store exists only with it: written last, removed first."""
READ_AHEAD = 4
"""Blobs that are read while an earlier one is processed."""


@dataclass(frozen=True)
class BlobResult(Result):
    """A result as blobs."""

    work: BlobWork
    blobs: Blobs
    scratch_dir: Path
    """Folder on the local disk for files before they are uploaded."""

    @property
    def folder(self) -> str:
        """Folder of the delivered blobs."""
        return result_folder(self.plan.workflow, self.work.execution_id)

    def create_zarr(self) -> None:
        """Create the Zarr store, unless it exists or has been exported and removed."""
        if self._head(ROOT) is not None or self.exported() is not None:
            return
        objects = dict(store_objects(self.dataset()))
        names = [f"{ZARR}/{key}" for key in objects]
        root = objects.pop("zarr.json")
        with self._confirmed(names):
            items = ((f"{ZARR}/{key}", content) for key, content in objects.items())
            list(self.blobs.each(lambda item: self._put(*item), items))
            self._put(ROOT, root)

    def write_step(
        self, member: int, time_index: int, fields: NDArray[np.float32]
    ) -> list[StoredObject]:
        """Write one time step of one member."""
        index = field_index(self.plan, member, time_index)
        names = [f"{ZARR}/{chunk_key(variable, index)}" for variable in self.plan.variables]

        def write(item: tuple[str, NDArray[np.float32]]) -> StoredObject:
            name, field = item
            content = chunk_content(self.plan, field).data.cast("B")
            # The chunks of a NetCDF request are not delivered and need no checksum.
            return self._put(name, content, is_delivered=self.plan.output_format == "zarr")

        with self._confirmed(names):
            return list(self.blobs.each(write, zip(names, fields, strict=True)))

    def read_field(self, variable: str, member: int, time_index: int) -> NDArray[np.float32]:
        """Return one map as it is stored; FileNotFoundError if it does not exist."""
        key = chunk_key(variable, field_index(self.plan, member, time_index))
        content = self.blobs.get(f"{self.folder}/{ZARR}/{key}")
        return np.frombuffer(content, FIELD_DTYPE).reshape(self.plan.grid.shape)

    def read_step(self, member: int, time_index: int) -> Iterator[tuple[str, NDArray[np.float32]]]:
        """Yield the maps of one time step, by variable; later ones are read ahead."""

        def read(variable: str) -> tuple[str, NDArray[np.float32]]:
            return variable, self.read_field(variable, member, time_index)

        yield from self.blobs.each(read, self.plan.variables, READ_AHEAD)

    def export(
        self, fence: int, should_stop: Callable[[], bool], write: Callable[[Path], str]
    ) -> None:
        """Write the NetCDF file on the local disk and upload it, unless that is done.

        Concurrent exports do not wait for each other: the first complete file stays. Its existence
        shows that it is complete.
        """
        if self.exported() is not None:
            return
        with scratch_folder(self.scratch_dir) as scratch:
            path = scratch / NETCDF
            sha256 = write(path)
            self.work.check_fence(fence)
            # The returned value is not used: it is wrong if the response to a commit was lost.
            key = f"{self.folder}/{NETCDF}"
            self.blobs.upload(key, path, media_type(NETCDF), sha256)
            self._confirm([NETCDF])

    def add_file(self, name: str, content: bytes) -> None:
        """Add a further file; it appears complete."""
        with self._confirmed([name]):
            self._put(name, content)

    def describe_file(self, name: str) -> StoredObject:
        """Return size and SHA-256 of a file; StageFailed if it is missing."""
        blob = self._head(name)
        if blob is None:
            raise StageFailed(Stage.PACKAGE, f"{name} of the result is missing")
        return blob

    def files(self, extra: Sequence[str]) -> Iterator[StoredObject]:
        """Yield all delivered files except the fields' chunks and the checksums."""
        names = list(extra)
        if self.plan.output_format == "netcdf4":
            yield self.describe_dataset()
        else:
            names = [*(f"{ZARR}/{key}" for key, _ in store_objects(self.dataset())), *names]
        yield from self.blobs.each(self.describe_file, names)

    def chunks(self) -> Iterator[StoredObject]:
        """Yield the fields' chunks as they were recorded."""
        steps = [(m, t) for m in self.plan.members for t in range(self.plan.n_times)]
        are_complete = self._count_complete_chunks() == len(steps) * len(self.plan.variables)
        for objects in self.blobs.each(lambda step: self.work.step_objects(*step), steps):
            for chunk in objects:
                # One listing has the sizes of all chunks. Finding a wrong one takes a request each.
                if not are_complete and self.describe_file(chunk.key).size != chunk.size:
                    raise StageFailed(Stage.PACKAGE, f"{chunk.key} of the result is damaged")
                yield chunk

    @contextmanager
    def checksums(self) -> Iterator[Path]:
        """Return a path for the checksums file; it becomes a blob when the block succeeds."""
        with scratch_folder(self.scratch_dir) as scratch:
            path = scratch / CHECKSUMS
            yield path
            self.add_file(CHECKSUMS, path.read_bytes())

    def remove_zarr(self) -> None:
        """Make the Zarr store disappear at once, then remove it."""
        self.blobs.delete(f"{self.folder}/{ROOT}")
        self.blobs.remove(f"{self.folder}/{ZARR}")

    def _count_complete_chunks(self) -> int:
        """Count, with one listing, the fields' chunks that have their full size."""
        start = len(f"{self.folder}/{ZARR}/")
        fields = {f"{variable}/c" for variable in self.plan.variables}
        return sum(
            size == self.plan.field_bytes and key[start:].partition(".")[0] in fields
            for key, size in self.blobs.list(f"{self.folder}/{ZARR}")
        )

    def exported(self) -> StoredObject | None:
        """Return the NetCDF file; None if it is not complete."""
        return self._head(NETCDF)

    def _head(self, name: str) -> StoredObject | None:
        blob = self.blobs.head(f"{self.folder}/{name}")
        return None if blob is None else StoredObject(name, blob.size, blob.sha256)

    def _put(
        self, name: str, content: bytes | memoryview, *, is_delivered: bool = True
    ) -> StoredObject:
        sha256 = hashlib.sha256(content).hexdigest() if is_delivered else None
        self.blobs.put(f"{self.folder}/{name}", content, media_type(name), sha256)
        return StoredObject(name, len(content), sha256)

    @contextmanager
    def _confirmed(self, names: Sequence[str]) -> Iterator[None]:
        """Confirm blobs that the block writes, even if it fails after some of them."""
        try:
            yield
        finally:
            self._confirm(names)

    def _confirm(self, names: Sequence[str]) -> None:
        witness = CHECKSUMS
        if CHECKSUMS in names:
            witness = NETCDF if self.plan.output_format == "netcdf4" else ROOT
        self.work.confirm([f"{self.folder}/{name}" for name in names], f"{self.folder}/{witness}")
