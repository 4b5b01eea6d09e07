"""NetCDF4 export, which copies the time steps of an execution while they are written."""

from __future__ import annotations

import errno
import hashlib
import logging
import math
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import netCDF4
import numpy as np
from numpy.typing import NDArray

from deployments.results.protocols import Result
from deployments.runtime.retries import Backoff, RetryPolicy
from workflows.base import Plan
from workflows.dataset import FIELD_DTYPE, Dataset, field_index
from workflows.errors import DiskFull, ExecutionCancelled, StageFailed
from workflows.execution import Stage

logger = logging.getLogger("ray.serve")

POLL_S = 0.02
POLL_BACKOFF = 1.1
"""Growth of the pause with each query that finds no new time step."""
MAX_POLL_S = 0.25

NETCDF_LOCK = threading.Lock()
"""Held around every call of netCDF4: its HDF5 is not thread-safe, and it releases the GIL."""

Index = tuple[int, ...]
"""Position of a map in its variable, without the dimensions of the map."""

_NO_CACHE_BYTES = 1
"""Size of a chunk cache too small for any chunk; zero would select netCDF's default."""
_HASH_BYTES = 1 << 22
_DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class NetCDFFile:
    """A NetCDF4 file under construction.

    HDF5 lays out the file and allocates every map, in the order of `maps`. The maps are then
    written at their offsets with `pwrite`, and SHA-256 is computed as far as they are written
    without a gap.

    Parameters
    ----------
    path : Path
        An existing file is replaced.
    dataset : Dataset
        Content of the file; a chunk is one map, uncompressed.
    maps : iterable of (str, tuple of int)
        Variable and index of every map in the order of the file. The closer this is to the order
        of writing, the less remains to be hashed at the end.
    """

    def __init__(self, path: Path, dataset: Dataset, maps: Iterable[tuple[str, Index]]) -> None:
        self._map_bytes = FIELD_DTYPE.itemsize * math.prod(dataset.field_shape[-2:])
        with NETCDF_LOCK:
            _lay_out(path, dataset, maps)
            self._offsets = _map_offsets(path, [field.name for field in dataset.fields])
        self._file = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        self._digest = hashlib.sha256()
        self._hashed = 0
        self._unhashed = sorted(self._offsets.values(), reverse=True)
        self._written: set[int] = set()

    def write(self, variable: str, index: Index, values: NDArray[np.float32]) -> None:
        """Write one map, shape (lat, lon)."""
        offset = self._offsets[variable, index]
        content = np.ascontiguousarray(values, FIELD_DTYPE).reshape(-1).view(np.uint8).data
        done = 0
        while done < len(content):
            done += os.pwrite(self._file, content[done:], offset + done)
        self._written.add(offset)
        while self._unhashed and self._unhashed[-1] in self._written:
            self._hash_up_to(self._unhashed.pop() + self._map_bytes)

    def _hash_up_to(self, end: int) -> None:
        while self._hashed < end:
            block = os.pread(self._file, min(_HASH_BYTES, end - self._hashed), self._hashed)
            self._digest.update(block)
            self._hashed += len(block)

    def close(self) -> str:
        """Close the file and return its SHA-256; ValueError if a map is missing."""
        if self._unhashed:
            raise ValueError(f"{len(self._unhashed)} maps are missing or follow a missing one")
        self._hash_up_to(os.fstat(self._file).st_size)
        os.close(self._file)
        return self._digest.hexdigest()

    def discard(self) -> None:
        """Close an unfinished file and free its space at once."""
        os.ftruncate(self._file, 0)
        os.close(self._file)


def export_steps(
    path: Path,
    result: Result,
    fence: int,
    should_stop: Callable[[], bool],
    poll_s: float,
) -> str:
    """Copy all time steps of an execution into a NetCDF4 file, waiting for those still to come.

    Returns
    -------
    str
        SHA-256 of the file.

    Raises
    ------
    ExecutionCancelled
        If `should_stop` becomes true.
    StaleConductor
        If a newer fence was seen.
    StageFailed
        If the execution was removed, or the file cannot be written.
    """
    try:
        return _export_steps(path, result, fence, should_stop, poll_s)
    except (RuntimeError, OSError) as error:
        # HDF5 reports a full disk as a RuntimeError, "HDF error".
        if isinstance(error, OSError) and error.errno not in _DISK_FULL:
            # netCDF4 refuses permission where a purge has removed the folder.
            result.work.check_fence(fence)
            raise
        # The space of the unfinished file is free again by now.
        free = shutil.disk_usage(path.parent.parent).free
        failure = DiskFull if free < result.plan.output_bytes else StageFailed
        reason = error.strerror if isinstance(error, OSError) else error
        raise failure(
            Stage.PACKAGE,
            f"the NetCDF file could not be written: {reason}; "
            f"{free / 1e6:.0f} MB of the disk are free",
        ) from error


def _export_steps(
    path: Path,
    result: Result,
    fence: int,
    should_stop: Callable[[], bool],
    poll_s: float,
) -> str:
    plan, work = result.plan, result.work
    next_steps = dict.fromkeys(plan.members, 0)
    polling = RetryPolicy(
        initial_delay_s=poll_s, factor=POLL_BACKOFF, max_delay_s=max(poll_s, MAX_POLL_S)
    )
    backoff = Backoff(polling)
    file = NetCDFFile(path, result.dataset(), _maps_in_order(plan))
    try:
        while next_steps:
            if should_stop():
                raise ExecutionCancelled(work.execution_id)
            work.check_fence(fence)
            # Members are written roughly in order of time, so one query per member is enough.
            written = work.filter_written(next_steps.items())
            for member, time_index in written:
                index = field_index(plan, member, time_index)
                for variable, values in result.read_step(member, time_index):
                    file.write(variable, index, values)
                next_steps[member] += 1
                if next_steps[member] == plan.n_times:
                    del next_steps[member]
            if written:
                backoff = Backoff(polling)
            else:
                # The execution may still be waiting for a GPU.
                time.sleep(backoff.next_delay_s() or polling.max_delay_s)
        return file.close()
    except BaseException:
        file.discard()
        raise


def _maps_in_order(plan: Plan) -> Iterator[tuple[str, Index]]:
    """Yield all maps, member by member and time by time, as one replica computes them."""
    for member in plan.members:
        for time_index in range(plan.n_times):
            for variable in plan.variables:
                yield variable, field_index(plan, member, time_index)


def _lay_out(path: Path, dataset: Dataset, maps: Iterable[tuple[str, Index]]) -> None:
    """Write the file without its maps, and allocate space for each map."""
    file = netCDF4.Dataset(path, "w", format="NETCDF4")
    try:
        arrays = _define(file, dataset)
        for variable, index in maps:
            # HDF5 allocates a chunk when its first value is written.
            arrays[variable][*index, 0, 0] = 0
        file.close()
    except BaseException:
        _discard(path, file)
        raise


def _discard(path: Path, file: Any) -> None:
    """Close an unfinished netCDF4 file and free its space.

    On a full disk HDF5 cannot flush and does not close the file. An open file keeps its space even
    when it is removed; truncated, it can be flushed and closed.
    """
    with suppress(FileNotFoundError):
        os.truncate(path, 0)
    try:
        if file.isopen():
            file.close()
    except (OSError, RuntimeError):
        logger.exception("an unfinished NetCDF file could not be closed")
    with suppress(FileNotFoundError):
        os.truncate(path, 0)


def _define(file: Any, dataset: Dataset) -> dict[str, Any]:
    for name, size in dataset.dims.items():
        file.createDimension(name, size)
    file.setncatts(dict(dataset.attributes))
    for variable in dataset.coordinates:
        values = np.asarray(variable.values)
        array = file.createVariable(variable.name, values.dtype, variable.dims)
        array.setncatts(dict(variable.attributes))
        array[...] = values
    # Every map will be written: no fill values are needed. Only now, since HDF5 gives an array
    # without fill values the fill value 0, which readers that know no CF take for missing.
    file.set_fill_off()
    arrays = {}
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
        # A cached chunk would be written completely.
        array.set_var_chunk_cache(_NO_CACHE_BYTES, 1, 1.0)
        array.set_auto_maskandscale(False)
        arrays[variable.name] = array
    return arrays


def _map_offsets(path: Path, variables: Iterable[str]) -> dict[tuple[str, Index], int]:
    """Return the offset of each map in the file, bytes, which netCDF4 does not expose."""
    # Under the lock of netCDF4, since some distributions build both on one HDF5.
    import h5py

    offsets: dict[tuple[str, Index], int] = {}
    with h5py.File(path, "r", locking=False) as file:
        for variable in variables:

            def note(chunk: Any, variable: str = variable) -> None:
                offsets[variable, tuple(chunk.chunk_offset[:-2])] = chunk.byte_offset

            file[variable].id.chunk_iter(note)
    return offsets
