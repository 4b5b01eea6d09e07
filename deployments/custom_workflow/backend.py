"""What a user's workflow writes into: an Earth2Studio IOBackend that accounts for its output.

`add_array` and `write` behave as in Earth2Studio's ``ZarrBackend`` and ``NetCDF4Backend``, and
an output is an instance of one of them (see `run_output.as_backend`). In addition

- arrays are NaN where nothing was written, and `Output.coverage` has the fraction of each that is
  written, however the class wrote it;
- the size of the output is bounded;
- attributes that are set on ``io.root[name]`` are kept in both formats.
"""

from __future__ import annotations

import itertools
import shutil
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deployments.custom_workflow.arguments import (
    Coordinates,
    as_list,
    one_dimensional,
    positions_of,
    to_numpy,
)
from deployments.custom_workflow.coverage import Coverage, Index, OutputArray, Selection
from deployments.results.work import StoredObject

UNIT_CHUNK_DIMS = ("ensemble", "time", "lead_time", "variable")
"""Dimensions along which Earth2Studio's backends use chunks of size 1."""


class OutputTooLarge(ValueError):
    """A workflow has added more than this server accepts, or than fits on the disk."""


class Output(ABC):
    """An IOBackend in its own folder; used by one thread, the workflow's.

    Parameters
    ----------
    max_bytes : int
        Upper bound on the sum of all arrays, uncompressed.
    check : callable
        Called by the methods that a class calls regularly; raises if the class must stop.
    """

    def __init__(self, path: Path, max_bytes: int, check: Callable[[], None]) -> None:
        self.path = path
        self.coords: OrderedDict[str, NDArray[Any]] = OrderedDict()
        self.coverage = Coverage()
        self._arrays = self.coverage.arrays
        self._max_bytes = max_bytes
        self._check = check

    @property
    def io(self) -> Output:
        """The backend itself: Earth2Studio's server wraps backends, and classes unwrap them."""
        return self

    def add_array(
        self, coords: Coordinates, array_name: Any, data: Any = None, **options: Any
    ) -> None:
        """Add arrays with their coordinates; values are NaN unless data are given.

        Parameters
        ----------
        coords : mapping of str to ndarray
            Dimensions in order. A coordinate of several dimensions precedes its others.
        data : tensor or list of tensors, optional
            Values, one tensor for each name.
        **options
            Passed on to the store's arrays.

        Raises
        ------
        OutputTooLarge
            If this server does not accept that much.
        ValueError
            If data do not fit, or belong to other values of a coordinate that exists.
        """
        self._check()
        names = as_list(array_name)
        tensors = [None] * len(names) if data is None else as_list(data)
        if len(tensors) != len(names):
            raise ValueError(f"{len(names)} array names but {len(tensors)} tensors")
        dims, curvilinear = one_dimensional(coords)
        self._add_coordinates(coords, dims, curvilinear)
        for name, tensor in zip(names, tensors, strict=True):
            if name in self:
                if not options.get("overwrite", False):
                    continue
                # Pending writes belong to the array that is replaced.
                self.flush()
            values = None if tensor is None else to_numpy(tensor)
            if values is not None:
                self._check_coordinates(dims)
            self._add_array(name, tuple(dims), values, options)

    def write(self, x: Any, coords: Coordinates, array_name: Any) -> None:
        """Write values at coordinates of arrays.

        Parameters
        ----------
        x : tensor or list of tensors
        coords : mapping of str to ndarray
            One entry for each dimension: where to write.
        array_name : str or sequence of str
            One name for each tensor. Missing arrays are added.

        Raises
        ------
        ValueError
            If a shape does not fit, or a coordinate has no such value, or where to write it is
            ambiguous.
        """
        self._check()
        names, tensors = as_list(array_name), as_list(x)
        if len(tensors) != len(names):
            raise ValueError(f"{len(names)} array names but {len(tensors)} tensors")
        dims, curvilinear = one_dimensional(coords)
        for name in curvilinear:
            if name not in self or coords[name].shape != self._arrays[name].shape:
                raise ValueError(f"coordinate {name} must be given whole, as it was added")
        selection = positions_of(dims, self.coords)
        for name, tensor in zip(names, tensors, strict=True):
            if name not in self:
                self.add_array(coords, name)
            self._write(self._array(name), tuple(dims), selection, tensor)

    def read(self, coords: Coordinates, array_name: str, device: Any = "cpu") -> Any:
        """Return a tensor of the values at coordinates of an array, and the coordinates."""
        import torch

        dims, _ = one_dimensional(coords)
        selection = positions_of(dims, self.coords)
        self.flush()
        values = self._read(self._array(array_name), selection)
        return torch.as_tensor(values, device=device), coords

    def __contains__(self, name: object) -> bool:
        return name in self._arrays or name in self._members

    def __iter__(self) -> Iterator[str]:
        return iter(dict.fromkeys([*self._arrays, *self._members]))

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def __getitem__(self, name: str) -> Any:
        return self.root[name]

    @property
    @abstractmethod
    def root(self) -> Any:
        """The store as an object of the format's library; attributes set on it are kept."""

    def share(self) -> None:
        """Have files contain what was written, from now on: the class may use them itself."""
        self.flush()

    @abstractmethod
    def flush(self) -> None:
        """Wait until all pending values are written."""

    @abstractmethod
    def finish(self, keep_empty: bool = False) -> dict[Path, StoredObject]:
        """Complete and close the output, and look up its `coverage`.

        Parameters
        ----------
        keep_empty : bool, optional
            Whether an output without arrays is kept, too.

        Returns
        -------
        dict
            Size and checksum of files where they are known, by path.
        """

    @abstractmethod
    def discard(self) -> None:
        """Close and remove the output."""

    @property
    @abstractmethod
    def _members(self) -> Any:
        """Everything in the store by name, the class's own arrays included."""

    @abstractmethod
    def _opened(self, name: str) -> OutputArray:
        """Return an array that the class created itself."""

    @abstractmethod
    def _create(self, array: OutputArray, options: Mapping[str, Any]) -> None:
        """Create an array; set its handle, and whether it takes single chunks."""

    @abstractmethod
    def _create_coordinate(self, array: OutputArray, values: NDArray[Any]) -> None:
        """Create a coordinate with its values; set its handle."""

    @abstractmethod
    def _write_chunk(self, array: OutputArray, index: Index, tensor: Any) -> None:
        """Write a whole chunk and record it, now or later."""

    @abstractmethod
    def _write_part(self, array: OutputArray, selection: Selection, values: NDArray[Any]) -> None:
        """Write anything else; nothing is pending."""

    @abstractmethod
    def _read(self, array: OutputArray, selection: Selection) -> NDArray[Any]:
        """Read a part."""

    def _array(self, name: str) -> OutputArray:
        if name not in self._arrays:
            self._arrays[name] = self._opened(name)
        return self._arrays[name]

    def _check_coordinates(self, dims: Coordinates) -> None:
        for dim, values in dims.items():
            known = self.coords[dim]
            if known is not values and not np.array_equal(known, values):
                # Earth2Studio's backends would store the data at the values that exist.
                raise ValueError(f"coordinate {dim} exists with other values")

    def _add_coordinates(
        self, coords: Coordinates, dims: Coordinates, curvilinear: Mapping[str, Sequence[str]]
    ) -> None:
        for name, values in dims.items():
            if name not in self.coords:
                self._add_coordinate(name, (name,), values)
                self.coords[name] = values
        for name, own_dims in curvilinear.items():
            if name not in self._arrays:
                self._add_coordinate(name, tuple(own_dims), coords[name])

    def _add_coordinate(self, name: str, dims: tuple[str, ...], values: NDArray[Any]) -> None:
        shape, dtype = values.shape, values.dtype
        array = OutputArray(name, dims, shape, shape, dtype, is_coordinate=True)
        self._check_size(array)
        self._create_coordinate(array, values)
        self._arrays[name] = array

    def _add_array(
        self,
        name: str,
        dims: tuple[str, ...],
        values: NDArray[Any] | None,
        options: Mapping[str, Any],
    ) -> None:
        if not name or "/" in name or name.endswith(".json"):
            raise ValueError(f"{name!r} cannot name an array")
        shape = tuple(len(self.coords[dim]) for dim in dims)
        dtype = np.dtype("<f4") if values is None else values.dtype
        chunks = tuple(
            1 if dim in UNIT_CHUNK_DIMS or position < len(dims) - 2 else max(size, 1)
            for position, (dim, size) in enumerate(zip(dims, shape, strict=True))
        )
        array = OutputArray(name, dims, shape, chunks, dtype)
        self._check_size(array)
        if values is not None:
            try:
                values = np.broadcast_to(values, shape)
            except ValueError:
                raise ValueError(
                    f"the coordinates of {name} have shape {shape}, its data {values.shape}"
                ) from None
        self._create(array, options)
        self._arrays[name] = array
        if values is not None:
            everything = [np.arange(size) for size in shape]
            self._write_part(array, everything, values)
            array.record_part(everything, values)

    def _check_size(self, array: OutputArray) -> None:
        size, what = array.nbytes, f"{array.name}, shape {array.shape},"
        # An array of the same name would be replaced.
        others = (each.nbytes for each in self._arrays.values() if each.name != array.name)
        total = size + sum(others)
        if total > self._max_bytes:
            raise OutputTooLarge(
                f"with {what} the result would take {total / 1e9:.3g} GB; this "
                f"server accepts {self._max_bytes / 1e9:.3g} GB"
            )
        free = shutil.disk_usage(self.path.parent).free
        if size > free:
            raise OutputTooLarge(
                f"{what} takes {size / 1e9:.3g} GB; the disk has {free / 1e9:.3g} GB left"
            )

    def _write(
        self, array: OutputArray, dims: tuple[str, ...], selection: Selection, tensor: Any
    ) -> None:
        if array.dims and dims != array.dims:
            raise ValueError(f"{array.name} has dimensions {array.dims}, not {dims}")
        shape = tuple(map(len, selection))
        if tuple(tensor.shape) != shape:
            raise ValueError(
                f"the coordinates of {array.name} have shape {shape}, its values "
                f"{tuple(tensor.shape)}"
            )
        leading = array.n_leading(selection)
        if leading is None:
            self.flush()
            values = to_numpy(tensor)
            self._write_part(array, selection, values)
            array.record_part(selection, values)
            return
        inner = (0,) * (len(shape) - leading)
        for place in itertools.product(*(range(size) for size in shape[:leading])):
            index = tuple(int(selection[d][p]) for d, p in enumerate(place)) + inner
            self._write_chunk(array, index, tensor[place])
