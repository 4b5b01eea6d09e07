"""Accounts for how much of a user's workflow's output was written.

While the class runs, `OutputArray` keeps what was written through the backend, for progress. What
counts at the end is what the store holds, however it was written: see `Coverage.record`.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Index = tuple[int, ...]
"""Position of a chunk along each dimension."""
Selection = Sequence[NDArray[np.intp]]
"""Positions along each dimension."""

_UNWRITTEN_BITS = 0xE2
"""Distinguishes the fill value from every NaN that computations produce."""


@dataclass
class OutputArray:
    """An array of the output, and what was written of it through the backend."""

    name: str
    dims: tuple[str, ...]
    """Empty if the class created the array without naming them."""
    shape: tuple[int, ...]
    chunks: tuple[int, ...]
    dtype: np.dtype[Any]
    is_coordinate: bool = False
    handle: Any = None
    """The array in the store."""
    takes_chunks: bool = False
    """Whether chunks can be written one at a time."""
    touched: set[Index] = field(default_factory=set)
    """Chunks of which anything was written."""
    whole: set[Index] = field(default_factory=set)
    """Chunks that were written whole, and in no other way since."""
    has_values: bool = False
    """Whether anything but NaN was written."""

    @property
    def nbytes(self) -> int:
        """Size, uncompressed."""
        return math.prod(self.shape) * self.dtype.itemsize

    @property
    def n_chunks(self) -> int:
        """Number of chunks."""
        sizes = zip(self.shape, self.chunks, strict=True)
        return math.prod(-(-size // chunk) for size, chunk in sizes)

    @property
    def counts(self) -> bool:
        """Whether its chunks count: coordinates and arrays without dimensions do not."""
        return not self.is_coordinate and bool(self.shape)

    def n_leading(self, selection: Selection) -> int | None:
        """Return the number of leading dimensions with chunks of size 1.

        None if a selection cannot be written chunk by chunk.
        """
        leading = next((i for i, chunk in enumerate(self.chunks) if chunk != 1), len(self.chunks))
        inner = list(zip(self.shape, self.chunks, selection, strict=True))[leading:]
        for size, chunk, positions in inner:
            if chunk != size or not np.array_equal(positions, np.arange(size)):
                return None
        return leading if self.takes_chunks else None

    def record_chunk(self, index: Index, values: NDArray[Any]) -> None:
        """Record that a whole chunk was written."""
        self.touched.add(index)
        self.whole.add(index)
        self.has_values = self.has_values or not is_all_nan(values)

    def record_part(self, selection: Selection, values: NDArray[Any]) -> None:
        """Record that parts of chunks were written."""
        along = [
            dict.fromkeys((positions // chunk).tolist())
            for positions, chunk in zip(selection, self.chunks, strict=True)
        ]
        self.touched.update(itertools.product(*along))
        self.has_values = self.has_values or not is_all_nan(values)


class Coverage:
    """The arrays of an output, and how much of them is written."""

    def __init__(self) -> None:
        self.arrays: dict[str, OutputArray] = {}
        self.fractions: dict[str, float] = {}
        """Fraction of elements that are written, by name; not of coordinates and scalars."""
        self._only_nan: list[str] = []

    @property
    def progress(self) -> tuple[int, int]:
        """Number of chunks written and in total, of the array that was added first."""
        # An atomic copy: the workflow's thread may add arrays while another thread reads.
        first = next((each for each in list(self.arrays.values()) if each.counts), None)
        return (0, 0) if first is None else (len(first.touched), first.n_chunks)

    def is_coordinate(self, name: str, dims: Sequence[str | None]) -> bool:
        """Return whether an array of the store is a coordinate."""
        added = self.arrays.get(name)
        return name.rpartition("/")[2] in dims or (added is not None and added.is_coordinate)

    def record(self, name: str, size: int, found: Iterable[Found]) -> None:
        """Record what the store holds of an array with `size` elements."""
        found = list(found)
        n_written = sum(each.n_written for each in found)
        self.fractions[name] = n_written / size if size else 1.0
        if n_written and not any(each.has_values for each in found):
            self._only_nan.append(name)

    def warnings(self) -> list[str]:
        """Return which variables are incomplete, or have no values, as text."""
        return [
            *(f"{name}: {part}" for name, part in self._missing(self.fractions).items()),
            *(f"{name}: everything written is NaN" for name in self._only_nan),
        ]

    def shortcoming(self, required: Iterable[str]) -> str | None:
        """Return which of the required variables are incomplete, as text; None if none is."""
        missing = self._missing(required)
        if not missing:
            return None
        parts = "; ".join(f"{name}: {part}" for name, part in list(missing.items())[:5])
        return f"the workflow ended without what it requires: {parts}"

    def _missing(self, names: Iterable[str]) -> dict[str, str]:
        fractions = {name: self.fractions.get(name, 0.0) for name in names}
        return {
            name: f"{100 * (1 - fraction):.3g} % of its values were not written"
            for name, fraction in fractions.items()
            if fraction < 1
        }


class Found(NamedTuple):
    """What the store holds of a chunk."""

    n_written: int
    """Number of elements."""
    has_values: bool
    """Whether one of them is not NaN."""


def look_at(values: NDArray[Any], fill: Any) -> Found:
    """Return what was written of a chunk: every element that is not, bit by bit, the fill value."""
    has_values = not is_all_nan(values)
    if fill is None or values.dtype.kind not in "fiu" or values.dtype.itemsize > 8:
        return Found(values.size, has_values)
    bits = f"u{values.dtype.itemsize}"
    values = np.ascontiguousarray(values, values.dtype.newbyteorder("="))
    pattern = np.asarray(fill, values.dtype).view(bits)
    return Found(int(np.count_nonzero(values.view(bits) != pattern)), has_values)


def blocks(
    shape: Sequence[int], chunks: Sequence[int]
) -> Iterator[tuple[Index, tuple[slice, ...]]]:
    """Yield the index of each chunk, and where it lies."""
    along = [
        [(i, slice(i * chunk, min(i * chunk + chunk, size))) for i in range(-(-size // chunk))]
        for size, chunk in zip(shape, chunks, strict=True)
    ]
    for place in itertools.product(*along):
        yield tuple(i for i, _ in place), tuple(part for _, part in place)


def unwritten(dtype: np.dtype[Any]) -> Any:
    """Return the fill value of an array: for floats a NaN that no computation produces.

    It distinguishes elements that were never written from NaN that was written on purpose, also
    within one chunk.
    """
    if dtype.kind != "f":
        return np.zeros((), dtype)[()]
    nan = np.array(np.nan, dtype.newbyteorder("="))
    if dtype.itemsize in (4, 8):
        nan.view(f"u{dtype.itemsize}")[...] |= _UNWRITTEN_BITS
    return nan[()]


def is_all_nan(values: NDArray[Any]) -> bool:
    """Return whether an array has values and all are NaN; usually it reads only the first one."""
    if values.dtype.kind != "f" or not values.size or not np.isnan(values.flat[0]):
        return False
    return bool(np.isnan(values).all())
