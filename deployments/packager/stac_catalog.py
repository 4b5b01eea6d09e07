"""The static STAC catalogue beside the results, for people who have no catalogue service.

::

    {results_dir}/catalog.json
    {results_dir}/{workflow}/collection.json
    {results_dir}/{workflow}/{execution_id}/item.json

Its links are relative, so that the folder can be moved and opened anywhere. pystac is left to those
who read it: here it would take twice as long for thousands of items, and all links are known.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import secrets
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deployments.results.manifest import CHECKSUMS
from workflows.stac.collection import collection_of, default_collection_id
from workflows.stac.item import CATALOG, COLLECTION, ITEM, PREFIX, STAC_VERSION
from workflows.stac.renders import DATA

logger = logging.getLogger("ray.serve")

Stamp = tuple[int, ...]

_JSON = "application/json"


@dataclass(frozen=True)
class _Item:
    """What a collection says of one of its items."""

    folder: str
    id: str
    bbox: tuple[float, float, float, float]
    start: str
    end: str
    created: str
    media_type: str
    synthetic: bool

    @property
    def link(self) -> dict[str, str]:
        """The link from the collection."""
        href = f"./{self.folder}/{ITEM}"
        return {"rel": "item", "href": href, "type": "application/geo+json", "title": self.id}


class StaticCatalog:
    """Keeps collections and the root of the catalogue as the items are.

    Parameters
    ----------
    results_dir : Path
        As `deployments.results.store.ResultsStore` has it.

    Notes
    -----
    Any number of threads and processes may update at once. Files appear whole, and what is
    unchanged is neither read nor written again.
    """

    def __init__(self, results_dir: Path) -> None:
        self._results_dir = Path(results_dir)
        self._partial = self._results_dir / ".partial"
        self._known: dict[str, dict[str, tuple[Stamp, _Item | None]]] = {}
        """By workflow and folder; None for an item that cannot be used."""

    def update(self, workflow: str) -> None:
        """Bring the collection of one workflow, and the root, in line with the items there.

        A collection without items goes, and so does the root's link to it.
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
        """Give the items of a workflow in the order of their folders."""
        known = self._known.get(workflow, {})
        seen: dict[str, tuple[Stamp, _Item | None]] = {}
        for folder, stamp in _stamps(self._results_dir / workflow):
            before = known.get(folder)
            if before is not None and before[0] == stamp:
                seen[folder] = before
            else:
                seen[folder] = stamp, self._read(workflow, folder)
        self._known[workflow] = seen
        return [item for _, (_, item) in sorted(seen.items()) if item is not None]

    def _read(self, workflow: str, folder: str) -> _Item | None:
        path = self._results_dir / workflow / folder / ITEM
        try:
            return _summary(path, json.loads(path.read_bytes()), workflow)
        except (OSError, ValueError, LookupError, TypeError) as error:
            logger.warning(
                "the STAC item of %s is left out of the catalogue: %r",
                folder,
                error,
                extra={"execution_id": folder},
            )
            return None

    def _collection(self, workflow: str, items: list[_Item]) -> dict[str, Any] | None:
        """Describe the items together; None if they have all gone meanwhile."""
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
            "spatial": {"bbox": [_around(item.bbox for item in items)]},
            "temporal": {"interval": [[start, end]]},
        }
        document["links"] = [
            {"rel": "root", "href": f"../{CATALOG}", "type": _JSON},
            {"rel": "parent", "href": f"../{CATALOG}", "type": _JSON},
            *(item.link for item in items),
        ]
        return document

    def _newest(self, workflow: str, items: list[_Item]) -> dict[str, Any] | None:
        """Read the newest item: it says what all have in common."""
        for item in sorted(items, key=lambda item: (item.created, item.folder), reverse=True):
            # Somebody may remove it at any time.
            with suppress(OSError, ValueError):
                path = self._results_dir / workflow / item.folder / ITEM
                newest: dict[str, Any] = json.loads(path.read_bytes())
                return newest
        return None

    def _write(self, path: Path, document: Mapping[str, Any]) -> None:
        """Replace a file, unless it says the same already."""
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


def _stamps(folder: Path) -> Iterator[tuple[str, Stamp]]:
    """Give what tells whether an item, or something beside it, was changed since."""
    try:
        entries = list(os.scandir(folder))
    except FileNotFoundError:
        return
    for entry in entries:
        try:
            item, beside = os.stat(f"{entry.path}/{ITEM}"), entry.stat()
            # Written last: without it the execution runs, or has failed and may be tried again.
            os.stat(f"{entry.path}/{CHECKSUMS}")
        except (FileNotFoundError, NotADirectoryError):
            continue
        yield (
            entry.name,
            (item.st_ino, item.st_mtime_ns, item.st_size, beside.st_ino, beside.st_mtime_ns),
        )


def _summary(path: Path, item: Any, workflow: str) -> _Item:
    """Read an item.

    Raises
    ------
    ValueError, LookupError, TypeError
        If it is not an item of this catalogue, or lacks something.
    FileNotFoundError
        If what it refers to is not there.
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


def _around(boxes: Iterable[tuple[float, float, float, float]]) -> list[float]:
    distinct = set(boxes)
    if len(distinct) == 1:
        return list(distinct.pop())
    west, south, east, north = zip(*distinct, strict=True)
    if any(box[0] > box[2] for box in distinct):
        # Across the antimeridian: whatever is narrower may leave one out.
        return [-180.0, min(south), 180.0, max(north)]
    return [min(west), min(south), max(east), max(north)]


def _root(workflows: list[str]) -> dict[str, Any]:
    return {
        "type": "Catalog",
        "stac_version": STAC_VERSION,
        "id": PREFIX,
        "title": "Results of earth2serve",
        "description": "Forecasts that lie in this folder, one collection for each workflow.",
        "links": [
            {"rel": "root", "href": f"./{CATALOG}", "type": _JSON, "title": "Results"},
            *(
                {
                    "rel": "child",
                    "href": f"./{workflow}/{COLLECTION}",
                    "type": _JSON,
                    "title": workflow,
                }
                for workflow in workflows
            ),
        ],
    }
