"""NetCDF4 export: follows the steps of an execution as they are written."""

from __future__ import annotations

import logging
import os
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

import netCDF4
import numpy as np
from numpy.typing import NDArray

from deployments._storage import Result
from workflows.dataset import FIELD_DTYPE, Dataset, field_index
from workflows.errors import DiskFull, ExecutionCancelled, StageFailed
from workflows.execution import Stage

logger = logging.getLogger("ray.serve")

POLL_S = 0.02

SLOWER = 1.1
"""By how much each look that finds nothing puts off the next."""
SLOWEST_POLL_S = 0.25

NETCDF_LOCK = threading.Lock()
"""Held around every call into netCDF4: its HDF5 is not thread-safe, and it releases the GIL."""

# Chunks that do not fit the cache are written straight to the file; through the cache the first
# ones cost a copy and a page fault for every 4 KiB.
_CHUNK_CACHE_BYTES = 1 << 20


class NetCDFFile:
    """A NetCDF4 file under construction; unwritten maps are NaN.

    Parameters
    ----------
    path : Path
        An existing file is replaced.
    dataset : Dataset
        What it shall hold; a chunk is one map, uncompressed.
    """

    def __init__(self, path: Path, dataset: Dataset) -> None:
        with NETCDF_LOCK:
            self._file = netCDF4.Dataset(path, "w", format="NETCDF4")
        self._descriptor = os.open(path, os.O_WRONLY)
        try:
            with NETCDF_LOCK:
                # Every map is written whole or not at all: no need to write fill values first.
                self._file.set_fill_off()
                self._fields = self._define(dataset)
        except BaseException:
            self.discard()
            raise

    def _define(self, dataset: Dataset) -> dict[str, Any]:
        file = self._file
        for name, size in dataset.dims.items():
            file.createDimension(name, size)
        file.setncatts(dict(dataset.attributes))
        fields = {}
        for variable in dataset.coordinates:
            values = np.asarray(variable.values)
            array = file.createVariable(variable.name, values.dtype, variable.dims)
            array.setncatts(dict(variable.attributes))
            array[...] = values
        for variable in dataset.fields:
            shape = dataset.field_shape
            array = file.createVariable(
                variable.name,
                FIELD_DTYPE,
                variable.dims,
                fill_value=np.float32(np.nan),
                chunksizes=(1,) * (len(shape) - 2) + shape[-2:],
            )
            array.setncatts(dict(variable.attributes))
            array.set_var_chunk_cache(size=_CHUNK_CACHE_BYTES, nelems=11, preemption=1.0)
            array.set_auto_maskandscale(False)
            fields[variable.name] = array
        return fields

    def write(self, variable: str, index: tuple[int, ...], values: NDArray[np.float32]) -> None:
        """Write one map, shape (lat, lon); `index` leaves lat and lon away."""
        with NETCDF_LOCK:
            self._fields[variable][index] = values

    def close(self) -> None:
        """Write what is pending and close."""
        try:
            with NETCDF_LOCK:
                self._file.close()
        except BaseException:
            self.discard()
            raise
        os.close(self._descriptor)

    def discard(self) -> None:
        """Close a file that is of no use any more, and give its space back.

        On a full disk HDF5 cannot write what is pending; then it does not close the file, and a
        file that is open keeps its space even when it is removed. An emptied one has room.
        """
        os.ftruncate(self._descriptor, 0)
        try:
            with NETCDF_LOCK:
                if self._file.isopen():
                    self._file.close()
        except (OSError, RuntimeError):
            logger.exception("a file that is of no use could not be closed")
        os.ftruncate(self._descriptor, 0)
        os.close(self._descriptor)

    def __enter__(self) -> NetCDFFile:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is None:
            self.close()
        else:
            self.discard()


def follow(
    path: Path,
    result: Result,
    fence: int,
    should_stop: Callable[[], bool],
    poll_s: float,
) -> None:
    """Copy all steps of an execution into a NetCDF4 file, waiting for those still to come.

    Raises
    ------
    ExecutionCancelled
        If told to stop.
    StaleConductor
        If a newer fence was seen.
    StageFailed
        If the execution was removed, or the file cannot be written.
    """
    try:
        _follow(path, result, fence, should_stop, poll_s)
    except RuntimeError as error:
        # All that HDF5 tells of a full disk is "HDF error".
        free = shutil.disk_usage(path.parent.parent).free
        # What there was of the file has been given back by now.
        failure = DiskFull if free < result.plan.output_bytes else StageFailed
        raise failure(
            Stage.PACKAGE,
            f"the NetCDF file could not be written: {error}; {free / 1e6:.0f} MB of disk are left",
        ) from error


def _follow(
    path: Path,
    result: Result,
    fence: int,
    should_stop: Callable[[], bool],
    poll_s: float,
) -> None:
    plan, work = result.plan, result.work
    upcoming = dict.fromkeys(plan.members, 0)
    pause_s = poll_s
    with NetCDFFile(path, result.dataset()) as file:
        while upcoming:
            if should_stop():
                raise ExecutionCancelled(work.execution_id)
            work.admit(fence)
            # Steps of a member are written in about their order: one look per member is enough.
            ready = work.written_of(upcoming.items())
            for member, time_index in ready:
                index = field_index(plan, member, time_index)
                for variable, values in result.read_step(member, time_index):
                    file.write(variable, index, values)
                upcoming[member] += 1
                if upcoming[member] == plan.n_times:
                    del upcoming[member]
            if ready:
                pause_s = poll_s
            else:
                # Longer and longer: it may be long until its execution gets a GPU.
                time.sleep(pause_s)
                pause_s = min(SLOWER * pause_s, max(poll_s, SLOWEST_POLL_S))
