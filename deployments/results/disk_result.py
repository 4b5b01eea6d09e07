"""The result of one execution as files, complete and partial."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from deployments.results.disk_work import DiskWork
from deployments.results.manifest import hash_file
from deployments.results.protocols import Result
from deployments.results.work import StoredObject
from deployments.results.zarr import chunk_content, chunk_key, store_objects
from deployments.runtime.files import background_flush, remove_tree
from workflows.dataset import FIELD_DTYPE, field_index
from workflows.errors import StageFailed
from workflows.execution import Stage
from workflows.manifest import CHECKSUMS, NETCDF, ZARR

_SMALL_FIELD_BYTES = 1 << 16
"""Passing a smaller field to a thread costs more than writing it."""


@dataclass(frozen=True)
class DiskResult(Result):
    """A result as files.

    Partial files are outside of the result, so they are never delivered, and on the same mount,
    so that a rename completes them atomically.
    """

    work: DiskWork
    folder: Path
    partial: Path
    pool: Executor
    """Writes the fields of a time step concurrently."""

    @property
    def zarr(self) -> Path:
        """Folder of the Zarr store."""
        return self.folder / ZARR

    @property
    def netcdf(self) -> Path:
        """Path of the complete NetCDF4 file."""
        return self.folder / NETCDF

    def create_zarr(self) -> None:
        """Create the Zarr store atomically, unless it exists or has been exported and removed."""
        self.partial.mkdir(parents=True, exist_ok=True)
        self.folder.mkdir(parents=True, exist_ok=True)
        if self.zarr.exists() or self.work.exported() is not None:
            return
        draft = self._new_partial()
        for key, content in store_objects(self.dataset()):
            path = draft / key
            try:
                path.write_bytes(content)
            except FileNotFoundError:
                path.parent.mkdir(parents=True)
                path.write_bytes(content)
        try:
            draft.rename(self.zarr)
        except OSError:
            # A folder cannot replace one that is not empty: another call was first.
            if not self.zarr.exists():
                raise
            remove_tree(draft)

    def write_step(
        self, member: int, time_index: int, fields: NDArray[np.float32]
    ) -> list[StoredObject]:
        """Write one time step of one member."""

        def write(variable: str, field: NDArray[np.float32]) -> StoredObject:
            return self._write_chunk(variable, member, time_index, field)

        mapped = map if self.plan.field_bytes < _SMALL_FIELD_BYTES else self.pool.map
        return list(mapped(write, self.plan.variables, fields))

    def _write_chunk(
        self, variable: str, member: int, time_index: int, field: NDArray[np.float32]
    ) -> StoredObject:
        key = chunk_key(variable, field_index(self.plan, member, time_index))
        content = chunk_content(self.plan, field)
        partial = self._new_partial()
        try:
            with partial.open("xb") as file:
                file.write(content.data)
            # The chunks of a NetCDF request are not delivered and need no checksum.
            is_delivered = self.plan.output_format == "zarr"
            sha256 = hashlib.sha256(content.data).hexdigest() if is_delivered else None
            # No folder is created here: a result that was purged must not come back.
            partial.replace(self.zarr / key)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise
        return StoredObject(f"{ZARR}/{key}", content.nbytes, sha256)

    def read_field(self, variable: str, member: int, time_index: int) -> NDArray[np.float32]:
        """Return one map as it is stored; FileNotFoundError if it does not exist."""
        key = chunk_key(variable, field_index(self.plan, member, time_index))
        return np.fromfile(self.zarr / key, FIELD_DTYPE).reshape(self.plan.grid.shape)

    def export(
        self, fence: int, should_stop: Callable[[], bool], write: Callable[[Path], str]
    ) -> None:
        """Write the NetCDF file, unless that is done; it appears complete.

        Of several calls one writes and the others wait for it. An export whose process was killed
        starts again.
        """
        with self.work.export_lock(should_stop):
            if self.work.exported() is not None:
                return
            if self.netcdf.exists():
                self.work.record_export(hash_file(self.netcdf, NETCDF))
                return
            # Named by fence, so that two exports on a mount without locks use different files.
            partial = self.partial / f"{fence}.nc"
            with background_flush(partial):
                sha256 = write(partial)
            self.work.check_fence(fence)
            partial.replace(self.netcdf)
            self.work.record_export(StoredObject(NETCDF, self.netcdf.stat().st_size, sha256))

    def add_file(self, name: str, content: bytes) -> None:
        """Add a further file; it appears complete."""
        partial = self._new_partial()
        partial.write_bytes(content)
        partial.replace(self.folder / name)

    def files(self, extra: Sequence[str]) -> Iterator[StoredObject]:
        """Yield all delivered files except the fields' chunks and the checksums."""
        if self.plan.output_format == "netcdf4":
            yield self._checked(self.describe_dataset())
        else:
            for key, _ in store_objects(self.dataset()):
                yield self.describe_file(f"{ZARR}/{key}")
        for name in extra:
            yield self.describe_file(name)

    def exported(self) -> StoredObject | None:
        """Return the NetCDF file; None if it is not complete."""
        return self.work.exported()

    def chunks(self) -> Iterator[StoredObject]:
        """Yield the fields' chunks as they were recorded."""
        for member in self.plan.members:
            for time_index in range(self.plan.n_times):
                for chunk in self.work.step_objects(member, time_index):
                    yield self._checked(chunk)

    def describe_file(self, name: str) -> StoredObject:
        """Return size and SHA-256 of a file; StageFailed if it is missing."""
        try:
            return hash_file(self.folder / name, name)
        except FileNotFoundError:
            raise StageFailed(Stage.PACKAGE, f"{name} of the result is missing") from None

    def _checked(self, file: StoredObject) -> StoredObject:
        """Return the file if it has the size with which it was written."""
        try:
            size = (self.folder / file.key).stat().st_size
        except FileNotFoundError:
            raise StageFailed(Stage.PACKAGE, f"{file.key} of the result is missing") from None
        if size != file.size:
            raise StageFailed(Stage.PACKAGE, f"{file.key} of the result is damaged")
        return file

    @contextmanager
    def checksums(self) -> Iterator[Path]:
        """Return a path for the checksums file; the file appears when the block succeeds."""
        partial = self._new_partial()
        yield partial
        partial.replace(self.folder / CHECKSUMS)

    def remove_zarr(self) -> None:
        """Move the Zarr store away at once; it is removed with the working files."""
        with suppress(FileNotFoundError):
            self.zarr.rename(self._new_partial())

    def _new_partial(self) -> Path:
        """Return a path that no other call uses."""
        return self.partial / secrets.token_hex(8)
