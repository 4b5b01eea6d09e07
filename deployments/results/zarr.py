"""A dataset as the objects of a Zarr v3 store with consolidated metadata, one chunk per map.

The metadata documents are composed here because zarr-python creates arrays one by one and rewrites
the group for each: 13 ms for four arrays, where a whole store can be written in 1 ms.

The numbers in keys of chunks are separated by slashes, as zarr-python and Earth2Studio do; readers
that overlook the setting find no chunks otherwise. Results that an earlier release began have dots.

References
----------
Zarr v3 core specification, https://zarr-specs.readthedocs.io/en/latest/v3/core/index.html;
consolidated metadata as zarr-python 3 reads and writes it.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from workflows.base import Plan
from workflows.coordinates import Variable
from workflows.dataset import FIELD_DTYPE, Dataset
from workflows.grids import RegularGrid

SEPARATOR = "/"
EARLIER_SEPARATOR = "."

_buffers = threading.local()


def chunk_key(variable: str, index: tuple[int, ...], separator: str) -> str:
    """Return the key of the chunk with one map; `index` is without lat and lon."""
    return f"{variable}/{separator.join(['c', *map(str, index), '0', '0'])}"


def make_chunk_folders(store: Path, key: str) -> None:
    """Create the folders of a chunk below that of its array.

    Raises FileNotFoundError if the array has no folder: a result that was removed must not come
    back.
    """
    array, *folders, _ = key.split("/")
    path = store / array
    for folder in folders:
        path /= folder
        with suppress(FileExistsError):
            path.mkdir()


def chunk_content(plan: Plan, field: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return a map as its chunk stores it: contiguous, southwards, global ones from -180 degrees.

    No codec is used, so the bytes of the array are the chunk. The array may be a buffer that the
    thread's next call overwrites.
    """
    grid = plan.grid
    if not isinstance(grid, RegularGrid) or not (grid.west or grid.is_northward):
        return np.ascontiguousarray(field, FIELD_DTYPE)
    return _as_stored(field[::-1] if grid.is_northward else field, grid.west)


def _as_stored(field: NDArray[np.float32], west: int) -> NDArray[np.float32]:
    """Copy a map into the thread's buffer, from a column eastwards, around the globe."""
    rolled: NDArray[np.float32] | None = getattr(_buffers, "rolled", None)
    if rolled is None or rolled.shape != field.shape:
        # Reused between calls: fresh memory costs a page fault for every 4 KiB.
        rolled = _buffers.rolled = np.empty(field.shape, FIELD_DTYPE)
    rolled[:, : field.shape[1] - west] = field[:, west:]
    rolled[:, field.shape[1] - west :] = field[:, :west]
    return rolled


def store_objects(dataset: Dataset, separator: str) -> Iterator[tuple[str, bytes]]:
    """Yield key and content of all objects except fields' chunks, the root's metadata first."""
    arrays = {
        variable.name: _array(dataset, variable, separator)
        for variable in (*dataset.coordinates, *dataset.fields)
    }
    root = {
        "zarr_format": 3,
        "node_type": "group",
        "attributes": dict(dataset.attributes),
        "consolidated_metadata": {
            "kind": "inline",
            "must_understand": False,
            "metadata": arrays,
        },
    }
    yield "zarr.json", _encoded(root)
    for name, array in arrays.items():
        yield f"{name}/zarr.json", _encoded(array)
    for variable in dataset.coordinates:
        if variable.values is not None:
            key = separator.join(["c", *("0" for _ in variable.dims)])
            yield f"{variable.name}/{key}", variable.values.tobytes()


def _array(dataset: Dataset, variable: Variable, separator: str) -> dict[str, Any]:
    shape = list(dataset.shape(variable))
    chunk, dtype = shape, FIELD_DTYPE
    if variable.values is None:
        chunk = [1] * (len(shape) - 2) + shape[-2:]
    else:
        dtype = variable.values.dtype
    fill_value = missing_value(dtype)
    return {
        "zarr_format": 3,
        "node_type": "array",
        "shape": shape,
        "data_type": dtype.name,
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": chunk}},
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": separator}},
        "fill_value": "NaN" if np.isnan(fill_value) else int(fill_value),
        "codecs": [{"name": "bytes", "configuration": {"endian": "little"}}],
        "attributes": dict(variable.attributes),
        "dimension_names": list(variable.dims),
        "storage_transformers": [],
    }


def missing_value(dtype: np.dtype[Any]) -> Any:
    """Return a fill value that no coordinate has, for numbers; None for other types.

    Zarr has no array without one, and readers may take it for missing: with the default, 0, the
    equator, Greenwich, the first member and the start time would be.
    """
    match dtype.kind:
        case "f":
            return dtype.type(np.nan)
        case "i":
            return np.iinfo(dtype).min
        case "u":
            return np.iinfo(dtype).max
        case _:
            return None


def _encoded(document: dict[str, Any]) -> bytes:
    return json.dumps(document).encode()
