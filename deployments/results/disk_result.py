"""The files of one execution's result, whole and partial."""

from __future__ import annotations

import hashlib
import secrets
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from deployments.results.disk_work import DiskWork, Written
from deployments.results.manifest import CHECKSUMS, hashed
from deployments.results.zarr import chunk_key, store_objects
from deployments.runtime.files import background_flush, remove_tree
from workflows.base import Plan
from workflows.dataset import FIELD_DTYPE, Dataset, Provenance, describe, field_index
from workflows.errors import StageFailed
from workflows.execution import Stage
from workflows.grids import Grid

ZARR, NETCDF = "results.zarr", "results.nc"
_SMALL_FIELD_BYTES = 1 << 16
"""Below this, handing a field to a thread costs more than writing it."""
_scratch = threading.local()


@dataclass(frozen=True)
class DiskResult:
    """Files of one result.

    Partial files lie apart from it, so that they can never be delivered, and on the same mount, so
    that a rename makes them whole at once.
    """

    work: DiskWork
    plan: Plan
    provenance: Provenance
    folder: Path
    """What lies here is delivered."""
    partial: Path
    pool: Executor
    """Writes fields of a step at once."""

    @property
    def zarr(self) -> Path:
        """Where the Zarr store is."""
        return self.folder / ZARR

    @property
    def netcdf(self) -> Path:
        """Where the NetCDF4 file is, once it is whole."""
        return self.folder / NETCDF

    def dataset(self) -> Dataset:
        """Describe what the result holds."""
        return describe(self.plan, self.work.execution_id, self.provenance)

    def new_partial(self) -> Path:
        """Give a path that no other call gets."""
        return self.partial / secrets.token_hex(8)

    def create(self) -> None:
        """Create all arrays and metadata at once, unless they are there or have been exported."""
        self.partial.mkdir(parents=True, exist_ok=True)
        self.folder.mkdir(parents=True, exist_ok=True)
        # A NetCDF request has no Zarr any more once it is finished.
        if self.zarr.exists() or self.work.export() is not None:
            return
        draft = self.new_partial()
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
            # A folder cannot replace one that holds something: another call was first.
            if not self.zarr.exists():
                raise
            remove_tree(draft)

    def write_step(
        self, member: int, time_index: int, fields: NDArray[np.float32]
    ) -> list[Written]:
        """Write one time of one member; the maps are as models give them."""

        def write(variable: str, field: NDArray[np.float32]) -> Written:
            return self._write_field(variable, member, time_index, field)

        mapped = map if self.plan.field_bytes < _SMALL_FIELD_BYTES else self.pool.map
        return list(mapped(write, self.plan.variables, fields))

    def _write_field(
        self, variable: str, member: int, time_index: int, field: NDArray[np.float32]
    ) -> Written:
        """Write one map, as models give it, as one chunk that appears whole.

        No codec is used: the bytes of the array are the encoded object.
        """
        key = chunk_key(variable, field_index(self.plan, member, time_index))
        rolled = as_stored(self.plan, field)
        partial = self.new_partial()
        try:
            with partial.open("xb") as file:
                file.write(rolled.data)
            # The chunk of a NetCDF request is not delivered: its hash would be for nothing.
            deliver = self.plan.output_format == "zarr"
            digest = hashlib.sha256(rolled.data).hexdigest() if deliver else None
            # No folder is made here: what was purged meanwhile must not come back.
            partial.replace(self.zarr / key)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise
        return Written(f"{ZARR}/{key}", rolled.nbytes, digest)

    def read_field(self, variable: str, member: int, time_index: int) -> NDArray[np.float32]:
        """Read one map, as it is stored.

        Raises
        ------
        FileNotFoundError
            If it is not there.
        """
        key = chunk_key(variable, field_index(self.plan, member, time_index))
        shape = self.plan.grid.shape
        return np.fromfile(self.zarr / key, FIELD_DTYPE).reshape(shape)

    def read_step(self, member: int, time_index: int) -> Iterator[tuple[str, NDArray[np.float32]]]:
        """Read the maps of one step, by variable."""
        for variable in self.plan.variables:
            yield variable, self.read_field(variable, member, time_index)

    def export(
        self, fence: int, should_stop: Callable[[], bool], write: Callable[[Path], str]
    ) -> None:
        """Have the NetCDF file written, and make it appear whole.

        Of several calls one works, the others wait for it. One that was killed is begun anew.
        """
        with self.work.exporting(should_stop):
            if self.work.export() is not None:
                return
            if self.netcdf.exists():
                self.work.record_export(hashed(self.netcdf, NETCDF))
                return
            # Named by fence: a mount that does not honour the lock costs time, not the result.
            partial = self.partial / f"{fence}.nc"
            with background_flush(partial):
                sha256 = write(partial)
            self.work.admit(fence)
            partial.replace(self.netcdf)
            self.work.record_export(Written(NETCDF, self.netcdf.stat().st_size, sha256))

    def add(self, name: str, content: bytes) -> None:
        """Put a further file into the folder of the result; it appears whole."""
        partial = self.new_partial()
        partial.write_bytes(content)
        partial.replace(self.folder / name)

    def whole_files(self, extra: Sequence[str]) -> Iterator[Written]:
        """Give what is delivered except the fields' chunks.

        Raises
        ------
        StageFailed
            If something is missing or damaged, as in `chunks`.
        """
        if self.plan.output_format == "netcdf4":
            yield self._checked(self.data())
        else:
            for key, _ in store_objects(self.dataset()):
                yield self.described(f"{ZARR}/{key}")
        for name in extra:
            yield self.described(name)

    def data(self) -> Written:
        """Give what the dataset is: the NetCDF file, or the Zarr store with its size as a whole.

        Raises
        ------
        StageFailed
            If the NetCDF file was not written.
        """
        return data_of(self.plan, self.dataset, self.work.export)

    def chunks(self) -> Iterator[Written]:
        """Give the fields' chunks as they were recorded, one by one."""
        for member in self.plan.members:
            for time_index in range(self.plan.n_times):
                for chunk in self.work.objects(member, time_index):
                    yield self._checked(chunk)

    def described(self, name: str) -> Written:
        """Read a file for its size and SHA-256.

        Raises
        ------
        StageFailed
            If it is missing.
        """
        try:
            return hashed(self.folder / name, name)
        except FileNotFoundError:
            raise StageFailed(Stage.PACKAGE, f"{name} of the result is missing") from None

    def _checked(self, file: Written) -> Written:
        """Let a file pass that is as long as it was when it was written."""
        try:
            size = (self.folder / file.key).stat().st_size
        except FileNotFoundError:
            raise StageFailed(Stage.PACKAGE, f"{file.key} of the result is missing") from None
        if size != file.size:
            raise StageFailed(Stage.PACKAGE, f"{file.key} of the result is damaged")
        return file

    @contextmanager
    def checksums(self) -> Iterator[Path]:
        """Give a path to write the checksums to; they appear whole when all went well."""
        partial = self.new_partial()
        yield partial
        partial.replace(self.folder / CHECKSUMS)

    def drop_zarr(self) -> None:
        """Make the Zarr store vanish; it goes with the working files, for which nobody waits."""
        with suppress(FileNotFoundError):
            self.zarr.rename(self.new_partial())


def data_of(
    plan: Plan, dataset: Callable[[], Dataset], exported: Callable[[], Written | None]
) -> Written:
    """Give what the dataset of a result is, see `deployments.results.protocols.Result.data`."""
    if plan.output_format == "zarr":
        described = sum(len(content) for _, content in store_objects(dataset()))
        return Written(ZARR, described + plan.output_bytes, None)
    netcdf = exported()
    if netcdf is None:
        raise StageFailed(Stage.PACKAGE, "the NetCDF file was not written")
    return netcdf


def as_stored(plan: Plan, field: NDArray[np.float32]) -> NDArray[np.float32]:
    """Give a map as it is stored, contiguous; it may last only until the thread's next."""
    if isinstance(plan.grid, Grid):
        return _from_west(field)
    return np.ascontiguousarray(field, FIELD_DTYPE)


def _from_west(field: NDArray[np.float32]) -> NDArray[np.float32]:
    """Copy a map so that its longitudes begin at -180; the copy lasts until the thread's next."""
    half = field.shape[1] // 2
    rolled: NDArray[np.float32] | None = getattr(_scratch, "rolled", None)
    if rolled is None or rolled.shape != field.shape:
        # Kept from call to call: fresh memory costs a page fault for every 4 KiB.
        rolled = _scratch.rolled = np.empty(field.shape, FIELD_DTYPE)
    rolled[:, :half] = field[:, half:]
    rolled[:, half:] = field[:, :half]
    return rolled
