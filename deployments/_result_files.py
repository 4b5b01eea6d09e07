"""The files of one execution's result, whole and partial."""

from __future__ import annotations

import hashlib
import os
import secrets
import shutil
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from deployments._work_folder import WorkFolder, Written
from deployments._zarr_layout import chunk_key, store_objects
from deployments.manifest import hashed
from workflows.base import Plan
from workflows.dataset import FIELD_DTYPE, Dataset, Provenance, describe, field_index
from workflows.errors import StageFailed
from workflows.execution import Stage
from workflows.grids import Grid

ZARR, NETCDF = "results.zarr", "results.nc"
_scratch = threading.local()


@dataclass(frozen=True)
class ResultFiles:
    """Files of one result.

    Partial files lie apart from it, so that they can never be delivered, and on the same mount, so
    that a rename makes them whole at once.
    """

    execution_id: str
    plan: Plan
    provenance: Provenance
    folder: Path
    """What lies here is delivered."""
    partial: Path

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
        return describe(self.plan, self.execution_id, self.provenance)

    def new_partial(self) -> Path:
        """Give a path that no other call gets."""
        return self.partial / secrets.token_hex(8)

    def make_folders(self) -> None:
        """Make the folders for whole and partial files."""
        self.partial.mkdir(parents=True, exist_ok=True)
        self.folder.mkdir(parents=True, exist_ok=True)

    def create_zarr(self) -> None:
        """Create all arrays and metadata at once, unless they are there."""
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

    def write_field(
        self, variable: str, member: int, time_index: int, field: NDArray[np.float32]
    ) -> Written:
        """Write one map, as models give it, as one chunk that appears whole.

        No codec is used: the bytes of the array are the encoded object.
        """
        key = chunk_key(variable, field_index(self.plan, member, time_index))
        if isinstance(self.plan.grid, Grid):
            rolled = _from_west(field)
        else:
            rolled = np.ascontiguousarray(field, FIELD_DTYPE)
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

    def whole_files(self, work: WorkFolder, extra: Sequence[str]) -> Iterator[Written]:
        """Give what is delivered except the fields' chunks.

        Raises
        ------
        StageFailed
            If something is missing or damaged, as in `chunks`.
        """
        if self.plan.output_format == "netcdf4":
            exported = work.export()
            if exported is None:
                raise StageFailed(Stage.PACKAGE, "the NetCDF file was not written")
            yield self._checked(exported)
        else:
            for key, _ in store_objects(self.dataset()):
                yield self._hashed(f"{ZARR}/{key}")
        for name in extra:
            yield self._hashed(name)

    def chunks(self, work: WorkFolder) -> Iterator[Written]:
        """Give the fields' chunks as they were recorded, one by one."""
        for member in self.plan.members:
            for time_index in range(self.plan.n_times):
                for chunk in work.objects(member, time_index):
                    yield self._checked(chunk)

    def _hashed(self, key: str) -> Written:
        try:
            return hashed(self.folder / key, key)
        except FileNotFoundError:
            raise StageFailed(Stage.PACKAGE, f"{key} of the result is missing") from None

    def _checked(self, file: Written) -> Written:
        """Let a file pass that is as long as it was when it was written."""
        try:
            size = (self.folder / file.key).stat().st_size
        except FileNotFoundError:
            raise StageFailed(Stage.PACKAGE, f"{file.key} of the result is missing") from None
        if size != file.size:
            raise StageFailed(Stage.PACKAGE, f"{file.key} of the result is damaged")
        return file

    def discard(self, path: Path) -> None:
        """Make a file or folder of the result vanish at once, then remove it."""
        moved = self.new_partial()
        try:
            path.rename(moved)
        except FileNotFoundError:
            return
        remove_tree(moved)


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


def flush(path: Path) -> None:
    """Bring a file to the disk."""
    with path.open("rb+") as file:
        os.fsync(file.fileno())


def remove_tree(path: Path) -> None:
    """Remove a folder, also while somebody still adds to it or removes it as well."""
    attempts = 20
    for attempt in range(attempts):
        try:
            shutil.rmtree(path)
            return
        except FileNotFoundError:
            if not path.exists():
                return
        except OSError:
            # Not empty: a file was added between the listing and the removal.
            if attempt == attempts - 1:
                raise
            time.sleep(0.01)
