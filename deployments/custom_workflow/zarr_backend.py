"""The output of a user's workflow as Zarr; threads write whole chunks."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.codecs import BytesCodec
from zarr.core.array_spec import ArrayConfig
from zarr.errors import UnstableSpecificationWarning

from deployments.custom_workflow.arguments import copy_to
from deployments.custom_workflow.backend import Output
from deployments.custom_workflow.coverage import Index, OutputArray, Selection
from deployments.custom_workflow.write_behind import WriteBehind
from deployments.results.work import StoredObject
from deployments.runtime.files import remove_tree

_SEPARATOR = {"name": "default", "separator": "."}
"""All chunks of an array are files of one folder, as in `deployments.results.zarr`."""


class ZarrOutput(Output):
    """An Earth2Studio ``ZarrBackend`` that writes behind the workflow's loop; see `Output`.

    Parameters
    ----------
    writer : WriteBehind
        Writes whole chunks; closed with the output.
    """

    def __init__(
        self, path: Path, max_bytes: int, check: Callable[[], None], writer: WriteBehind
    ) -> None:
        super().__init__(path, max_bytes, check)
        self._writer = writer
        self.store = zarr.storage.LocalStore(path)
        self.zarr_codecs = None
        self._group = zarr.create_group(self.store, overwrite=True)
        self._root = _Root(self._group._async_group, self)
        self._chunk_files: dict[str, dict[Index, tuple[Path, StoredObject, int]]] = {}
        """Files of chunks by array: path, what was written, modification time in nanoseconds."""

    @property
    def root(self) -> zarr.Group:
        """The group; attributes set on it and its arrays are kept."""
        return self._root

    @property
    def chunks(self) -> dict[str, int]:
        """Size of chunks along each dimension."""
        return {
            dim: size
            for each in self._arrays.values()
            for dim, size in zip(each.dims, each.chunks, strict=True)
        }

    def flush(self) -> None:
        """Wait until all pending chunks are written."""
        self._writer.flush()

    def finish(self) -> dict[Path, StoredObject]:
        """Write what is pending and consolidate the metadata; return the chunks written here."""
        self.flush()
        self._writer.close()
        if not self._arrays and not list(self._group.keys()):
            self.discard()
            return {}
        with warnings.catch_warnings():
            # "not part of the Zarr specification yet", but common readers support it.
            warnings.simplefilter("ignore")
            zarr.consolidate_metadata(self.store)
        return {
            path: written
            for files in self._chunk_files.values()
            for path, written, mtime_ns in files.values()
            if path.is_file() and path.stat().st_mtime_ns == mtime_ns
        }

    def discard(self) -> None:
        """Drop what is pending and remove the store."""
        self._writer.close()
        remove_tree(self.path)

    def _create(self, array: OutputArray, options: Mapping[str, Any]) -> None:
        dtype = array.dtype
        fill_value: Any = np.nan if dtype.kind == "f" else np.zeros((), dtype)[()]
        defaults = {"fill_value": fill_value, "compressors": self.zarr_codecs}
        created = self._create_array(array, array.chunks, **{**defaults, **options})
        [*others, last] = getattr(created.metadata, "codecs", (None, None))
        # Codecs that change nothing: native byte order, or single bytes.
        plain = not others and last in (BytesCodec(), BytesCodec(endian=None)) and dtype.isnative
        array.takes_chunks = plain and created.chunks == array.chunks and not created.shards

    def _create_coordinate(self, array: OutputArray, values: NDArray[Any]) -> None:
        chunks = tuple(max(size, 1) for size in array.shape)
        self._create_array(array, chunks, fill_value=None, compressors=None)[...] = values

    def _create_array(
        self, array: OutputArray, chunks: tuple[int, ...], **options: Any
    ) -> zarr.Array[Any]:
        layout: dict[str, Any] = {
            "shape": array.shape,
            "chunks": chunks,
            "dtype": array.dtype,
            "dimension_names": list(array.dims),
            # Otherwise all-NaN chunks would have no file, like those that were not written.
            "config": ArrayConfig.from_dict({"write_empty_chunks": True}),
        }
        with warnings.catch_warnings():
            # Zarr v3 has no stable data type for times; Earth2Studio stores them like this, too.
            warnings.simplefilter("ignore", UnstableSpecificationWarning)
            options = {"chunk_key_encoding": _SEPARATOR, **options}
            created = self._group.create_array(array.name, **layout, **options)
        array.handle = adopted = self._root.adopt(array.name, created)
        return adopted

    def _write_chunk(self, array: OutputArray, index: Index, tensor: Any) -> None:
        def write(values: NDArray[Any]) -> None:
            self._write_file(array, index, values)
            array.record_chunk(index, values)

        self._writer.put(
            f"{array.name}{index}",
            tuple(tensor.shape),
            array.dtype,
            lambda memory: copy_to(memory, tensor),
            write,
        )

    def _write_file(self, array: OutputArray, index: Index, values: NDArray[Any]) -> None:
        key = ".".join(["c", *map(str, index)])
        path = self.path / array.name / key
        # Buffered: on a full disk an unbuffered write stores a part and only returns its size.
        with path.open("wb") as file:
            file.write(values.data)
        written = StoredObject(key, values.nbytes, hashlib.sha256(values.data).hexdigest())
        files = self._chunk_files.setdefault(array.name, {})
        files[index] = path, written, path.stat().st_mtime_ns

    def _write_part(self, array: OutputArray, selection: Selection, values: NDArray[Any]) -> None:
        files = self._chunk_files.get(array.name, {})
        for index in files.keys() & array.chunks_of(selection):
            del files[index]
        zarr.Array.__setitem__(array.handle, _selector(selection), values)

    def before_direct_write(self, name: str) -> None:
        """Prepare for values that the class sets in an array itself."""
        self.flush()
        self._chunk_files.pop(name, None)
        if name in self._arrays:
            self._arrays[name].is_unaccounted = True

    def _read(self, array: OutputArray, selection: Selection) -> NDArray[Any]:
        return np.asarray(array.handle[_selector(selection)])


def _selector(selection: Selection) -> Any:
    if not selection:
        return ...
    if all(len(p) and np.array_equal(p, np.arange(p[0], p[0] + len(p))) for p in selection):
        return tuple(slice(int(p[0]), int(p[-1]) + 1) for p in selection)
    return np.ix_(*selection)


class _NetCDFAttributes:
    """Keeps attributes as netCDF4 does: ``array.units = "K"``."""

    def __getattr__(self: Any, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        try:
            return self.attrs[name]
        except KeyError:
            raise AttributeError(f"{self} has neither a member nor an attribute {name}") from None

    def __setattr__(self: Any, name: str, value: Any) -> None:
        if name.startswith("_") or hasattr(type(self), name):
            object.__setattr__(self, name, value)
            return
        self.attrs[name] = _plain(value)


class _Array(_NetCDFAttributes, zarr.Array[Any]):
    """An array that accounts for direct writes."""

    def __init__(self, node: Any, output: ZarrOutput | None = None) -> None:
        super().__init__(node)
        self._output = output

    def __getitem__(self, selection: Any) -> Any:
        if self._output is not None:
            self._output.flush()
        return super().__getitem__(selection)

    def __setitem__(self, selection: Any, value: Any) -> None:
        if self._output is not None:
            self._output.before_direct_write(self.basename)
        super().__setitem__(selection, value)


class _Root(_NetCDFAttributes, zarr.Group):
    """A group of such arrays."""

    def __init__(self, node: Any, output: ZarrOutput | None = None) -> None:
        super().__init__(node)
        object.__setattr__(self, "_output", output)
        object.__setattr__(self, "_known", {})

    def __getitem__(self, path: str) -> Any:
        # One object per array: each caches the metadata that it read first, so a second object
        # would overwrite attributes set through the first.
        if path not in self._known:
            self._known[path] = self._opened(path)
        return self._known[path]

    def adopt(self, path: str, created: zarr.Array[Any]) -> zarr.Array[Any]:
        """Return the object that represents a newly created array from now on."""
        array = self._known[path] = _Array(created._async_array, self._output)
        return array

    def _opened(self, path: str) -> Any:
        found = super().__getitem__(path)
        wrap = _Array if isinstance(found, zarr.Array) else _Root
        node = found._async_array if isinstance(found, zarr.Array) else found._async_group
        return wrap(node, self._output)


def _plain(value: Any) -> Any:
    """Return NumPy values as JSON values; netCDF4 accepts them as attributes, too."""
    if isinstance(value, (np.generic, np.ndarray)):
        return value.tolist()
    if isinstance(value, (list, tuple)):
        return [_plain(each) for each in value]
    return value
