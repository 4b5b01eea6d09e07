"""The result of one execution as files, complete and partial."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from deployments.results.disk_work import DiskWork
from deployments.results.manifest import hash_file
from deployments.results.protocols import Damaged, R, Result, Step, T
from deployments.results.work import StoredObject
from deployments.results.zarr import chunk_content, make_chunk_folders
from deployments.runtime.files import background_flush, flush, flush_file_system, remove_tree
from deployments.runtime.threads import map_ahead
from workflows.manifest import CHECKSUMS, NETCDF, ZARR

_SMALL_FIELD_BYTES = 1 << 16
"""Passing a smaller field to a thread costs more than writing it."""
_AHEAD = 4
"""Fields that are written or read concurrently."""


@dataclass(frozen=True)
class DiskResult(Result):
    """A result as files.

    Partial files are outside of the result, so they are never delivered, and on the same mount,
    so that a rename completes them atomically.
    """

    work: DiskWork
    folder: Path
    partial: Path
    writers: Executor
    """Writes the fields of a time step concurrently."""
    readers: Executor
    """Reads files concurrently: not the same, or a model would wait for another one's result."""

    @property
    def zarr(self) -> Path:
        """Folder of the Zarr store."""
        return self.folder / ZARR

    @property
    def netcdf(self) -> Path:
        """Path of the complete NetCDF4 file."""
        return self.folder / NETCDF

    def has_zarr(self) -> bool:
        """Return whether there is a Zarr store."""
        return self.zarr.exists()

    def create_zarr(self) -> bool:
        """Create the Zarr store atomically, and return whether there was none."""
        self.partial.mkdir(parents=True, exist_ok=True)
        self.folder.mkdir(parents=True, exist_ok=True)
        if self._is_exported():
            return False
        if self.has_zarr():
            for expected, (key, content) in zip(self.metadata(), self.store_objects(), strict=True):
                (self.zarr / key).parent.mkdir(parents=True, exist_ok=True)
                if self._find(expected.key) != expected:
                    self.add_file(expected.key, content)
            return False
        draft = self._new_partial()
        for key, content in self.store_objects():
            path = draft / key
            try:
                path.write_bytes(content)
            except FileNotFoundError:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content)
        try:
            draft.rename(self.zarr)
        except OSError:
            # A folder cannot replace one that is not empty: another call was first.
            if not self.zarr.exists():
                raise
            remove_tree(draft)
            return False
        return True

    def write_step(
        self, member: int, time_index: int, fields: NDArray[np.float32]
    ) -> list[StoredObject]:
        """Write one time step of one member."""
        keys = self.chunk_keys(member, time_index)
        items = zip(keys, fields, strict=True)
        return list(self._map(self.writers, self._write_chunk, items))

    def _write_chunk(self, item: tuple[str, NDArray[np.float32]]) -> StoredObject:
        key, field = item
        content = chunk_content(self.plan, field)
        partial = self._new_partial()
        try:
            with partial.open("xb") as file:
                file.write(content.data)
            sha256 = hashlib.sha256(content.data).hexdigest()
            try:
                partial.replace(self.folder / key)
            except FileNotFoundError:
                make_chunk_folders(self.zarr, key.removeprefix(f"{ZARR}/"))
                partial.replace(self.folder / key)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise
        return StoredObject(key, content.nbytes, sha256)

    def _read(self, key: str) -> NDArray[np.uint8]:
        return np.fromfile(self.folder / key, np.uint8)

    def _each(self, call: Callable[[T], R], items: Iterable[T]) -> Iterator[R]:
        return self._map(self.readers, call, items)

    def _map(self, pool: Executor, call: Callable[[T], R], items: Iterable[T]) -> Iterator[R]:
        if self.plan.field_bytes < _SMALL_FIELD_BYTES:
            return map(call, items)
        return map_ahead(pool, call, items, _AHEAD)

    def export(
        self, fence: int, should_stop: Callable[[], bool], write: Callable[[Path], str]
    ) -> None:
        """Write the NetCDF file, unless that is done; it appears complete.

        Of several calls one writes and the others wait for it. An export whose process was killed
        starts again.
        """
        with self.work.export_lock(should_stop):
            if self._is_exported():
                return
            # Named by fence, so that two exports on a mount without locks use different files.
            partial = self.partial / f"{fence}.nc"
            with background_flush(partial):
                sha256 = write(partial)
            self.work.check_fence(fence)
            # Before the file appears: without a record nobody knows what was written.
            self.work.record_export(StoredObject(NETCDF, partial.stat().st_size, sha256))
            partial.replace(self.netcdf)

    def add_file(self, name: str, content: bytes) -> None:
        """Add a further file; it appears complete."""
        partial = self._new_partial()
        partial.write_bytes(content)
        partial.replace(self.folder / name)

    def exported(self) -> StoredObject | None:
        """Return the NetCDF file as it was written, even if it is lost; None if it never was."""
        return self.work.exported()

    def _is_exported(self) -> bool:
        return self.exported() is not None and self.netcdf.exists()

    def check_steps(self, steps: Iterable[Step]) -> Iterator[list[StoredObject] | Damaged]:
        """Read the chunks of time steps, and compare them with what was written."""
        for step in steps:
            found: list[StoredObject] | Damaged
            try:
                found = self.recorded(*step)
                list(self._each(self._check_chunk, found))
            except Damaged as damage:
                found = damage
            yield found

    def _check_chunk(self, chunk: StoredObject) -> None:
        found = self._find(chunk.key)
        if found is None or not chunk.agrees(found.size, found.sha256):
            raise Damaged(chunk.key)

    def _find(self, name: str) -> StoredObject | None:
        try:
            return hash_file(self.folder / name, name)
        except FileNotFoundError:
            return None

    def discard_export(self) -> None:
        """Remove the NetCDF file, so that it is exported again."""
        self.netcdf.unlink(missing_ok=True)
        self.work.forget_export()

    @contextmanager
    def checksums(self) -> Iterator[Path]:
        """Return a path for the checksums file; the file appears when the block succeeds."""
        # One call, since a file system commits once for each file or folder that is flushed alone.
        flush_file_system(self.folder)
        partial = self._new_partial()
        yield partial
        flush(partial)
        partial.replace(self.folder / CHECKSUMS)
        flush(self.folder)

    def remove_zarr(self) -> None:
        """Move the Zarr store away at once; it is removed with the working files."""
        with suppress(FileNotFoundError):
            self.zarr.rename(self._new_partial())

    def _new_partial(self) -> Path:
        """Return a path that no other call uses."""
        return self.partial / secrets.token_hex(8)
