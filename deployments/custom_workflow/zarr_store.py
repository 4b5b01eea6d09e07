"""The Zarr store that a class uses: every access waits for pending writes and is observed.

A class may write by any way that leads to the store: ``io.root``, ``io.store``, xarray, or another
process. Pending chunks must be on disk before that, and the account of what the backend itself
wrote must include it.
"""

from __future__ import annotations

import json
import os
from collections.abc import AsyncGenerator, Iterable
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import zarr
from zarr.abc.store import ByteRequest
from zarr.core.buffer import Buffer, BufferPrototype
from zarr.storage import LocalStore, WrapperStore

from deployments.custom_workflow.coverage import unwritten

METADATA = ("zarr.json", ".zarray", ".zattrs", ".zgroup", ".zmetadata")

_UNWRITTEN = {
    f"float{8 * size}": f"0x{int(unwritten(np.dtype(f'f{size}')).view(f'u{size}')):0{2 * size}x}"
    for size in (4, 8)
}
"""The fill value as Zarr's specification writes a NaN with certain bits, by data type."""


class Observer(Protocol):
    """Observes changes to a store."""

    def flush(self) -> None:
        """Write everything that is pending."""

    def note_change(self, key: str) -> None:
        """Handle the write or removal of a chunk."""

    def note_removal(self, folder: str) -> None:
        """Handle the removal of everything below a folder."""

    def share(self) -> None:
        """Write what is pending, and write at once from now on: the folder may be used directly."""

    def is_marked(self, name: str) -> bool:
        """Return whether an array has the fill value `unwritten`."""


class ObservedStore(WrapperStore[LocalStore]):
    """A folder with an observer of all accesses.

    Zarr-Python reads, but does not write, fill values that are NaN with certain bits. This store
    puts them into the metadata of the observer's arrays, so that other processes fill with them.
    """

    def __init__(self, store: LocalStore, observer: Observer) -> None:
        super().__init__(store)
        self._observer = observer

    def _with_store(self, store: LocalStore) -> ObservedStore:
        return type(self)(store, self._observer)

    @property
    def root(self) -> Path:
        """The folder."""
        self._observer.share()
        return self._store.root

    def __str__(self) -> str:
        self._observer.share()
        return str(self._store)

    async def get(
        self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None
    ) -> Buffer | None:
        """Read, after pending writes."""
        self._flush_before(key)
        return await super().get(key, prototype, byte_range)

    async def get_partial_values(
        self,
        prototype: BufferPrototype,
        key_ranges: Iterable[tuple[str, ByteRequest | None]],
    ) -> list[Buffer | None]:
        """Read parts, after pending writes."""
        self._observer.flush()
        return await super().get_partial_values(prototype, key_ranges)

    async def _get_many(
        self, requests: Iterable[tuple[str, BufferPrototype, ByteRequest | None]]
    ) -> AsyncGenerator[tuple[str, Buffer | None], None]:
        for request in requests:
            yield request[0], await self.get(*request)

    async def set(self, key: str, value: Buffer) -> None:
        """Write, after pending writes."""
        self._before_change(key)
        await super().set(key, self._marked(key, value))

    async def set_if_not_exists(self, key: str, value: Buffer) -> None:
        """Write unless the key exists, after pending writes."""
        self._before_change(key)
        await super().set_if_not_exists(key, self._marked(key, value))

    async def _set_many(self, values: Iterable[tuple[str, Buffer]]) -> None:
        for key, value in values:
            await self.set(key, value)

    async def delete(self, key: str) -> None:
        """Remove a key, after pending writes."""
        self._before_change(key)
        await super().delete(key)

    async def delete_dir(self, prefix: str) -> None:
        """Remove a folder, after pending writes."""
        self._observer.flush()
        self._observer.note_removal(prefix)
        await super().delete_dir(prefix)

    async def clear(self) -> None:
        """Remove everything, after pending writes."""
        self._observer.flush()
        self._observer.note_removal("")
        await super().clear()

    def _flush_before(self, key: str) -> None:
        if not key.endswith(METADATA):
            self._observer.flush()

    def _before_change(self, key: str) -> None:
        if not key.endswith(METADATA):
            self._observer.flush()
            self._observer.note_change(key)

    def _marked(self, key: str, value: Buffer) -> Buffer:
        """Return metadata with the fill values that Zarr-Python cannot write."""
        folder, _, name = key.rpartition("/")
        if name != "zarr.json":
            return value
        metadata = json.loads(value.to_bytes())
        self._mark(folder, metadata)
        return type(value).from_bytes(json.dumps(metadata, indent=2).encode())

    def _mark(self, folder: str, metadata: dict[str, Any]) -> None:
        if metadata.get("fill_value") == "NaN" and self._observer.is_marked(folder):
            metadata["fill_value"] = _UNWRITTEN.get(metadata["data_type"], "NaN")
        consolidated = metadata.get("consolidated_metadata") or {}
        for name, child in consolidated.get("metadata", {}).items():
            self._mark(f"{folder}/{name}".lstrip("/"), child)


def unmark(folder: Path) -> None:
    """Replace the fill value of a finished array by NaN, which every reader knows."""
    path = folder / "zarr.json"
    metadata = json.loads(path.read_text())
    if metadata.get("fill_value") in _UNWRITTEN.values():
        path.write_text(json.dumps({**metadata, "fill_value": "NaN"}, indent=2))


def store_empty_chunks() -> None:
    """Have this process and its children store chunks that equal the fill value.

    Otherwise such a chunk, which a class may write on purpose, looks like an unwritten one.
    """
    zarr.config.set({"array.write_empty_chunks": True})
    os.environ["ZARR_ARRAY__WRITE_EMPTY_CHUNKS"] = "True"
