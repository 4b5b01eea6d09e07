"""Describe the STAC collection of a workflow's items, in plain JSON values."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from workflows.base import Plan
from workflows.dataset import Provenance
from workflows.manifest import NETCDF, ZARR
from workflows.stac.item import (
    ASSETS,
    COLLECTION,
    ITEM,
    PREFIX,
    STAC_VERSION,
    Files,
    describe_item,
    extensions_used,
)
from workflows.stac.renders import DATA

_PER_FILE = ("href", "file:size", "file:checksum")


def default_collection_id(workflow: str) -> str:
    """Return the id of a workflow's collection where neither request nor settings name one."""
    return f"{PREFIX}-{re.sub(r'[^A-Za-z0-9.-]', '-', workflow)}"


def describe_collection(plan: Plan, provenance: Provenance, collection_id: str) -> dict[str, Any]:
    """Return the collection for results of plans like this one, open towards later times."""
    dataset = ZARR if plan.output_format == "zarr" else NETCDF
    others = [name for name, (key, _) in ASSETS.items() if key != DATA]
    files: Files = dict.fromkeys([dataset, *others], (0, None))
    example = describe_item(plan, "", provenance, files, collection_id=collection_id, base_href=".")
    return collection_of(example)


def accompanying_collection(item: Mapping[str, Any]) -> dict[str, Any]:
    """Return the collection that is delivered beside an item, and names no other item.

    It has the id of the collection to which all items of the workflow belong, so that the links of
    an item lead to a collection wherever its folder lies: on disk, behind HTTP or in a container.
    """
    properties = item["properties"]
    collection = collection_of(item)
    collection["extent"]["temporal"]["interval"] = [
        [properties["start_datetime"], properties["end_datetime"]]
    ]
    collection["links"] = [
        {"rel": "root", "href": f"./{COLLECTION}", "type": "application/json"},
        {"rel": "item", "href": f"./{ITEM}", "type": "application/geo+json", "title": item["id"]},
    ]
    return collection


def collection_of(example: Mapping[str, Any]) -> dict[str, Any]:
    """Return the collection that an item belongs to, from what all its items have in common.

    Its extent is that of the item, open towards later times. Links are left empty. Members, times
    and variables differ between items and are not described.
    """
    properties = example["properties"]
    model, workflow = properties[f"{PREFIX}:model"], properties[f"{PREFIX}:workflow"]
    synthetic = properties.get(f"{PREFIX}:synthetic", False)
    item_assets = {
        key: {name: value for name, value in asset.items() if name not in _PER_FILE}
        for key, asset in example["assets"].items()
    }
    item_assets[DATA] |= {"description": "All members, times and variables of one forecast."}
    return {
        "type": "Collection",
        "stac_version": STAC_VERSION,
        "stac_extensions": extensions_used({}, item_assets),
        "id": example["collection"],
        "title": f"{model} forecasts{', some synthetic' if synthetic else ''}",
        "description": (
            f"Ensemble forecasts of the workflow {workflow}, computed by earth2serve with {model}: "
            "one item for each execution. "
            f"{'Some are synthetic, made by a stand-in, not forecasts: ' if synthetic else ''}"
            f"{PREFIX}:synthetic says of each whether it is made by a stand-in."
        ),
        "keywords": properties["keywords"],
        "license": "other",
        "extent": {
            "spatial": {"bbox": [example["bbox"]]},
            "temporal": {"interval": [[properties["start_datetime"], None]]},
        },
        "summaries": {f"{PREFIX}:workflow": [workflow], f"{PREFIX}:model": [model]},
        "item_assets": item_assets,
        "links": [],
    }
