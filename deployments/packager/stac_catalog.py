"""The static STAC catalogue beside the results, for users without a catalogue service.

::

    {results_dir}/catalog.json
    {results_dir}/{workflow}/collection.json
    {results_dir}/{workflow}/{execution_id}/item.json          refer to each other only
                                            collection.json

Links are relative, so the folder can be moved and opened anywhere. pystac is not used for writing:
it takes twice as long for thousands of items.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import secrets
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deployments.results.names import PARTIAL
from workflows.manifest import CHECKSUMS
from workflows.stac.collection import collection_of, default_collection_id
from workflows.stac.item import CATALOG, COLLECTION, ITEM, PREFIX, STAC_VERSION
from workflows.stac.renders import DATA

logger = logging.getLogger("ray.serve")

UPDATE_DELAY_S = 0.25
"""One update serves all executions that end within this time."""

BBox = tuple[float, float, float, float]
"""West, south, east, north."""
Fingerprint = tuple[int, ...]

_JSON = "application/json"


class CatalogUpdater:
    """Updates a catalogue in the background, some time after each change.

    Executions do not wait for the catalogue, and do not fail if it cannot be updated.
    """

    def __init__(self, catalog: StaticCatalog, delay_s: float = UPDATE_DELAY_S) -> None:
        self._catalog = catalog
        self._delay_s = delay_s
        self._scheduled: set[str] = set()
        self._lock = threading.Lock()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="catalog")

    def schedule(self, workflow: str) -> None:
        """Schedule an update of one workflow's collection; return immediately."""
        with self._lock:
            if workflow in self._scheduled:
                return
            self._scheduled.add(workflow)
        self._thread.submit(self._update, workflow)

    def _update(self, workflow: str) -> None:
        time.sleep(self._delay_s)
        with self._lock:
            self._scheduled.discard(workflow)
        try:
            self._catalog.update(workflow)
        except Exception:
            logger.exception("the static catalogue of %s is not up to date", workflow)


@dataclass(frozen=True)
class _Item:
    """What a collection needs from one of its items."""

    folder: str
    id: str
    bbox: BBox
    start: str
    end: str
    created: str
    media_type: str
    synthetic: bool

    @property
    def link(self) -> dict[str, str]:
        """Link from the collection to the item."""
        href = f"./{self.folder}/{ITEM}"
        return {"rel": "item", "href": href, "type": "application/geo+json", "title": self.id}


class StaticCatalog:
    """Writes the collections and the root of the catalogue from the items on disk.

    Any number of threads and processes may update it concurrently. Files appear complete; unchanged
    items are not read again and unchanged documents are not written again.
    """

    def __init__(self, results_dir: Path) -> None:
        self._results_dir = Path(results_dir)
        self._partial = self._results_dir / PARTIAL
        self._known: dict[str, dict[str, tuple[Fingerprint, _Item | None]]] = {}
        """By workflow and folder; None for an item that cannot be used."""

    def update(self, workflow: str) -> None:
        """Update the collection of one workflow, and the root, from the items.

        A collection without items is removed, with the root's link to it.
        """
        with self._locked():
            path = self._results_dir / workflow / COLLECTION
            collection = self._collection(workflow, self._items(workflow))
            if collection is None:
                path.unlink(missing_ok=True)
            else:
                self._write(path, collection)
            found = sorted(each.parent.name for each in self._results_dir.glob(f"*/{COLLECTION}"))
            self._write(self._results_dir / CATALOG, _root(found))

    @contextmanager
    def _locked(self) -> Iterator[None]:
        self._partial.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(
            self._partial / "catalog.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600
        )
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)

    def _items(self, workflow: str) -> list[_Item]:
        """Return the items of a workflow in the order of their folders."""
        known = self._known.get(workflow, {})
        current: dict[str, tuple[Fingerprint, _Item | None]] = {}
        for folder, fingerprint in _fingerprints(self._results_dir / workflow):
            previous = known.get(folder)
            if previous is not None and previous[0] == fingerprint:
                current[folder] = previous
            else:
                current[folder] = fingerprint, self._read(workflow, folder)
        self._known[workflow] = current
        return [item for _, (_, item) in sorted(current.items()) if item is not None]

    def _read(self, workflow: str, folder: str) -> _Item | None:
        path = self._results_dir / workflow / folder / ITEM
        try:
            return _parse_item(path, json.loads(path.read_bytes()), workflow)
        except (OSError, ValueError, LookupError, TypeError) as error:
            logger.warning(
                "the STAC item of %s is left out of the catalogue: %r",
                folder,
                error,
                extra={"execution_id": folder},
            )
            return None

    def _collection(self, workflow: str, items: list[_Item]) -> dict[str, Any] | None:
        """Return the collection; None if all items have been removed."""
        example = self._newest(workflow, items)
        if example is None:
            return None
        example["properties"][f"{PREFIX}:synthetic"] = any(item.synthetic for item in items)
        document = collection_of(example)
        if len({item.media_type for item in items}) > 1:
            data = document["item_assets"][DATA]
            document["item_assets"][DATA] = {
                name: data[name] for name in ("roles", "description") if name in data
            }
        start, end = min(item.start for item in items), max(item.end for item in items)
        document["extent"] = {
            "spatial": {"bbox": [_union(item.bbox for item in items)]},
            "temporal": {"interval": [[start, end]]},
        }
        document["links"] = [
            {"rel": "root", "href": f"../{CATALOG}", "type": _JSON},
            {"rel": "parent", "href": f"../{CATALOG}", "type": _JSON},
            *(item.link for item in items),
        ]
        return document

    def _newest(self, workflow: str, items: list[_Item]) -> dict[str, Any] | None:
        """Return the newest item, from which the collection takes what all have in common."""
        for item in sorted(items, key=lambda item: (item.created, item.folder), reverse=True):
            # Results can be removed at any time.
            with suppress(OSError, ValueError):
                path = self._results_dir / workflow / item.folder / ITEM
                newest: dict[str, Any] = json.loads(path.read_bytes())
                return newest
        return None

    def _write(self, path: Path, document: Mapping[str, Any]) -> None:
        """Replace a file, unless its content is the same."""
        content = json.dumps(document, indent=1).encode()
        try:
            if path.read_bytes() == content:
                return
        except FileNotFoundError:
            pass
        draft = self._partial / secrets.token_hex(8)
        try:
            draft.write_bytes(content)
            draft.replace(path)
        finally:
            draft.unlink(missing_ok=True)


def _fingerprints(folder: Path) -> Iterator[tuple[str, Fingerprint]]:
    """Yield the folder of every item, and a value that changes with the item or its folder."""
    try:
        entries = list(os.scandir(folder))
    except FileNotFoundError:
        return
    for entry in entries:
        try:
            item, parent = os.stat(f"{entry.path}/{ITEM}"), entry.stat()
            # Written last: without it the execution is running, or failed and may be retried.
            os.stat(f"{entry.path}/{CHECKSUMS}")
        except (FileNotFoundError, NotADirectoryError):
            continue
        yield (
            entry.name,
            (item.st_ino, item.st_mtime_ns, item.st_size, parent.st_ino, parent.st_mtime_ns),
        )


def _parse_item(path: Path, item: Any, workflow: str) -> _Item:
    """Parse an item.

    Raises FileNotFoundError if an asset does not exist; ValueError, LookupError or TypeError if the
    item does not belong to this catalogue, or lacks a property.
    """
    if item["collection"] != default_collection_id(workflow):
        raise ValueError(f"it belongs to the collection {item['collection']}")
    for asset in item["assets"].values():
        (path.parent / asset["href"]).stat()
    west, south, east, north = map(float, item["bbox"])
    properties = item["properties"]
    return _Item(
        folder=path.parent.name,
        id=item["id"],
        bbox=(west, south, east, north),
        start=properties["start_datetime"],
        end=properties["end_datetime"],
        created=properties["created"],
        media_type=item["assets"][DATA]["type"],
        synthetic=properties.get(f"{PREFIX}:synthetic", False),
    )


def _union(boxes: Iterable[BBox]) -> list[float]:
    distinct = set(boxes)
    if len(distinct) == 1:
        return list(distinct.pop())
    west, south, east, north = zip(*distinct, strict=True)
    if any(box[0] > box[2] for box in distinct):
        # A box crosses the antimeridian: a narrower union could leave it out.
        return [-180.0, min(south), 180.0, max(north)]
    return [min(west), min(south), max(east), max(north)]


def _root(workflows: list[str]) -> dict[str, Any]:
    children = [
        {"rel": "child", "href": f"./{workflow}/{COLLECTION}", "type": _JSON, "title": workflow}
        for workflow in workflows
    ]
    return {
        "type": "Catalog",
        "stac_version": STAC_VERSION,
        "id": PREFIX,
        "title": "Results of earth2serve",
        "description": "Forecasts in this folder, one collection for each workflow.",
        "links": [
            {"rel": "root", "href": f"./{CATALOG}", "type": _JSON, "title": "Results"},
            *children,
        ],
    }
