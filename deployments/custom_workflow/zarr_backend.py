"""The output of a user's workflow as Zarr; threads write whole chunks."""

from __future__ import annotations

import hashlib
import os
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.codecs import BytesCodec
from zarr.core.array_spec import ArrayConfig
from zarr.errors import UnstableSpecificationWarning
from zarr.storage import LocalStore

from deployments.custom_workflow.arguments import copy_to
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
from deployments.custom_workflow.write_behind import WriteBehind
from deployments.custom_workflow.zarr_group import RootGroup
from deployments.custom_workflow.zarr_store import ObservedStore, store_empty_chunks, unmark
from deployments.results.work import StoredObject
from deployments.results.zarr import make_chunk_folders, missing_value
from deployments.runtime.files import remove_tree

_FileState = tuple[int, int, int]
"""Inode, size and modification time in nanoseconds: they show that a file was changed."""
_BACKDATED_NS = 2_000_000_000
"""How much older than they are files are made to look: longer than the tick of any file system."""


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
        store_empty_chunks()
        self._writer = writer
        self._marked: set[str] = set()
        self._is_shared = False
        self._files: dict[str, tuple[str, StoredObject, _FileState]] = {}
        """Chunks written here by key: array, content, state of the file."""
        self._store = ObservedStore(LocalStore(path), self)
        self.zarr_codecs = None
        zarr.create_group(LocalStore(path), overwrite=True)
        self._group = zarr.open_group(self._store, mode="r+", use_consolidated=False)
        self._root = RootGroup(self._group._async_group, self.array_options)

    @property
    def store(self) -> ObservedStore:
        """The store; values may be written to it by other means."""
        return self._store

    @property
    def root(self) -> zarr.Group:
        """The group; attributes set on it and its arrays are kept."""
        return self._root

    @property
    def _members(self) -> Any:
        return self._group

    @property
    def chunks(self) -> dict[str, int]:
        """Size of chunks along each dimension."""
        return {
            dim: size
            for each in self._arrays.values()
            for dim, size in zip(each.dims, each.chunks, strict=True)
        }

    def write(self, x: Any, coords: Mapping[str, NDArray[Any]], array_name: Any) -> None:
        """Write values at coordinates of arrays, see `Output.write`."""
        super().write(x, coords, array_name)
        if self._is_shared:
            self.flush()

    def flush(self) -> None:
        """Wait until all pending chunks are written."""
        self._writer.flush()

    def finish(self, keep_empty: bool = False) -> dict[Path, StoredObject]:
        """Write what is pending and consolidate the metadata; return the chunks written here."""
        self.flush()
        self._writer.close()
        store = LocalStore(self.path)
        try:
            group = zarr.open_group(store, mode="r", use_consolidated=False)
        except FileNotFoundError:  # the class removed it
            self.discard()
            return {}
        members = dict(group.members(max_depth=None))
        if not members and not keep_empty:
            self.discard()
            return {}
        known = {
            key: (name, written)
            for key, (name, written, state) in self._files.items()
            if (self.path / key).is_file() and _state(self.path / key) == state
        }
        counts = Counter(name for name, _ in known.values())
        for name in sorted(members, key=[*self._arrays, *sorted(members)].index):
            array = members[name]
            if isinstance(array, zarr.Array):
                if array.shape and not self.coverage.is_coordinate(name, _dims(array)):
                    found = self._found(name, array, known, counts[name])
                    self.coverage.record(name, array.size, found)
                if name in self._marked:
                    unmark(self.path / name)
        with warnings.catch_warnings():
            # "not part of the Zarr specification yet", but common readers support it.
            warnings.simplefilter("ignore")
            zarr.consolidate_metadata(store)
        return {self.path / key: written for key, (_, written) in known.items()}

    def discard(self) -> None:
        """Drop what is pending and remove the store."""
        self._writer.close()
        remove_tree(self.path)

    # Observer of the store.

    def note_change(self, key: str) -> None:
        """Forget the checksum of a chunk."""
        self._files.pop(key, None)

    def note_removal(self, folder: str) -> None:
        """Forget everything below a folder."""
        below = f"{folder}/".lstrip("/")
        for key in [key for key in self._files if key.startswith(below)]:
            del self._files[key]
        for name in [name for name in self._arrays if f"{name}/".startswith(below)]:
            del self._arrays[name]
        self._root.forget(below)

    def share(self) -> None:
        """Write without delay from now on, see `Output.share`."""
        self._is_shared = True
        super().share()

    def is_marked(self, name: str) -> bool:
        """Return whether an array's fill value is that of `unwritten`."""
        return name in self._marked

    def array_options(self, name: str, dtype: Any, options: dict[str, Any]) -> dict[str, Any]:
        """Return options of a new array: it is filled with NaN, if it can be."""
        try:
            dtype = np.dtype(dtype)
        except TypeError:  # a data type of Zarr's own
            return options
        fill = options.get("fill_value")
        if dtype.kind != "f" or (fill is not None and not np.isnan(float(fill))):
            self._marked.discard(name)
            return options
        self._marked.add(name)
        return {**options, "fill_value": unwritten(dtype)}

    # Arrays.

    def _create(self, array: OutputArray, options: Mapping[str, Any]) -> None:
        fill_value = unwritten(array.dtype)
        defaults = {"fill_value": fill_value, "compressors": self.zarr_codecs}
        options = self.array_options(array.name, array.dtype, {**defaults, **options})
        created = self._create_array(array, array.chunks, **options)
        [*others, last] = getattr(created.metadata, "codecs", (None, None))
        # Codecs that change nothing: native byte order, or single bytes.
        plain = (
            not others and last in (BytesCodec(), BytesCodec(endian=None)) and array.dtype.isnative
        )
        array.takes_chunks = plain and created.chunks == array.chunks and not created.shards

    def _create_coordinate(self, array: OutputArray, values: NDArray[Any]) -> None:
        chunks = tuple(max(size, 1) for size in array.shape)
        fill_value = missing_value(array.dtype)
        self._create_array(array, chunks, fill_value=fill_value, compressors=None)[...] = values

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
            created = self._group.create_array(array.name, **layout, **options)
        array.handle = adopted = self._root.adopt(array.name, created)
        return adopted

    def _opened(self, name: str) -> OutputArray:
        found = self._root[name]
        if not isinstance(found, zarr.Array):
            raise ValueError(f"{name} is a group")
        return OutputArray(name, _dims(found), found.shape, found.chunks, found.dtype, handle=found)

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
        key = f"{array.name}/{array.handle.metadata.encode_chunk_key(index)}"
        path = self.path / key
        try:
            file = path.open("wb")
        except FileNotFoundError:
            make_chunk_folders(self.path, key)
            file = path.open("wb")
        # Buffered: on a full disk an unbuffered write stores a part and only returns its size.
        with file:
            file.write(values.data)
        written = StoredObject(key, values.nbytes, hashlib.sha256(values.data).hexdigest())
        # The time of files advances in ticks of milliseconds: another change in this one must show.
        inode, size, mtime_ns = _state(path)
        backdated_ns = mtime_ns - _BACKDATED_NS
        os.utime(path, ns=(backdated_ns, backdated_ns))
        self._files[key] = array.name, written, (inode, size, backdated_ns)

    def _write_part(self, array: OutputArray, selection: Selection, values: NDArray[Any]) -> None:
        array.handle[_selector(selection)] = values

    def _read(self, array: OutputArray, selection: Selection) -> NDArray[Any]:
        return np.asarray(array.handle[_selector(selection)])

    def _found(
        self, name: str, array: zarr.Array[Any], known: Mapping[str, Any], n_known: int
    ) -> Iterator[Found]:
        """Yield what is stored of each chunk; chunks written whole and unchanged are not read."""
        added = self._arrays.get(name)
        has_values = added is not None and added.has_values
        chunks = array.shards or array.chunks
        if n_known == np.prod([-(-s // c) for s, c in zip(array.shape, chunks, strict=True)]):
            yield Found(array.size, has_values)
            return
        # Other fill values occur in data, too: there, an existing chunk counts as written.
        fill = array.fill_value
        if array.dtype.kind != "f" or fill is None or not np.isnan(fill):
            fill = None
        for index, where in blocks(array.shape, chunks):
            key = f"{name}/{array.metadata.encode_chunk_key(index)}"
            if key in known:
                yield Found(int(np.prod([w.stop - w.start for w in where])), has_values)
            elif (self.path / key).is_file():
                yield look_at(np.asarray(array[where]), fill)


def _state(path: Path) -> _FileState:
    state = path.stat()
    return state.st_ino, state.st_size, state.st_mtime_ns


def _dims(array: zarr.Array[Any]) -> tuple[str, ...]:
    """Return the names of an array's dimensions; none if they have no names."""
    names: Any = getattr(array.metadata, "dimension_names", None) or array.attrs.get(
        "_ARRAY_DIMENSIONS"
    )
    return tuple(names) if names and all(names) else ()


def _selector(selection: Selection) -> Any:
    if not selection:
        return ...
    if all(len(p) and np.array_equal(p, np.arange(p[0], p[0] + len(p))) for p in selection):
        return tuple(slice(int(p[0]), int(p[-1]) + 1) for p in selection)
    return np.ix_(*selection)
