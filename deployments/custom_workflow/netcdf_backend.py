"""The output of a user's workflow as NetCDF4, written in the workflow's own thread.

netCDF4's build of HDF5 is not thread-safe, and xarray opens files without taking a lock: a data
source that opens a NetCDF file in the class's thread while another thread is in HDF5 crashes the
process. So no other thread writes here. The class's own threads may read files through xarray
meanwhile, since reads take xarray's lock, as does this module.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import netCDF4
import numpy as np
from numpy.typing import NDArray
from xarray.backends.locks import HDF5_LOCK

from deployments.custom_workflow.arguments import to_numpy
from deployments.custom_workflow.backend import Output
from deployments.custom_workflow.coverage import Index, OutputArray, Selection
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

    def finish(self) -> dict[Path, StoredObject]:
        """Close the file, unless the class did; a file without variables is removed."""
        self.close()
        if not self._file.variables:
            self.path.unlink(missing_ok=True)
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
            layout["fill_value"] = dtype.type(np.nan)
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

    def _read(self, array: OutputArray, selection: Selection) -> NDArray[Any]:
        with HDF5_LOCK:
            return np.asarray(array.handle[tuple(selection) or ...])


class _ObservedVariable(netCDF4.Variable):  # type: ignore[type-arg]
    """A variable that notifies its output when the class sets values itself."""

    # netCDF4 returns a variable's attributes as its `__dict__` and stores what is set on it in the
    # file, so the reference must be a slot.
    __slots__ = ("_output",)

    def set_output(self, output: NetCDFOutput) -> None:
        """Set the output to notify."""
        type(self).__dict__["_output"].__set__(self, output)

    def __setitem__(self, key: Any, values: Any) -> None:
        self._output.coverage.arrays[self.name].is_unaccounted = True
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
            "dtype": "timedelta64[ns]",
        }
    return values, {}


def _largest_unit(offsets: NDArray[np.timedelta64]) -> tuple[str, np.timedelta64]:
    """Return the largest unit that divides all offsets: fractions would lose precision."""
    for units, unit in (("hours", np.timedelta64(1, "h")), ("seconds", np.timedelta64(1, "s"))):
        if not (offsets % unit).astype(np.int64).any():
            return units, unit
    return "microseconds", np.timedelta64(1, "us")
