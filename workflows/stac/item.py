"""STAC documents about results: item, collection and how tilers draw them, as plain JSON values.

References
----------
STAC 1.1, https://github.com/radiantearth/stac-spec, and the extensions of `_EXTENSIONS`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from copy import deepcopy
from datetime import UTC
from typing import Any, Final

from workflows.base import Plan
from workflows.dataset import Dataset, Provenance, describe
from workflows.stac.datacube import dimensions_of, variables_of
from workflows.stac.footprint import footprint_of, projection_of
from workflows.stac.renders import DATA, render_options, renders

__all__ = [
    "CATALOG",
    "COLLECTION",
    "DATA",
    "ITEM",
    "PREFIX",
    "STAC_VERSION",
    "collection",
    "collection_of",
    "default_collection_id",
    "item",
    "item_id",
    "render_options",
    "renders",
]

STAC_VERSION: Final = "1.1.0"
PREFIX: Final = "earth2serve"
"""Of properties that are ours, and of collections' ids."""
ITEM, COLLECTION, CATALOG = "item.json", "collection.json", "catalog.json"
"""Names of the static catalogue's files: the item lies in its result's folder."""

_EXTENSIONS: Mapping[str, str] = {
    # Not 2.3.0, whose items pystac does not read as data cubes.
    "datacube": "v2.2.0",
    "projection": "v2.0.0",
    "forecast": "v0.2.0",
    "file": "v2.1.0",
    "processing": "v1.2.0",
    "version": "v1.2.0",
    "render": "v2.0.0",
    "xarray-assets": "v1.0.0",
}

_ASSETS: Mapping[str, tuple[str, dict[str, Any]]] = {
    "results.zarr": (
        DATA,
        {
            "type": "application/vnd.zarr; version=3",
            "title": "Forecast, Zarr",
            "roles": ["data"],
            "xarray:open_kwargs": {"consolidated": True},
        },
    ),
    # GeoCatalog derives what it can draw from a NetCDF file whose roles have data.
    "results.nc": (
        DATA,
        {"type": "application/netcdf", "title": "Forecast, NetCDF4", "roles": ["data"]},
    ),
    "preview.png": (
        "thumbnail",
        {
            "type": "image/png",
            "title": "Map of the first variable, first member, last time",
            "roles": ["thumbnail"],
        },
    ),
    "metadata.json": (
        "metadata",
        {
            "type": "application/json",
            "title": "What was computed, and with what",
            "roles": ["metadata"],
        },
    ),
    "checksums.sha256": (
        "checksums",
        {"type": "text/plain", "title": "SHA-256 of the result's files", "roles": ["metadata"]},
    ),
}
"""Key and fields of an asset, by its file; other files are no assets."""

_PER_FILE = ("href", "file:size", "file:checksum")

Files = Mapping[str, tuple[int, str | None]]


def item_id(plan: Plan, execution_id: str) -> str:
    """Name an execution's item; a repeated registration finds the same one."""
    start = plan.start_time.astimezone(UTC)
    return f"{plan.model}-{start:%Y%m%dT%H%MZ}-{execution_id}"


def default_collection_id(workflow: str) -> str:
    """Name the collection of a workflow's items where nobody has named one."""
    return f"{PREFIX}-{re.sub(r'[^A-Za-z0-9.-]', '-', workflow)}"


def item(
    plan: Plan,
    execution_id: str,
    provenance: Provenance,
    files: Files,
    *,
    collection_id: str,
    base_href: str,
    collection_href: str = f"../{COLLECTION}",
) -> dict[str, Any]:
    """Describe one execution's result.

    Parameters
    ----------
    files : mapping
        Size in bytes and SHA-256, in hexadecimal, by key below the result's folder. A Zarr store
        counts as one file without a checksum.
    base_href : str
        URL of the folder, or "." to refer to files beside the item.
    collection_href : str, optional
        Where the collection is; that of the static catalogue by default.

    Raises
    ------
    ValueError
        If `files` lacks the result itself.
    """
    dataset = describe(plan, execution_id, provenance)
    assets = {}
    for name, (key, fields) in _ASSETS.items():
        if name in files:
            size, sha256 = files[name]
            # Of a multihash 12 is SHA-256, and 20 (32 bytes) its length.
            checksum = {} if sha256 is None else {"file:checksum": f"1220{sha256}"}
            href = f"{base_href.rstrip('/')}/{name}"
            assets[key] = {"href": href, **deepcopy(fields), "file:size": size, **checksum}
    if DATA not in assets:
        raise ValueError(f"no result is among the files of {execution_id}")
    assets[DATA]["description"] = str(dataset.attributes["summary"])
    footprint = footprint_of(plan.grid)
    properties = _properties(plan, provenance, dataset)
    links = [
        {"rel": rel, "href": collection_href, "type": "application/json"}
        for rel in ("collection", "parent")
    ]
    if base_href == ".":
        root = {"rel": "root", "href": f"../../{CATALOG}", "type": "application/json"}
        links.insert(0, root)
    return {
        "type": "Feature",
        "stac_version": STAC_VERSION,
        "stac_extensions": _extensions(properties, assets),
        "id": item_id(plan, execution_id),
        "collection": collection_id,
        "geometry": footprint.geometry,
        "bbox": footprint.bbox,
        "properties": properties,
        "links": links,
        "assets": assets,
    }


def collection(plan: Plan, provenance: Provenance, collection_id: str) -> dict[str, Any]:
    """Describe the collection of results like a plan's, open towards later times."""
    result = "results.zarr" if plan.output_format == "zarr" else "results.nc"
    beside = [name for name, (key, _) in _ASSETS.items() if key != DATA]
    files: Files = dict.fromkeys([result, *beside], (0, None))
    example = item(plan, "", provenance, files, collection_id=collection_id, base_href=".")
    return collection_of(example)


def collection_of(example: Mapping[str, Any]) -> dict[str, Any]:
    """Describe the collection that an item belongs to, from what all its items have in common.

    Its extent is that of the item, open towards later times; links are left to whoever knows more
    of its items. Members, times and variables are each item's own.
    """
    properties = example["properties"]
    model, workflow = properties[f"{PREFIX}:model"], properties[f"{PREFIX}:workflow"]
    synthetic = properties.get(f"{PREFIX}:synthetic", False)
    item_assets = {
        key: {name: value for name, value in asset.items() if name not in _PER_FILE}
        for key, asset in example["assets"].items()
    }
    item_assets[DATA] |= {"description": "All members, times and variables of one forecast."}
    document = {
        "type": "Collection",
        "stac_version": STAC_VERSION,
        "stac_extensions": _extensions({}, item_assets),
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
        "providers": properties.get("providers", []),
        "extent": {
            "spatial": {"bbox": [example["bbox"]]},
            "temporal": {"interval": [[properties["start_datetime"], None]]},
        },
        "summaries": {f"{PREFIX}:workflow": [workflow], f"{PREFIX}:model": [model]},
        "item_assets": item_assets,
        "links": [],
    }
    return document if document["providers"] else _without(document, "providers")


def _properties(plan: Plan, provenance: Provenance, dataset: Dataset) -> dict[str, Any]:
    said = dataset.attributes
    start, end = said["time_coverage_start"], said["time_coverage_end"]
    length = f"PT{plan.n_steps * plan.step_hours}H"
    description = " ".join(str(said[name]) for name in ("summary", "comment") if name in said)
    properties = {
        "title": said["title"],
        "description": description,
        "keywords": str(said["keywords"]).split(", "),
        # No one time stands for a forecast: searches go by its start and end.
        "datetime": None,
        "start_datetime": start,
        "end_datetime": end,
        "created": said["date_created"],
        "forecast:reference_datetime": start,
        # Without a duration it would be a forecast of one instant.
        "forecast:horizon": length,
        "forecast:duration": length,
        **_one_variable(dataset),
        **projection_of(plan.grid),
        "cube:dimensions": dimensions_of(plan, dataset),
        "cube:variables": variables_of(dataset),
        "processing:datetime": said["date_created"],
        "processing:lineage": said["source"],
        **_own(plan, provenance, said),
        **_software(provenance),
        **_institution(provenance),
    }
    drawn = renders(plan)
    return properties | ({"renders": drawn} if drawn else {})


def _one_variable(dataset: Dataset) -> dict[str, Any]:
    names = {field.attributes.get("standard_name") for field in dataset.fields}
    only = names.pop() if len(names) == 1 else None
    return {"forecast:variable": only} if only else {}


def _own(plan: Plan, provenance: Provenance, said: Mapping[str, Any]) -> dict[str, Any]:
    """Give what no extension has a word for; what is not known is left out."""
    names = (
        *("workflow", "execution_id", "model", "model_loader", "weights"),
        *("data_source", "data_source_loader"),
        *("conditioned_on", "conditioning_variable", "conditioning_reference_time"),
    )
    own: dict[str, Any] = {name: said[name] for name in names if name in said}
    own |= {"members": len(plan.seeds), "seeds": list(plan.seeds)}
    if plan.conditioning is not None:
        own["conditioning_seeds"] = list(plan.conditioning.seeds)
    own |= {"steps": plan.n_steps, "step_hours": plan.step_hours, "time_layout": plan.time_layout}
    if provenance.synthetic is not None:
        own["synthetic"] = provenance.synthetic
    return {f"{PREFIX}:{name}": value for name, value in own.items()}


def _software(provenance: Provenance) -> dict[str, Any]:
    versions = dict(provenance.software)
    found: dict[str, Any] = {"processing:software": versions} if versions else {}
    if PREFIX in versions:
        found["version"] = versions[PREFIX]
    return found


def _institution(provenance: Provenance) -> dict[str, Any]:
    if not provenance.institution:
        return {}
    return {
        "processing:facility": provenance.institution,
        "providers": [{"name": provenance.institution, "roles": ["producer", "processor"]}],
    }


def _extensions(properties: Mapping[str, Any], assets: Mapping[str, Any]) -> list[str]:
    """Name the extensions whose fields are used."""
    fields = {*properties, *(name for asset in assets.values() for name in asset)}
    prefixes = {name.partition(":")[0] for name in fields}
    spelt = {"datacube": "cube", "projection": "proj", "render": "renders"}
    spelt["xarray-assets"] = "xarray"
    return [
        f"https://stac-extensions.github.io/{name}/{version}/schema.json"
        for name, version in _EXTENSIONS.items()
        if spelt.get(name, name) in prefixes
    ]


def _without(document: Mapping[str, Any], name: str) -> dict[str, Any]:
    return {key: value for key, value in document.items() if key != name}
