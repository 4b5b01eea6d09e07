"""A user's workflow writes Zarr: whole maps as files, all else through zarr-python."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.codecs import BytesCodec
from zarr.core.array_spec import ArrayConfig
from zarr.errors import UnstableSpecificationWarning

from deployments.custom_workflow.backend import Field, Index, Output
from deployments.custom_workflow.write_behind import WriteBehind
from deployments.results.protocols import StoredObject
from deployments.runtime.files import remove_tree

_SEPARATOR = {"name": "default", "separator": "."}
"""Chunks lie side by side, see `deployments.results.zarr`."""


class ZarrOutput(Output):
    """An Earth2Studio ``ZarrBackend`` that writes behind the loop; see `Output`."""

    def __init__(
        self,
        path: Path,
        writer: WriteBehind,
        max_bytes: int,
        check: Callable[[], None] = lambda: None,
    ) -> None:
        super().__init__(path, writer, max_bytes, check)
        self.store = zarr.storage.LocalStore(path)
        self.zarr_codecs = None
        self._group = zarr.create_group(self.store, overwrite=True)
        self._root = _Root(self._group._async_group, self)
        self._chunk_files: dict[str, dict[Index, tuple[Path, StoredObject, int]]] = {}
        """By array, files of chunks as they were written, and when, in nanoseconds."""

    @property
    def root(self) -> zarr.Group:
        """Give the group; attributes set on it and its arrays are kept."""
        return self._root

    @property
    def chunks(self) -> dict[str, int]:
        """Give the size of chunks along each dimension."""
        return {
            dim: size
            for each in self.fields.values()
            for dim, size in zip(each.dims, each.chunks, strict=True)
        }

    def finish(self) -> dict[Path, StoredObject]:
        """Write what is pending, consolidate the metadata, and tell which chunks are known."""
        self.flush()
        if not self.fields and not list(self._group.keys()):
            self.discard()
            return {}
        with warnings.catch_warnings():
            # "not part of the Zarr specification yet": every reader that we know takes it.
            warnings.simplefilter("ignore")
            zarr.consolidate_metadata(self.store)
        return {
            path: written
            for files in self._chunk_files.values()
            for path, written, at in files.values()
            if path.is_file() and path.stat().st_mtime_ns == at
        }

    def discard(self) -> None:
        """Remove the store."""
        remove_tree(self.path)

    def _create(
        self,
        name: str,
        dims: tuple[str, ...],
        shape: tuple[int, ...],
        chunks: tuple[int, ...],
        dtype: np.dtype[Any],
        options: Mapping[str, Any],
    ) -> tuple[Any, bool]:
        fill_value: Any = np.nan if dtype.kind == "f" else np.zeros((), dtype)[()]
        array = self._create_array(
            name,
            shape=shape,
            chunks=chunks,
            dtype=dtype,
            dimension_names=list(dims),
            **{
                "fill_value": fill_value,
                "chunk_key_encoding": _SEPARATOR,
                "compressors": self.zarr_codecs,
                **options,
            },
        )
        [*others, last] = getattr(array.metadata, "codecs", (None, None))
        # What does nothing: the order of bytes is this machine's, or there is only one.
        plain = not others and last in (BytesCodec(), BytesCodec(endian=None)) and dtype.isnative
        return array, plain and array.chunks == chunks and not array.shards

    def _create_coordinate(self, name: str, dims: tuple[str, ...], values: NDArray[Any]) -> Any:
        array = self._create_array(
            name,
            shape=values.shape,
            chunks=tuple(max(size, 1) for size in values.shape),
            dtype=values.dtype,
            dimension_names=list(dims),
            fill_value=None,
            chunk_key_encoding=_SEPARATOR,
            compressors=None,
        )
        array[...] = values
        return array

    def _create_array(self, name: str, **options: Any) -> zarr.Array[Any]:
        # All-NaN chunks would leave no file: what was written could not be told from what was not.
        config = ArrayConfig.from_dict({"write_empty_chunks": True})
        with warnings.catch_warnings():
            # Times have no Zarr v3 data type yet; Earth2Studio stores them like this, too.
            warnings.simplefilter("ignore", UnstableSpecificationWarning)
            created = self._group.create_array(name, config=config, **options)
        return self._root.adopt(name, created)

    def _write_chunk(self, target: Field, index: Index, values: NDArray[Any]) -> None:
        key = ".".join(["c", *map(str, index)])
        path = self.path / target.name / key
        # Not unbuffered: on a full disk that writes a part, and tells it only by its result.
        with path.open("wb") as file:
            file.write(values.data)
        written = StoredObject(key, values.nbytes, hashlib.sha256(values.data).hexdigest())
        files = self._chunk_files.setdefault(target.name, {})
        files[index] = path, written, path.stat().st_mtime_ns

    def _write_part(
        self, target: Field, selection: Sequence[NDArray[np.intp]], values: NDArray[Any]
    ) -> None:
        files = self._chunk_files.get(target.name, {})
        for index in files.keys() & target.chunks_of(selection):
            del files[index]
        zarr.Array.__setitem__(target.handle, _selector(selection), values)

    def touched(self, name: str) -> None:
        """Note that the class sets values of an array by itself."""
        self.flush()
        self._chunk_files.pop(name, None)
        if name in self.fields:
            self.fields[name].by_hand = True

    def _read(self, target: Field, selection: Sequence[NDArray[np.intp]]) -> NDArray[Any]:
        return np.asarray(target.handle[_selector(selection)])


def _selector(selection: Sequence[NDArray[np.intp]]) -> Any:
    if not selection:
        return ...
    if all(len(p) and np.array_equal(p, np.arange(p[0], p[0] + len(p))) for p in selection):
        return tuple(slice(int(p[0]), int(p[-1]) + 1) for p in selection)
    return np.ix_(*selection)


class _Array(zarr.Array[Any]):
    """An array that keeps attributes as netCDF4's variables do: ``array.units = "K"``."""

    def __init__(self, node: Any, output: ZarrOutput | None = None) -> None:
        super().__init__(node)
        self._output = output

    def __getitem__(self, selection: Any) -> Any:
        if self._output is not None:
            self._output.flush()
        return super().__getitem__(selection)

    def __setitem__(self, selection: Any, value: Any) -> None:
        if self._output is not None:
            self._output.touched(self.basename)
        super().__setitem__(selection, value)

    def __getattr__(self, name: str) -> Any:
        return _attribute(self, name)

    def __setattr__(self, name: str, value: Any) -> None:
        _set_attribute(self, name, value)


class _Root(zarr.Group):
    """A group whose arrays, and itself, keep attributes as netCDF4's do."""

    def __init__(self, node: Any, output: ZarrOutput | None = None) -> None:
        super().__init__(node)
        object.__setattr__(self, "_output", output)
        object.__setattr__(self, "_known", {})

    def __getitem__(self, path: str) -> Any:
        # One object for each array: zarr's keep the metadata that they saw first, and one would
        # overwrite what was set through another.
        if path not in self._known:
            self._known[path] = self._opened(path)
        return self._known[path]

    def adopt(self, path: str, created: zarr.Array[Any]) -> zarr.Array[Any]:
        """Show an array that was created a moment ago."""
        array = self._known[path] = _Array(created._async_array, self._output)
        return array

    def _opened(self, path: str) -> Any:
        found = super().__getitem__(path)
        wrap = _Array if isinstance(found, zarr.Array) else _Root
        node = found._async_array if isinstance(found, zarr.Array) else found._async_group
        return wrap(node, self._output)

    def __getattr__(self, name: str) -> Any:
        return _attribute(self, name)

    def __setattr__(self, name: str, value: Any) -> None:
        _set_attribute(self, name, value)


def _attribute(node: Any, name: str) -> Any:
    if name.startswith("_"):
        raise AttributeError(name)
    try:
        return node.attrs[name]
    except KeyError:
        raise AttributeError(f"{node} has neither a member nor an attribute {name}") from None


def _set_attribute(node: Any, name: str, value: Any) -> None:
    if name.startswith("_") or hasattr(type(node), name):
        object.__setattr__(node, name, value)
        return
    node.attrs[name] = _plain(value)


def _plain(value: Any) -> Any:
    """Give what JSON takes for numbers of NumPy's, as netCDF4 takes them as well."""
    if isinstance(value, (np.generic, np.ndarray)):
        return value.tolist()
    if isinstance(value, (list, tuple)):
        return [_plain(each) for each in value]
    return value
