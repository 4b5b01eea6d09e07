"""What a user's workflow class writes into: Earth2Studio's IOBackend, with a bounded memory.

`add_array` and `write` mean what they mean in Earth2Studio's ``ZarrBackend`` and
``NetCDF4Backend``, and ``isinstance`` says that the object is one (see `as_backend`). Beyond that

- whole maps of Zarr are written by threads, behind the back of the model's loop;
- what is not written is NaN, and it is known what was written: a workflow that returns early cannot
  pass for one that is complete;
- attributes that are set on ``io.root[name]`` are kept in both formats.
"""

from __future__ import annotations

import itertools
import math
import shutil
import threading
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deployments.custom_workflow.write_behind import WriteBehind
from deployments.results.protocols import StoredObject

Index = tuple[int, ...]
Coordinates = Mapping[str, NDArray[Any]]

MAPS = ("ensemble", "time", "lead_time", "variable")
"""Dimensions along which Earth2Studio's backends never put two values into one chunk."""


class OutputTooLarge(ValueError):
    """A workflow has declared more than this server takes, or than the disk holds."""


@dataclass
class Field:
    """An array, and how much of it is written."""

    name: str
    dims: tuple[str, ...]
    shape: tuple[int, ...]
    chunks: tuple[int, ...]
    dtype: np.dtype[Any]
    handle: Any
    """The array in the store."""
    whole_chunks: bool
    """Whether a chunk can be written as it stands: there are no codecs."""
    is_coordinate: bool = False
    written: set[Index] = field(default_factory=set)
    """Chunks that are on disk."""
    only_nan: set[Index] = field(default_factory=set)
    """Those of them that hold no value."""
    by_hand: bool = False
    """True if the class has written it past `Output.write`: nobody knows how much of it then."""

    @property
    def nbytes(self) -> int:
        """Size, uncompressed."""
        return math.prod(self.shape) * self.dtype.itemsize

    @property
    def n_chunks(self) -> int:
        """Number of chunks."""
        return math.prod(self._grid())

    def _grid(self) -> tuple[int, ...]:
        return tuple(-(-size // chunk) for size, chunk in zip(self.shape, self.chunks, strict=True))

    def chunks_of(self, selection: Sequence[NDArray[np.intp]]) -> set[Index]:
        """Give the chunks that a selection, positions along each dimension, touches."""
        along = [
            dict.fromkeys((positions // chunk).tolist())
            for positions, chunk in zip(selection, self.chunks, strict=True)
        ]
        return set(itertools.product(*along))

    def all_chunks(self) -> set[Index]:
        """Give all chunks."""
        return set(itertools.product(*map(range, self._grid())))

    def n_leading(self, selection: Sequence[NDArray[np.intp]]) -> int | None:
        """Count the dimensions in front of the chunks that a selection covers whole.

        Returns
        -------
        int or None
            None if it cuts through a chunk.
        """
        leading = next((i for i, chunk in enumerate(self.chunks) if chunk != 1), len(self.chunks))
        for size, chunk, positions in list(zip(self.shape, self.chunks, selection, strict=True))[
            leading:
        ]:
            if chunk != size or not np.array_equal(positions, np.arange(size)):
                return None
        return leading if self.whole_chunks else None

    def note(self, index: Index, values: NDArray[Any]) -> None:
        """Note that a chunk is on disk."""
        self.written.add(index)
        if has_no_value(values):
            self.only_nan.add(index)
        else:
            self.only_nan.discard(index)


def has_no_value(values: NDArray[Any]) -> bool:
    """Say whether an array has values and all are NaN; looks no further than the first number."""
    if values.dtype.kind != "f" or not values.size or not np.isnan(values.flat[0]):
        return False
    return bool(np.isnan(values).all())


class Output(ABC):
    """An IOBackend in a folder of its own; used by one thread, the workflow's.

    Parameters
    ----------
    path : Path
        The store or file to make.
    writer : WriteBehind
        Writes; flushed here, closed by its owner.
    max_bytes : int
        Bound on the sum of all arrays, uncompressed.
    check : callable
        Called by every method that a class calls now and then; raises if it shall stop.
    """

    def __init__(
        self,
        path: Path,
        writer: WriteBehind,
        max_bytes: int,
        check: Callable[[], None] = lambda: None,
    ) -> None:
        self.path = path
        self.coords: OrderedDict[str, NDArray[Any]] = OrderedDict()
        self.fields: dict[str, Field] = {}
        self._writer = writer
        self._max_bytes = max_bytes
        self._check = check
        self._noting = threading.Lock()

    # What Earth2Studio's backends offer.

    @property
    def io(self) -> Output:
        """Give the backend behind this one: itself. The peer's wrapper has it, and classes ask."""
        return self

    def add_array(
        self, coords: Coordinates, array_name: Any, data: Any = None, **options: Any
    ) -> None:
        """Add arrays with their coordinates, every value missing unless there are data.

        Parameters
        ----------
        coords : mapping of str to ndarray
            Dimensions in order; a coordinate of several dimensions stands before its others.
        array_name : str or sequence of str
        data : tensor or list of tensors, optional
            Values, one tensor for each name.
        **options
            For the store's arrays.

        Raises
        ------
        OutputTooLarge
            If this server does not take that much.
        """
        self._check()
        names = _listed(array_name)
        tensors = [None] * len(names) if data is None else _listed(data)
        if len(tensors) != len(names):
            raise ValueError(f"{len(names)} array names but {len(tensors)} tensors")
        adjusted, several = _one_dimensional(coords)
        self._add_coordinates(coords, adjusted, several)
        for name, tensor in zip(names, tensors, strict=True):
            if name in self.fields:
                if not options.get("overwrite", False):
                    continue
                # What waits to be written belongs to the array that goes.
                self.flush()
            values = None if tensor is None else on_host(tensor)
            self._add_field(name, tuple(adjusted), values, options)

    def write(self, x: Any, coords: Coordinates, array_name: Any) -> None:
        """Write values at coordinates of arrays; whole maps are copied and written later.

        Parameters
        ----------
        x : tensor or list of tensors
        coords : mapping of str to ndarray
            Where, one entry for each dimension.
        array_name : str or sequence of str
            One name for each tensor. An array that is not there yet is added.

        Raises
        ------
        ValueError
            If a shape does not fit, or a coordinate has no such value.
        """
        self._check()
        names, tensors = _listed(array_name), _listed(x)
        if len(tensors) != len(names):
            raise ValueError(f"{len(names)} array names but {len(tensors)} tensors")
        adjusted, several = _one_dimensional(coords)
        for name in several:
            if name not in self or coords[name].shape != self.fields[name].shape:
                raise ValueError(f"coordinate {name} must be given whole, as it was added")
        selection = [self._positions(dim, values) for dim, values in adjusted.items()]
        for name, tensor in zip(names, tensors, strict=True):
            if name not in self.fields:
                self.add_array(coords, name)
            self._write(self.fields[name], tuple(adjusted), selection, tensor)

    def read(self, coords: Coordinates, array_name: str, device: Any = "cpu") -> Any:
        """Read values at coordinates of an array; gives a tensor and the coordinates."""
        import torch

        adjusted, _ = _one_dimensional(coords)
        selection = [self._positions(dim, values) for dim, values in adjusted.items()]
        self.flush()
        return torch.as_tensor(
            self._read(self.fields[array_name], selection), device=device
        ), coords

    def __contains__(self, name: object) -> bool:
        return name in self.fields

    def __iter__(self) -> Iterator[str]:
        return iter(self.fields)

    def __len__(self) -> int:
        return len(self.fields)

    def __getitem__(self, name: str) -> Any:
        return self.root[name]

    @property
    @abstractmethod
    def root(self) -> Any:
        """Give the store as the format's library shows it; attributes set on it are kept."""

    # What whoever runs the class asks.

    def flush(self) -> None:
        """Wait until all that was handed over is written."""
        self._writer.flush()

    @abstractmethod
    def finish(self) -> dict[Path, StoredObject]:
        """Write what is pending and close; gives what is known of files, by their paths.

        An output to which nothing was added leaves nothing.
        """

    @abstractmethod
    def discard(self) -> None:
        """Close what is of no use any more."""

    @property
    def progress(self) -> tuple[int, int]:
        """Count written and all maps of the array that was added first."""
        # A copy, made at once: another thread asks while the workflow's adds arrays.
        first = next(filter(_counts, list(self.fields.values())), None)
        return (0, 0) if first is None else (len(first.written), first.n_chunks)

    @property
    def has_been_written(self) -> bool:
        """Say whether anything but coordinates was written."""
        return any(
            each.by_hand or each.written for each in self.fields.values() if not each.is_coordinate
        )

    def shortcomings(self) -> list[str]:
        """Say in words what was declared but not written."""
        found = []
        for each in filter(_counts, self.fields.values()):
            if not each.by_hand and len(each.written) < each.n_chunks:
                missing = each.n_chunks - len(each.written)
                found.append(f"{missing} of {each.n_chunks} parts of {each.name} were not written")
        return found

    def without_values(self) -> list[str]:
        """Name the arrays of which everything that was written is NaN."""
        return [
            each.name
            for each in filter(_counts, self.fields.values())
            if not each.by_hand and each.only_nan and len(each.only_nan) == len(each.written)
        ]

    @property
    def has_values(self) -> bool:
        """Say whether any array that is no coordinate has a value that is not NaN."""
        return any(
            each.by_hand or len(each.only_nan) < len(each.written)
            for each in filter(_counts, self.fields.values())
        )

    # For the formats.

    @abstractmethod
    def _create(
        self,
        name: str,
        dims: tuple[str, ...],
        shape: tuple[int, ...],
        chunks: tuple[int, ...],
        dtype: np.dtype[Any],
        options: Mapping[str, Any],
    ) -> tuple[Any, bool]:
        """Make an array; gives its handle, and whether chunks can be written as they stand."""

    @abstractmethod
    def _create_coordinate(self, name: str, dims: tuple[str, ...], values: NDArray[Any]) -> Any:
        """Make a coordinate with its values; gives its handle."""

    @abstractmethod
    def _write_chunk(self, target: Field, index: Index, values: NDArray[Any]) -> None:
        """Write a whole chunk; called in a thread."""

    @abstractmethod
    def _write_part(
        self, target: Field, selection: Sequence[NDArray[np.intp]], values: NDArray[Any]
    ) -> None:
        """Write anything else."""

    @abstractmethod
    def _read(self, target: Field, selection: Sequence[NDArray[np.intp]]) -> NDArray[Any]:
        """Read a part."""

    def _add_coordinates(
        self, coords: Coordinates, adjusted: Coordinates, several: Mapping[str, Sequence[str]]
    ) -> None:
        for name, values in adjusted.items():
            if name not in self.coords:
                self._add_coordinate(name, (name,), values)
                self.coords[name] = values
        for name, dims in several.items():
            if name not in self.fields:
                self._add_coordinate(name, tuple(dims), coords[name])

    def _add_coordinate(self, name: str, dims: tuple[str, ...], values: NDArray[Any]) -> None:
        self._check_size(values.nbytes, name, values.shape)
        handle = self._create_coordinate(name, dims, values)
        self.fields[name] = Field(
            name, dims, values.shape, values.shape, values.dtype, handle, False, is_coordinate=True
        )

    def _add_field(
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
        self._check_size(math.prod(shape) * dtype.itemsize, name, shape)
        if values is not None:
            try:
                values = np.broadcast_to(values, shape)
            except ValueError:
                raise ValueError(
                    f"the coordinates of {name} have shape {shape}, its data {values.shape}"
                ) from None
        chunks = tuple(
            1 if dim in MAPS or position < len(dims) - 2 else max(size, 1)
            for position, (dim, size) in enumerate(zip(dims, shape, strict=True))
        )
        handle, whole_chunks = self._create(name, dims, shape, chunks, dtype, options)
        added = Field(name, dims, shape, chunks, dtype, handle, whole_chunks)
        self.fields[name] = added
        if values is not None:
            everything = [np.arange(size) for size in shape]
            added.written |= added.all_chunks()
            self._write_part(added, everything, values)
            if has_no_value(values):
                added.only_nan |= added.written

    def _check_size(self, size: int, name: str, shape: tuple[int, ...]) -> None:
        # One of the same name would be replaced.
        others = (each.nbytes for each in self.fields.values() if each.name != name)
        declared = size + sum(others)
        if declared > self._max_bytes:
            raise OutputTooLarge(
                f"with {name}, shape {shape}, the result would take {declared / 1e9:.3g} GB; this "
                f"server accepts {self._max_bytes / 1e9:.3g} GB"
            )
        free = shutil.disk_usage(self.path.parent).free
        if size > free:
            raise OutputTooLarge(
                f"{name}, shape {shape}, takes {size / 1e9:.3g} GB; {free / 1e9:.3g} GB of disk "
                "are left"
            )

    def _positions(self, dim: str, values: NDArray[Any]) -> NDArray[np.intp]:
        """Find where values stand along a dimension."""
        if dim not in self.coords:
            raise ValueError(f"coordinate {dim} was not added; there are {', '.join(self.coords)}")
        known, values = self.coords[dim], np.atleast_1d(values)
        if known is values or np.array_equal(known, values):
            return np.arange(len(known))
        unknown = values[~np.isin(values, known)]
        if unknown.size:
            raise ValueError(f"coordinate {dim} has no value {unknown[0]}")
        order = np.argsort(known, kind="stable")
        positions: NDArray[np.intp] = order[np.searchsorted(known, values, sorter=order)]
        return positions

    def _write(
        self,
        target: Field,
        dims: tuple[str, ...],
        selection: Sequence[NDArray[np.intp]],
        tensor: Any,
    ) -> None:
        if dims != target.dims:
            raise ValueError(f"{target.name} has dimensions {target.dims}, not {dims}")
        shape = tuple(map(len, selection))
        if tuple(tensor.shape) != shape:
            raise ValueError(
                f"the coordinates of {target.name} have shape {shape}, its values "
                f"{tuple(tensor.shape)}"
            )
        leading = target.n_leading(selection)
        if leading is None:
            self.flush()
            values = on_host(tensor)
            self._write_part(target, selection, values)
            touched = target.chunks_of(selection)
            if has_no_value(values):
                # What else those chunks hold stays.
                target.only_nan |= touched - target.written
            else:
                target.only_nan -= touched
            target.written |= touched
            return
        tail = (0,) * (len(shape) - leading)
        for place in itertools.product(*(range(size) for size in shape[:leading])):
            index = tuple(int(selection[d][p]) for d, p in enumerate(place)) + tail
            self._hand_over(target, index, tensor[place])

    def _hand_over(self, target: Field, index: Index, values: Any) -> None:
        def write(copy: NDArray[Any]) -> None:
            self._write_chunk(target, index, copy)
            with self._noting:
                target.note(index, copy)

        self._writer.put(
            f"{target.name}{index}",
            tuple(values.shape),
            target.dtype,
            lambda memory: _copy(values, memory),
            write,
        )


def _counts(each: Field) -> bool:
    """Leave coordinates aside, and arrays without dimensions: those only carry attributes."""
    return not each.is_coordinate and bool(each.dims)


def _listed(given: Any) -> list[Any]:
    """Give a list of names or tensors; one alone becomes a list of one."""
    if isinstance(given, (list, tuple)) or (
        isinstance(given, np.ndarray) and given.dtype.kind in "UO"
    ):
        return [str(each) if isinstance(each, str) else each for each in given]
    return [given]


def on_host(tensor: Any) -> NDArray[Any]:
    """Give a tensor's values, wherever it is, as an array of NumPy's."""
    if isinstance(tensor, (np.ndarray, np.generic)):
        return np.asarray(tensor)
    import torch

    tensor = tensor.detach().cpu()
    # NumPy has no such type.
    values: NDArray[Any] = (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy()
    return values


def _copy(values: Any, memory: NDArray[Any]) -> None:
    """Copy a tensor, wherever it is, into memory of the host."""
    if isinstance(values, np.ndarray):
        np.copyto(memory, values)
        return
    import torch

    # Straight from the device, without a copy in between.
    torch.from_numpy(memory).copy_(values)


def _one_dimensional(
    coords: Coordinates,
) -> tuple[dict[str, NDArray[Any]], Mapping[str, Sequence[str]]]:
    from earth2studio.utils.coords import convert_multidim_to_singledim

    adjusted, several = convert_multidim_to_singledim(coords)
    return dict(adjusted), several


def as_backend(ours: type[Output], theirs: type) -> type[Output]:
    """Give a class that ``isinstance`` takes for Earth2Studio's backend of that format.

    Made at run time, since importing Earth2Studio takes seconds and a module here may not.
    """
    return type(ours.__name__, (ours, theirs), {"__init__": ours.__init__, "__doc__": ours.__doc__})
