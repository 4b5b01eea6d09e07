"""The result of one execution as blobs: every map is one, and the NetCDF file is another."""

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
from deployments.results.disk_result import NETCDF, ZARR, as_stored, data_of
from deployments.results.disk_work import Written
from deployments.results.manifest import CHECKSUMS
from deployments.results.media_types import media_type
from deployments.results.scratch import scratch_folder
from deployments.results.zarr import chunk_key, store_objects
from workflows.base import Plan
from workflows.dataset import FIELD_DTYPE, Dataset, Provenance, describe, field_index
from workflows.errors import StageFailed
from workflows.execution import Stage

ROOT = f"{ZARR}/zarr.json"
"""Without it there is no store: written last, removed first."""
READ_AHEAD = 4
"""Maps or records on their way while one is dealt with."""


@dataclass(frozen=True)
class BlobResult:
    """Blobs of one result, as `deployments.results.protocols.Result` describes it."""

    blobs: Blobs
    work: BlobWork
    plan: Plan
    provenance: Provenance
    scratch_dir: Path
    """Folder on the own disk, for files before they are uploaded."""

    @property
    def folder(self) -> str:
        """What lies here is delivered."""
        return result_folder(self.plan.workflow, self.work.execution_id)

    def dataset(self) -> Dataset:
        """Describe what the result holds."""
        return describe(self.plan, self.work.execution_id, self.provenance)

    def create(self) -> None:
        """Create all arrays and metadata, unless they are there or have been exported."""
        if self._head(ROOT) is not None or self._exported() is not None:
            return
        described = dict(store_objects(self.dataset()))
        keys = [f"{ZARR}/{key}" for key in described]
        root = described.pop("zarr.json")
        with self._staying(keys):
            items = ((f"{ZARR}/{key}", content) for key, content in described.items())
            list(self.blobs.each(lambda item: self._put(*item), items))
            self._put(ROOT, root)

    def write_step(
        self, member: int, time_index: int, fields: NDArray[np.float32]
    ) -> list[Written]:
        """Write one time of one member; the maps are as models give them."""
        index = field_index(self.plan, member, time_index)
        keys = [f"{ZARR}/{chunk_key(variable, index)}" for variable in self.plan.variables]

        def write(item: tuple[str, NDArray[np.float32]]) -> Written:
            key, field = item
            content = as_stored(self.plan, field).data.cast("B")
            # The chunk of a NetCDF request is not delivered: its hash would be for nothing.
            return self._put(key, content, is_delivered=self.plan.output_format == "zarr")

        with self._staying(keys):
            return list(self.blobs.each(write, zip(keys, fields, strict=True)))

    def read_field(self, variable: str, member: int, time_index: int) -> NDArray[np.float32]:
        """Read one map, as it is stored; FileNotFoundError if it is not there."""
        key = chunk_key(variable, field_index(self.plan, member, time_index))
        content = self.blobs.get(f"{self.folder}/{ZARR}/{key}")
        return np.frombuffer(content, FIELD_DTYPE).reshape(self.plan.grid.shape)

    def read_step(self, member: int, time_index: int) -> Iterator[tuple[str, NDArray[np.float32]]]:
        """Read the maps of one step, by variable; the next ones come meanwhile."""

        def read(variable: str) -> tuple[str, NDArray[np.float32]]:
            return variable, self.read_field(variable, member, time_index)

        yield from self.blobs.each(read, self.plan.variables, READ_AHEAD)

    def export(
        self, fence: int, should_stop: Callable[[], bool], write: Callable[[Path], str]
    ) -> None:
        """Have the NetCDF file written on the own disk, and upload it.

        Nobody waits for another that does the same: the first whole file stays, and its own
        properties tell that it is.
        """
        if self._exported() is not None:
            return
        with scratch_folder(self.scratch_dir) as scratch:
            path = scratch / NETCDF
            write(path)
            self.work.admit(fence)
            key = f"{self.folder}/{NETCDF}"
            # Whether this call or another was first cannot be told where an answer was lost.
            self.blobs.upload(key, path, media_type(NETCDF))
            self._keep([NETCDF])

    def add(self, name: str, content: bytes) -> None:
        """Put a further file there; it appears whole."""
        with self._staying([name]):
            self._put(name, content)

    def described(self, name: str) -> Written:
        """Give size and SHA-256 of a file.

        Raises
        ------
        StageFailed
            If it is missing.
        """
        blob = self._head(name)
        if blob is None:
            raise StageFailed(Stage.PACKAGE, f"{name} of the result is missing")
        return blob

    def data(self) -> Written:
        """Give what the dataset is: the NetCDF file, or the Zarr store with its size as a whole.

        Raises
        ------
        StageFailed
            If the NetCDF file was not written.
        """
        return data_of(self.plan, self.dataset, self._exported)

    def whole_files(self, extra: Sequence[str]) -> Iterator[Written]:
        """Give what is delivered except the fields' chunks.

        Raises
        ------
        StageFailed
            If something is missing.
        """
        if self.plan.output_format == "netcdf4":
            yield self.data()
            names = list(extra)
        else:
            names = [f"{ZARR}/{key}" for key, _ in store_objects(self.dataset())]
            names += extra
        yield from self.blobs.each(self.described, names)

    def chunks(self) -> Iterator[Written]:
        """Give the fields' chunks as they were recorded, one by one.

        Raises
        ------
        StageFailed
            If something is missing or damaged.
        """
        steps = [(m, t) for m in self.plan.members for t in range(self.plan.n_times)]
        are_whole = self._n_whole() == len(steps) * len(self.plan.variables)
        for objects in self.blobs.each(self.work.objects, steps):
            for chunk in objects:
                if not are_whole:
                    self._check(chunk)
                yield chunk

    @contextmanager
    def checksums(self) -> Iterator[Path]:
        """Give a path to write the checksums to; they become a blob when all went well."""
        with scratch_folder(self.scratch_dir) as scratch:
            path = scratch / CHECKSUMS
            yield path
            self.add(CHECKSUMS, path.read_bytes())

    def drop_zarr(self) -> None:
        """Make the Zarr store vanish at once, then remove it."""
        self.blobs.delete(f"{self.folder}/{ROOT}")
        self.blobs.remove(f"{self.folder}/{ZARR}")

    def _n_whole(self) -> int:
        """Count with one listing the fields' chunks that are as long as they should be."""
        start = len(f"{self.folder}/{ZARR}/")
        fields = {f"{variable}/c" for variable in self.plan.variables}
        return sum(
            size == self.plan.field_bytes and key[start:].partition(".")[0] in fields
            for key, size in self.blobs.list(f"{self.folder}/{ZARR}")
        )

    def _check(self, chunk: Written) -> None:
        """Refuse a chunk that is not as long as it was when it was written."""
        if self.described(chunk.key).size != chunk.size:
            raise StageFailed(Stage.PACKAGE, f"{chunk.key} of the result is damaged")

    def _exported(self) -> Written | None:
        return self._head(NETCDF)

    def _head(self, name: str) -> Written | None:
        blob = self.blobs.head(f"{self.folder}/{name}")
        return None if blob is None else Written(name, blob.size, blob.sha256)

    def _put(self, name: str, content: bytes | memoryview, *, is_delivered: bool = True) -> Written:
        sha256 = hashlib.sha256(content).hexdigest() if is_delivered else None
        self.blobs.put(f"{self.folder}/{name}", content, media_type(name), sha256)
        return Written(name, len(content), sha256)

    @contextmanager
    def _staying(self, names: Sequence[str]) -> Iterator[None]:
        """Remove what is written meanwhile if the execution has gone, also where that fails."""
        try:
            yield
        finally:
            self._keep(names)

    def _keep(self, names: Sequence[str]) -> None:
        witness = CHECKSUMS
        if CHECKSUMS in names:
            witness = NETCDF if self.plan.output_format == "netcdf4" else ROOT
        self.work.keep([f"{self.folder}/{name}" for name in names], f"{self.folder}/{witness}")


def result_folder(workflow: str, execution_id: str) -> str:
    """Give the folder of a result."""
    return f"{workflow}/{execution_id}"
