"""A user's workflow writes NetCDF4: HDF5 lays the file out, threads write the maps into it.

HDF5 as netCDF4 ships it is not thread-safe, and not everybody who uses it takes a lock: xarray
opens files without one, netCDF4 never has one. A data source that opens a NetCDF file in the
class's thread while another of ours was in HDF5 would end the process. So HDF5 is only called in
the class's own thread. What it is called for is little: every chunk gets its place in the file when
its array is added, and the threads write there as into any other file.

Threads of the class's own may use ``io`` all the same: a lock is held around every call, what the
class gets of the file (`Guarded`) takes it too, and it is the one that xarray takes when it reads.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from threading import RLock
from typing import Any

import netCDF4
import numpy as np
from numpy.typing import NDArray
from xarray.backends.locks import HDF5_LOCK

from deployments.custom_workflow.backend import Field, Index, Output, on_host
from deployments.custom_workflow.write_behind import WriteBehind
from deployments.results.netcdf import NETCDF_LOCK
from deployments.results.protocols import StoredObject

SMALL_CHUNK_BYTES = 1 << 16
"""Below this, handing a chunk to a thread costs more than writing it."""
_NO_CACHE_BYTES = 1
"""Size of a chunk cache into which nothing fits; netCDF takes zero for its default."""


class NetCDFOutput(Output):
    """An Earth2Studio ``NetCDF4Backend`` that writes behind the loop; see `Output`.

    Parameters
    ----------
    behind_from : int
        Bytes of a chunk from which on it is written behind.
    """

    def __init__(
        self,
        path: Path,
        writer: WriteBehind,
        max_bytes: int,
        check: Callable[[], None] = lambda: None,
        behind_from: int = SMALL_CHUNK_BYTES,
    ) -> None:
        super().__init__(path, writer, max_bytes, check)
        self._behind_from = behind_from
        self._lock = RLock()
        self._held = False
        with self._locked():
            self._file = netCDF4.Dataset(path, "w", format="NETCDF4")
        self._plain: set[str] = set()
        """Arrays that lie in the file as they do in memory, and are only written by us."""
        self._places: dict[str, dict[Index, int]] = {}
        """By array, where its chunks begin, in bytes."""
        self._filled: dict[str, set[Index]] = {}
        """By array, chunks that hold NaN until they are written."""
        self._raw: int | None = os.open(path, os.O_WRONLY | os.O_CLOEXEC)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        with ExitStack() as held:
            # Ours is taken again by whoever has it: a guarded object may use another.
            held.enter_context(self._lock)
            if not self._held:
                held.enter_context(NETCDF_LOCK)
                held.enter_context(HDF5_LOCK)
                self._held = True
                held.callback(setattr, self, "_held", False)
            yield

    @contextmanager
    def quiet(self) -> Iterator[None]:
        """Hold the lock while nothing waits to be written."""
        # Ours first, so that no thread of the class's hands over more; those that write take none.
        with self._lock:
            self.flush()
            with self._locked():
                yield

    def __getitem__(self, name: str) -> Any:
        # The file itself takes a name that is not there for a path, and an index out of range.
        return self.root.variables[name]

    @property
    def root(self) -> Any:
        """Give the file; attributes set on it and its variables are kept."""
        return Guarded(self._file, self.quiet, self._read_by_hand, self._touched)

    def _read_by_hand(self, name: str) -> None:
        if name in self.fields:
            self._fill(self.fields[name])

    def _touched(self, name: str) -> None:
        if name in self.fields:
            touched = self.fields[name]
            # Nobody can tell later what the class has left out.
            self._fill(touched)
            touched.by_hand = True
            self._plain.discard(name)
            self._places.pop(name, None)

    def _fill(self, target: Field, chunks: set[Index] | None = None) -> None:
        """Write NaN into those chunks, or all, that nobody wrote; HDF5 does not, see `_create`."""
        if target.is_coordinate or target.by_hand or target.dtype.kind != "f":
            return
        missing = np.full(target.chunks, np.nan, target.dtype)
        filled = self._filled.setdefault(target.name, set())
        for index in (target.all_chunks() if chunks is None else chunks) - target.written - filled:
            self._write_chunk(target, index, missing)
            filled.add(index)

    def close(self) -> None:
        """Write what is pending, NaN where nothing was written, and close."""
        with self.quiet():
            if self._file.isopen():
                for each in self.fields.values():
                    self._fill(each)
                self._file.close()
            self._let_go()

    def _let_go(self) -> None:
        if self._raw is not None:
            os.close(self._raw)
            self._raw = None
            self._plain.clear()
            self._places.clear()

    def _hand_over(self, target: Field, index: Index, values: Any) -> None:
        with self._lock:
            if target.name in self._plain:
                self._find_places()
                super()._hand_over(target, index, values)
                return
        chunk = np.asarray(on_host(values), target.dtype)
        self._write_chunk(target, index, chunk)
        with self._noting:
            target.note(index, chunk)

    def finish(self) -> dict[Path, StoredObject]:
        """Close, unless the class did; leaves nothing of a file without variables."""
        self.close()
        if not self._file.variables:
            self.path.unlink(missing_ok=True)
        return {}

    def discard(self) -> None:
        """Close and remove the file."""
        with self._locked():
            if self._file.isopen():
                try:
                    self._file.close()
                except (OSError, RuntimeError):
                    # On a full disk HDF5 cannot write what is pending. An emptied file has room.
                    with self.path.open("r+b") as file:
                        file.truncate(0)
            self._let_go()
        self.path.unlink(missing_ok=True)

    def _create(
        self,
        name: str,
        dims: tuple[str, ...],
        shape: tuple[int, ...],
        chunks: tuple[int, ...],
        dtype: np.dtype[Any],
        options: Mapping[str, Any],
    ) -> tuple[Any, bool]:
        with self.quiet():
            layout: dict[str, Any] = {}
            if shape:
                layout["chunksizes"] = chunks
            if dtype.kind == "f":
                layout["fill_value"] = dtype.type(np.nan)
            # Maps are written whole or, at the end, filled: not both.
            self._file.set_fill_off()
            variable = self._file.createVariable(name, dtype, dims, **{**layout, **options})
            self._file.set_fill_on()
            variable.set_auto_maskandscale(False)
            self._places.pop(name, None)
            self._filled.pop(name, None)
            self._plain.discard(name)
            large = math.prod(chunks) * dtype.itemsize >= self._behind_from
            plain = dtype.isnative and options.keys() <= {"fill_value"}
            if large and plain and shape and all(shape):
                variable.set_var_chunk_cache(_NO_CACHE_BYTES, 1, 1.0)
                # One value in each chunk gives all of them their places.
                variable[tuple(slice(None) if chunk == 1 else 0 for chunk in chunks)] = 0
                self._plain.add(name)
        return variable, True

    def _create_coordinate(self, name: str, dims: tuple[str, ...], values: NDArray[Any]) -> Any:
        with self.quiet():
            if dims == (name,):
                self._file.createDimension(name, len(values))
            stored, attributes = _encoded(values)
            variable = self._file.createVariable(name, stored.dtype, dims)
            variable.setncatts(attributes)
            variable[...] = stored
        return variable

    def _find_places(self) -> None:
        """Read in the file where the chunks of arrays begin that were added since the last time."""
        added = self._plain - self._places.keys()
        if not added:
            return
        # netCDF4 does not tell. In the class's thread like all else, since both may be built on
        # one and the same HDF5.
        import h5py

        with self._locked():
            self._file.sync()
            with h5py.File(self.path, "r", locking=False) as file:
                for name in added:
                    places: dict[Index, int] = {}
                    chunks = self.fields[name].chunks
                    file[name].id.chunk_iter(partial(_note_place, places, chunks))
                    self._places[name] = places

    def _write_chunk(self, target: Field, index: Index, values: NDArray[Any]) -> None:
        if self._raw is not None and (places := self._places.get(target.name)) is not None:
            _write_at(self._raw, places[index], values)
            return
        where = tuple(
            slice(i * chunk, i * chunk + chunk)
            for i, chunk in zip(index, target.chunks, strict=True)
        )
        block = tuple(
            min(chunk, size) for chunk, size in zip(target.chunks, target.shape, strict=True)
        )
        with self._locked():
            target.handle[where] = values.reshape(block)

    def _write_part(
        self, target: Field, selection: Sequence[NDArray[np.intp]], values: NDArray[Any]
    ) -> None:
        with self.quiet():
            self._fill(target, target.chunks_of(selection))
            target.handle[tuple(selection) or ...] = values

    def _read(self, target: Field, selection: Sequence[NDArray[np.intp]]) -> NDArray[Any]:
        with self.quiet():
            self._fill(target, target.chunks_of(selection))
            return np.asarray(target.handle[tuple(selection) or ...])


def _note_place(places: dict[Index, int], chunks: tuple[int, ...], stored: Any) -> None:
    index = tuple(at // size for at, size in zip(stored.chunk_offset, chunks, strict=True))
    places[index] = stored.byte_offset


def _write_at(file: int, offset: int, values: NDArray[Any]) -> None:
    left = np.ascontiguousarray(values).data.cast("B")
    while left:
        n_written = os.pwrite(file, left, offset)
        left, offset = left[n_written:], offset + n_written


def _encoded(values: NDArray[Any]) -> tuple[NDArray[Any], dict[str, str]]:
    """Give times as numbers with units that every reader of CF takes; all else as it is."""
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
        # The attribute is for xarray, which would take "hours" for a number otherwise.
        return (values / unit).round().astype(np.int64), {
            "units": units,
            "dtype": "timedelta64[ns]",
        }
    return values, {}


def _largest_unit(offsets: NDArray[np.timedelta64]) -> tuple[str, np.timedelta64]:
    """Give the unit of which all are multiples: readers do not restore fractions exactly."""
    for units, unit in (("hours", np.timedelta64(1, "h")), ("seconds", np.timedelta64(1, "s"))):
        if not (offsets % unit).astype(np.int64).any():
            return units, unit
    return "microseconds", np.timedelta64(1, "us")


class Guarded:
    """Something of netCDF4's, used under the lock and after all that waits to be written.

    Parameters
    ----------
    target : netCDF4.Dataset, Variable, Dimension or Group
    quiet : callable
        Gives the context in which it may be used.
    read, touched : callable
        Told the name of a variable before its values are read, or set.
    """

    def __init__(
        self,
        target: Any,
        quiet: Callable[[], Any],
        read: Callable[[str], None],
        touched: Callable[[str], None],
    ) -> None:
        object.__setattr__(self, "_target", target)
        object.__setattr__(self, "_quiet", quiet)
        object.__setattr__(self, "_read", read)
        object.__setattr__(self, "_touched", touched)

    def _wrap(self, value: Any) -> Any:
        if isinstance(value, (netCDF4.Dataset, netCDF4.Variable, netCDF4.Dimension)):
            return Guarded(value, self._quiet, self._read, self._touched)
        if isinstance(value, dict):
            return {key: self._wrap(each) for key, each in value.items()}
        if callable(value) and not isinstance(value, type):
            return self._calling(value)
        return value

    def _calling(self, method: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **options: Any) -> Any:
            with self._quiet():
                return self._wrap(method(*args, **options))

        return call

    @property  # type: ignore[misc]
    def __class__(self) -> Any:
        """Let ``isinstance`` see what is guarded."""
        return type(self._target)

    def __getattr__(self, name: str) -> Any:
        with self._quiet():
            return self._wrap(getattr(self._target, name))

    def __setattr__(self, name: str, value: Any) -> None:
        with self._quiet():
            setattr(self._target, name, value)

    def __delattr__(self, name: str) -> None:
        with self._quiet():
            delattr(self._target, name)

    def __getitem__(self, key: Any) -> Any:
        with self._quiet():
            self._note_reading()
            return self._wrap(self._target[key])

    def __setitem__(self, key: Any, value: Any) -> None:
        with self._quiet():
            self._touched(self._target.name)
            self._target[key] = value

    def __array__(self, *args: Any, **options: Any) -> NDArray[Any]:
        with self._quiet():
            self._note_reading()
            return np.asarray(self._target[...], *args, **options)

    def _note_reading(self) -> None:
        if isinstance(self._target, netCDF4.Variable):
            self._read(self._target.name)

    def __len__(self) -> int:
        with self._quiet():
            return len(self._target)

    def __bool__(self) -> bool:
        # A file has no length, and is true nevertheless.
        return not hasattr(self._target, "__len__") or len(self) > 0

    def __repr__(self) -> str:
        with self._quiet():
            return repr(self._target)
