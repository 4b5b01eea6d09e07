"""The result of one execution as blobs: one for every map, or one for the NetCDF file."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from deployments.azure.blobs import THREADS, Blobs
from deployments.azure.rest import Stored
from deployments.results.blob_work import BlobWork
from deployments.results.media_types import media_type
from deployments.results.names import result_folder
from deployments.results.protocols import Damaged, R, Result, Step, T
from deployments.results.scratch import scratch_folder
from deployments.results.work import StoredObject
from deployments.results.zarr import chunk_content
from workflows.manifest import CHECKSUMS, NETCDF, ZARR

ROOT = f"{ZARR}/zarr.json"
"""Metadata of the root group. The store exists only with it: written last, removed first."""
AHEAD = 4
"""Blobs that are read while an earlier one is processed."""
CHECKED = THREADS // 2
"""Time steps that are checked concurrently: the records take a request each, and models write."""


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

    def has_zarr(self) -> bool:
        """Return whether there is a Zarr store."""
        return self._find(ROOT) is not None

    def create_zarr(self) -> bool:
        """Create the Zarr store, and return whether there was none."""
        if self.exported() is not None:
            return False
        exists = self.has_zarr()
        objects = {f"{ZARR}/{key}": content for key, content in self.store_objects()}
        if exists:
            expected = self.metadata()
            found = self.blobs.each(self._find, [each.key for each in expected])
            intact = {each.key for each, is_ in zip(expected, found, strict=True) if each == is_}
            objects = {key: content for key, content in objects.items() if key not in intact}
        root = objects.pop(ROOT, None)
        with self._confirmed([*objects, ROOT]):
            list(self.blobs.each(lambda item: self._put(*item), objects.items()))
            if root is not None:
                self._put(ROOT, root)
        return not exists

    def write_step(
        self, member: int, time_index: int, fields: NDArray[np.float32]
    ) -> list[StoredObject]:
        """Write one time step of one member."""
        keys = self.chunk_keys(member, time_index)

        def write(item: tuple[str, NDArray[np.float32]]) -> StoredObject:
            key, field = item
            content = chunk_content(self.plan, field).data.cast("B")
            md5 = hashlib.md5(content, usedforsecurity=False).hexdigest()
            return replace(self._put(key, content), md5=md5)

        with self._confirmed(keys):
            return list(self.blobs.each(write, zip(keys, fields, strict=True)))

    def _read(self, key: str) -> NDArray[np.uint8]:
        return np.frombuffer(self.blobs.get(f"{self.folder}/{key}"), np.uint8)

    def _each(self, call: Callable[[T], R], items: Iterable[T]) -> Iterator[R]:
        return self.blobs.each(call, items, AHEAD)

    def export(
        self, fence: int, should_stop: Callable[[], bool], write: Callable[[Path], str]
    ) -> None:
        """Write the NetCDF file on the local disk and upload it, unless that is done.

        Concurrent exports do not wait for each other: the first complete file stays. Its existence
        shows that it is complete.
        """
        if self.exported() is not None:
            return
        if self._find(NETCDF) is not None:
            # Not an export, which would not overwrite it.
            self.discard_export()
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

    def check_steps(self, steps: Iterable[Step]) -> Iterator[list[StoredObject] | Damaged]:
        """Compare the chunks of time steps with listings, which have what arrived.

        Only the listings of one member are in memory.
        """
        for folders, group in groupby(steps, self._chunk_folders):
            yield from self._check_listed(self.blobs.describe(*folders), group)

    def _chunk_folders(self, step: Step) -> list[str]:
        """Return the folders with the chunks of a member, or of all if names have dots."""
        parts = (key.split("/") for key in self.chunk_keys(*step))
        return ["/".join([self.folder, *path[: 4 if len(path) > 3 else 2]]) for path in parts]

    def _check_listed(
        self, blobs: Mapping[str, Stored], steps: Iterable[Step]
    ) -> Iterator[list[StoredObject] | Damaged]:
        def check(step: Step) -> list[StoredObject] | Damaged:
            try:
                chunks = self.recorded(*step)
            except Damaged as damage:
                return damage
            for chunk in chunks:
                found = blobs.get(f"{self.folder}/{chunk.key}")
                if found is None:
                    return Damaged(chunk.key)
                md5 = found.md5.hex() if found.md5 else None
                if not chunk.agrees(found.size, found.sha256, md5):
                    return Damaged(chunk.key)
            return chunks

        return self.blobs.each(check, steps, CHECKED)

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

    def discard_export(self) -> None:
        """Remove the NetCDF file, so that it is exported again."""
        self.blobs.delete(f"{self.folder}/{NETCDF}")

    def exported(self) -> StoredObject | None:
        """Return the NetCDF file; None if it is not complete."""
        found = self._find(NETCDF)
        # One without a checksum was not written here.
        return None if found is None or found.sha256 is None else found

    def _find(self, name: str) -> StoredObject | None:
        blob = self.blobs.head(f"{self.folder}/{name}")
        return None if blob is None else StoredObject(name, blob.size, blob.sha256)

    def _put(self, name: str, content: bytes | memoryview) -> StoredObject:
        sha256 = hashlib.sha256(content).hexdigest()
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
