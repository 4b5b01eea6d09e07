"""Accounts for how much a user's workflow has written of the arrays that it added.

It counts chunks, to distinguish a workflow that returned early from a complete one, and one that
wrote nothing but NaN from one with values.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

Index = tuple[int, ...]
"""Position of a chunk along each dimension."""
Selection = Sequence[NDArray[np.intp]]
"""Positions along each dimension."""


@dataclass
class OutputArray:
    """An array of the output, and which of its chunks are written."""

    name: str
    dims: tuple[str, ...]
    shape: tuple[int, ...]
    chunks: tuple[int, ...]
    dtype: np.dtype[Any]
    is_coordinate: bool = False
    handle: Any = None
    """The array in the store."""
    takes_chunks: bool = False
    """Whether chunks can be written one at a time."""
    written: set[Index] = field(default_factory=set)
    """Chunks that are written."""
    all_nan: set[Index] = field(default_factory=set)
    """Written chunks whose values are all NaN."""
    is_unaccounted: bool = False
    """True if the class bypassed the backend; how much is written is then unknown."""

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
        return not self.is_coordinate and bool(self.dims)

    def chunks_of(self, selection: Selection) -> set[Index]:
        """Return the indices of the chunks that a selection touches."""
        along = [
            dict.fromkeys((positions // chunk).tolist())
            for positions, chunk in zip(selection, self.chunks, strict=True)
        ]
        return set(itertools.product(*along))

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
        self.written.add(index)
        if is_all_nan(values):
            self.all_nan.add(index)
        else:
            self.all_nan.discard(index)

    def record_part(self, selection: Selection, values: NDArray[Any]) -> None:
        """Record that parts of chunks were written; their other values stay."""
        touched = self.chunks_of(selection)
        if is_all_nan(values):
            self.all_nan |= touched - self.written
        else:
            self.all_nan -= touched
        self.written |= touched


class Coverage:
    """The arrays of an output, and how much of them is written."""

    def __init__(self) -> None:
        self.arrays: dict[str, OutputArray] = {}

    def _counted(self) -> Iterable[OutputArray]:
        # An atomic copy: the workflow's thread may add arrays while another thread reads.
        return (each for each in list(self.arrays.values()) if each.counts)

    @property
    def progress(self) -> tuple[int, int]:
        """Number of chunks written and in total, of the array that was added first."""
        first = next(iter(self._counted()), None)
        return (0, 0) if first is None else (len(first.written), first.n_chunks)

    @property
    def has_been_written(self) -> bool:
        """Whether anything but coordinates was written."""
        return any(
            each.is_unaccounted or each.written
            for each in self.arrays.values()
            if not each.is_coordinate
        )

    @property
    def has_values(self) -> bool:
        """Whether any array has a value that is not NaN."""
        return any(
            each.is_unaccounted or len(each.all_nan) < len(each.written) for each in self._counted()
        )

    def shortcoming(self) -> str | None:
        """Return why the output is not what the workflow announced, as text; None if it is."""
        missing = self.missing()
        if missing:
            return f"the workflow ended early: {'; '.join(missing[:5])}"
        if self.without_values() and not self.has_values:
            return "the workflow wrote no values: everything is NaN"
        return None

    def missing(self) -> list[str]:
        """Return how much of each array was added but not written, as text."""
        return [
            f"{each.n_chunks - len(each.written)} of {each.n_chunks} parts of {each.name} were not "
            "written"
            for each in self._counted()
            if not each.is_unaccounted and len(each.written) < each.n_chunks
        ]

    def without_values(self) -> list[str]:
        """Return the names of arrays that were written, but with nothing but NaN."""
        return [
            each.name
            for each in self._counted()
            if not each.is_unaccounted and each.all_nan and len(each.all_nan) == len(each.written)
        ]


def is_all_nan(values: NDArray[Any]) -> bool:
    """Return whether an array has values and all are NaN; usually it reads only the first one."""
    if values.dtype.kind != "f" or not values.size or not np.isnan(values.flat[0]):
        return False
    return bool(np.isnan(values).all())
