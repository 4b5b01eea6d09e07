"""The output of a user's workflow as NetCDF4, written in the workflow's own thread.

netCDF4's build of HDF5 is not thread-safe, and xarray opens files without taking a lock: a data
source that opens a NetCDF file in the class's thread while another thread is in HDF5 crashes the
process. So no other thread writes here. The class's own threads may read files through xarray
meanwhile, since reads take xarray's lock, as does this module.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import netCDF4
import numpy as np
from numpy.typing import NDArray
from xarray.backends.locks import HDF5_LOCK

from deployments.custom_workflow.arguments import to_numpy
from deployments.custom_workflow.backend import Output
from deployments.custom_workflow.coverage import (
    Found,
    Index,
    OutputArray,
    Selection,
    blocks,
    look_at,
    unwritten,
)
from deployments.results.work import StoredObject

_NO_CACHE_BYTES = 1
"""Size of a chunk cache that is too small for any chunk; netCDF reads 0 as its default."""


class NetCDFOutput(Output):
    """An Earth2Studio ``NetCDF4Backend`` that accounts for what is written; see `Output`."""

    def __init__(self, path: Path, max_bytes: int, check: Callable[[], None]) -> None:
        super().__init__(path, max_bytes, check)
        with HDF5_LOCK:
            self._file = netCDF4.Dataset(path, "w", format="NETCDF4")

    @property
    def root(self) -> Any:
        """The file; attributes set on it and its variables are kept."""
        return self._file

    @property
    def _members(self) -> Any:
        return self._file.variables

    def __getitem__(self, name: str) -> Any:
        # The file itself interprets an unknown name as a path, and raises IndexError.
        return self._file.variables[name]

    def flush(self) -> None:
        """Do nothing: values are written at once."""

    def close(self) -> None:
        """Write what HDF5 has buffered and close the file."""
        with HDF5_LOCK:
            if self._file.isopen():
                self._file.close()

    def finish(self, keep_empty: bool = False) -> dict[Path, StoredObject]:
        """Close the file, unless the class did; a file without variables is removed."""
        self.close()
        if not self.path.is_file():  # the class removed it
            return {}
        with HDF5_LOCK, netCDF4.Dataset(self.path) as file:
            variables = dict(_variables(file))
            for name, variable in variables.items():
                if variable.shape and not self.coverage.is_coordinate(name, variable.dimensions):
                    self.coverage.record(name, variable.size, self._found(name, variable))
        if not variables and not keep_empty:
            self.path.unlink()
        return {}

    def discard(self) -> None:
        """Close and remove the file."""
        try:
            self.close()
        except (OSError, RuntimeError):
            # On a full disk HDF5 cannot write what is pending. An emptied file frees the space.
            with self.path.open("r+b") as file:
                file.truncate(0)
        self.path.unlink(missing_ok=True)

    def _create(self, array: OutputArray, options: Mapping[str, Any]) -> None:
        name, dtype = array.name, array.dtype
        layout: dict[str, Any] = {"chunksizes": array.chunks} if array.dims else {}
        if dtype.kind == "f":
            layout["fill_value"] = unwritten(dtype)
        with HDF5_LOCK:
            variable = self._file.createVariable(name, dtype, array.dims, **{**layout, **options})
            variable.set_auto_maskandscale(False)
            if array.dims and not options:
                # A cache would only copy whole chunks, and keep 16 MiB for each variable.
                variable.set_var_chunk_cache(_NO_CACHE_BYTES, 1, 1.0)
            observed = _ObservedVariable(
                self._file, name, dtype, variable.get_dims(), id=variable._varid
            )
            observed.set_auto_maskandscale(False)
            observed.set_output(self)
            self._file.variables[name] = observed
        array.handle, array.takes_chunks = variable, True

    def _create_coordinate(self, array: OutputArray, values: NDArray[Any]) -> None:
        with HDF5_LOCK:
            if array.dims == (array.name,):
                self._file.createDimension(array.name, len(values))
            stored, attributes = _encoded(values)
            variable = self._file.createVariable(array.name, stored.dtype, array.dims)
            variable.setncatts(attributes)
            variable[...] = stored
        array.handle = variable

    def _opened(self, name: str) -> OutputArray:
        found = self._file.variables[name]
        chunks = tuple(max(size, 1) for size in found.shape)
        return OutputArray(name, found.dimensions, found.shape, chunks, found.dtype, handle=found)

    def _write_chunk(self, array: OutputArray, index: Index, tensor: Any) -> None:
        values = np.asarray(to_numpy(tensor), array.dtype)
        positions = zip(index, array.chunks, strict=True)
        where = tuple(slice(i * chunk, i * chunk + chunk) for i, chunk in positions)
        block = tuple(map(min, array.chunks, array.shape))
        with HDF5_LOCK:
            array.handle[where] = values.reshape(block)
        array.record_chunk(index, values)

    def _write_part(self, array: OutputArray, selection: Selection, values: NDArray[Any]) -> None:
        with HDF5_LOCK:
            array.handle[tuple(selection) or ...] = values
        array.whole.clear()

    def _read(self, array: OutputArray, selection: Selection) -> NDArray[Any]:
        with HDF5_LOCK:
            return np.asarray(array.handle[tuple(selection) or ...])

    def _found(self, name: str, variable: Any) -> Iterator[Found]:
        """Yield what is stored of each chunk; arrays that were written by chunks are not read."""
        added = self._arrays.get(name)
        if added is not None and len(added.whole) == added.n_chunks:
            yield Found(variable.size, added.has_values)
            return
        variable.set_auto_maskandscale(False)
        fill = None if variable.dtype is str else variable.get_fill_value()
        chunks = variable.chunking()
        if chunks == "contiguous":
            chunks = (1,) * (variable.ndim - 2) + variable.shape[-2:]
        for _, where in blocks(variable.shape, chunks):
            yield look_at(np.asarray(variable[where]), fill)


def _variables(group: Any) -> Iterator[tuple[str, Any]]:
    """Yield the variables of a file and their paths, those of groups included."""
    for name, variable in group.variables.items():
        yield f"{group.path}/{name}".lstrip("/"), variable
    for child in group.groups.values():
        yield from _variables(child)


class _ObservedVariable(netCDF4.Variable):  # type: ignore[type-arg]
    """A variable that notifies its output when the class sets values itself."""

    # netCDF4 returns a variable's attributes as its `__dict__` and stores what is set on it in the
    # file, so the reference must be a slot.
    __slots__ = ("_output",)

    def set_output(self, output: NetCDFOutput) -> None:
        """Set the output to notify."""
        type(self).__dict__["_output"].__set__(self, output)

    def __setitem__(self, key: Any, values: Any) -> None:
        self._output.coverage.arrays[self.name].whole.clear()
        super().__setitem__(key, values)


def _encoded(values: NDArray[Any]) -> tuple[NDArray[Any], dict[str, str]]:
    """Return values as stored, times as numbers with CF units, and their attributes."""
    if values.dtype.kind == "M":
        start = values.flat[0] if values.size else np.datetime64("1970-01-01")
        start = start.astype("datetime64[s]")
        units, unit = _largest_unit(values - start)
        return (values - start) / unit, {
            "units": f"{units} since {str(start).replace('T', ' ')}",
            "calendar": "proleptic_gregorian",
        }
    if values.dtype.kind == "m":
        units, unit = _largest_unit(values)
        # Without the attribute dtype xarray would read "hours" as a plain number.
        return (values / unit).round().astype(np.int64), {
            "units": units,
            "calendar": "gregorian",  # as Earth2Studio does, although offsets have none
            "dtype": "timedelta64[ns]",
        }
    return values, {}


def _largest_unit(offsets: NDArray[np.timedelta64]) -> tuple[str, np.timedelta64]:
    """Return the largest unit that divides all offsets: fractions would lose precision."""
    for units, unit in (("hours", np.timedelta64(1, "h")), ("seconds", np.timedelta64(1, "s"))):
        if not (offsets % unit).astype(np.int64).any():
            return units, unit
    return "microseconds", np.timedelta64(1, "us")
