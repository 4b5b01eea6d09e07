"""NetCDF4 export: follows the steps of an execution as they are written."""

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
from workflows.base import Plan
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

Index = tuple[int, ...]
"""Where a map is in its variable."""

_NO_CACHE_BYTES = 1
"""Size of a chunk cache into which nothing fits; netCDF takes zero for its default."""
_HASH_BYTES = 1 << 22
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class NetCDFFile:
    """A NetCDF4 file under construction.

    HDF5 lays it out, every map with its place in the order of `maps`; then maps are written there
    as into any other file, and SHA-256 follows behind them.

    Parameters
    ----------
    path : Path
        An existing file is replaced.
    dataset : Dataset
        What it shall hold; a chunk is one map, uncompressed.
    maps : iterable of (str, tuple of int)
        Variables and indices, without those of the map, in the order in which they lie in the file.
        The nearer that is to the order in which they are written, the less is left to hash.
    """

    def __init__(self, path: Path, dataset: Dataset, maps: Iterable[tuple[str, Index]]) -> None:
        self._map_bytes = FIELD_DTYPE.itemsize * math.prod(dataset.field_shape[-2:])
        with NETCDF_LOCK:
            _lay_out(path, dataset, maps)
            self._places = _places_of_maps(path, [field.name for field in dataset.fields])
        self._file = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        self._digest = hashlib.sha256()
        self._hashed = 0
        self._upcoming = sorted(self._places.values(), reverse=True)
        self._written: set[int] = set()

    def write(self, variable: str, index: Index, values: NDArray[np.float32]) -> None:
        """Write one map, shape (lat, lon); `index` leaves lat and lon away."""
        place = self._places[variable, index]
        content = np.ascontiguousarray(values, FIELD_DTYPE).reshape(-1).view(np.uint8).data
        done = 0
        while done < len(content):
            done += os.pwrite(self._file, content[done:], place + done)
        self._written.add(place)
        while self._upcoming and self._upcoming[-1] in self._written:
            self._hash_up_to(self._upcoming.pop() + self._map_bytes)

    def _hash_up_to(self, end: int) -> None:
        while self._hashed < end:
            block = os.pread(self._file, min(_HASH_BYTES, end - self._hashed), self._hashed)
            self._digest.update(block)
            self._hashed += len(block)

    def close(self) -> str:
        """Close it; gives its SHA-256.

        Raises
        ------
        ValueError
            If a map is missing.
        """
        if self._upcoming:
            raise ValueError(f"{len(self._upcoming)} maps were not written, or not in a row")
        self._hash_up_to(os.fstat(self._file).st_size)
        os.close(self._file)
        return self._digest.hexdigest()

    def discard(self) -> None:
        """Close a file that is of no use any more, and give its space back at once."""
        os.ftruncate(self._file, 0)
        os.close(self._file)


def follow(
    path: Path,
    result: Result,
    fence: int,
    should_stop: Callable[[], bool],
    poll_s: float,
) -> str:
    """Copy all steps of an execution into a NetCDF4 file, waiting for those still to come.

    Returns
    -------
    str
        SHA-256 of the file.

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
        return _follow(path, result, fence, should_stop, poll_s)
    except (RuntimeError, OSError) as error:
        # All that HDF5 tells of a full disk is "HDF error".
        if isinstance(error, OSError) and error.errno not in _NO_ROOM:
            raise
        free = shutil.disk_usage(path.parent.parent).free
        # What there was of the file has been given back by now.
        failure = DiskFull if free < result.plan.output_bytes else StageFailed
        why = error.strerror if isinstance(error, OSError) else error
        raise failure(
            Stage.PACKAGE,
            f"the NetCDF file could not be written: {why}; {free / 1e6:.0f} MB of disk are left",
        ) from error


def _follow(
    path: Path,
    result: Result,
    fence: int,
    should_stop: Callable[[], bool],
    poll_s: float,
) -> str:
    plan, work = result.plan, result.work
    upcoming = dict.fromkeys(plan.members, 0)
    pause_s = poll_s
    file = NetCDFFile(path, result.dataset(), _in_order(plan))
    try:
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
        return file.close()
    except BaseException:
        file.discard()
        raise


def _in_order(plan: Plan) -> Iterator[tuple[str, Index]]:
    """Give all maps, one member after the other, time by time: as one replica computes them."""
    for member in plan.members:
        for time_index in range(plan.n_times):
            for variable in plan.variables:
                yield variable, field_index(plan, member, time_index)


def _lay_out(path: Path, dataset: Dataset, maps: Iterable[tuple[str, Index]]) -> None:
    """Write all but the maps, and give each of them its place."""
    file = netCDF4.Dataset(path, "w", format="NETCDF4")
    try:
        # Every map is written whole or not at all: no need to write fill values first.
        file.set_fill_off()
        arrays = _define(file, dataset)
        for variable, index in maps:
            # HDF5 finds room for a chunk when the first of its values is written.
            arrays[variable][*index, 0, 0] = 0
        file.close()
    except BaseException:
        _give_up(path, file)
        raise


def _give_up(path: Path, file: Any) -> None:
    """Close a file that is of no use, and give its space back.

    On a full disk HDF5 cannot write what is pending; then it does not close the file, and a file
    that is open keeps its space even when it is removed. An emptied one has room.
    """
    with suppress(FileNotFoundError):
        os.truncate(path, 0)
    try:
        if file.isopen():
            file.close()
    except (OSError, RuntimeError):
        logger.exception("a file that is of no use could not be closed")
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
        # A chunk in the cache would be written whole.
        array.set_var_chunk_cache(_NO_CACHE_BYTES, 1, 1.0)
        array.set_auto_maskandscale(False)
        arrays[variable.name] = array
    return arrays


def _places_of_maps(path: Path, variables: Iterable[str]) -> dict[tuple[str, Index], int]:
    """Read where in the file each map begins, in bytes; netCDF4 does not tell."""
    # Where both are built on one HDF5, as in some distributions, the lock is for both.
    import h5py

    places: dict[tuple[str, Index], int] = {}
    with h5py.File(path, "r", locking=False) as file:
        for variable in variables:

            def note(stored: Any, variable: str = variable) -> None:
                places[variable, tuple(stored.chunk_offset[:-2])] = stored.byte_offset

            file[variable].id.chunk_iter(note)
    return places
