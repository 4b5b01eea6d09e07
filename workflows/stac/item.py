"""Describe a result as a STAC item, in plain JSON values.

References
----------
STAC 1.1, https://github.com/radiantearth/stac-spec, and the extensions in `_EXTENSIONS`.
"""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from datetime import UTC
from typing import Any, Final

from workflows.base import Plan
from workflows.dataset import Dataset, Provenance, describe
from workflows.manifest import CHECKSUMS, METADATA, NETCDF, PREVIEW, ZARR
from workflows.stac.datacube import dimensions_of, variables_of
from workflows.stac.footprint import footprint_of, projection_of
from workflows.stac.renders import DATA, renders

STAC_VERSION: Final = "1.1.0"
PREFIX: Final = "earth2serve"
"""Prefix of this project's own properties and of collection ids."""
ITEM, COLLECTION, CATALOG = "item.json", "collection.json", "catalog.json"
"""File names of STAC documents; an item is in the folder of its result."""

_EXTENSIONS: Mapping[str, str] = {
    # pystac does not read items of 2.3.0 as data cubes.
    "datacube": "v2.2.0",
    "projection": "v2.0.0",
    "forecast": "v0.2.0",
    "file": "v2.1.0",
    "processing": "v1.2.0",
    "version": "v1.2.0",
    "render": "v2.0.0",
    "xarray-assets": "v1.0.0",
}

ASSETS: Mapping[str, tuple[str, dict[str, Any]]] = {
    ZARR: (
        DATA,
        {
            "type": "application/vnd.zarr; version=3",
            "title": "Forecast, Zarr",
            "roles": ["data"],
            "xarray:open_kwargs": {"consolidated": True},
        },
    ),
    # GeoCatalog derives a Kerchunk asset, which it can draw, only from a file with the role data.
    NETCDF: (
        DATA,
        {"type": "application/netcdf", "title": "Forecast, NetCDF4", "roles": ["data"]},
    ),
    PREVIEW: (
        "thumbnail",
        {
            "type": "image/png",
            "title": "Map of the first variable, first member, last time",
            "roles": ["thumbnail"],
        },
    ),
    METADATA: (
        "metadata",
        {
            "type": "application/json",
            "title": "What was computed, and with what",
            "roles": ["metadata"],
        },
    ),
    CHECKSUMS: (
        "checksums",
        {"type": "text/plain", "title": "SHA-256 of the result's files", "roles": ["metadata"]},
    ),
}
"""Key and fields of each asset, by file name. Other files do not become assets."""

Files = Mapping[str, tuple[int, str | None]]
"""Size in bytes and SHA-256, in hexadecimal, of each file, by key below the result's folder."""


def item_id(plan: Plan, execution_id: str) -> str:
    """Return the id of an execution's item; repeated registrations use the same id."""
    start = plan.start_time.astimezone(UTC)
    return f"{plan.model}-{start:%Y%m%dT%H%MZ}-{execution_id}"


def describe_item(
    plan: Plan,
    execution_id: str,
    provenance: Provenance,
    files: Files,
    *,
    collection_id: str,
    base_href: str,
    collection_href: str = f"./{COLLECTION}",
) -> dict[str, Any]:
    """Return the STAC item of one execution; ValueError if `files` lacks the result itself.

    Parameters
    ----------
    files : mapping
        A Zarr store counts as one file without a checksum.
    base_href : str
        URL of the result's folder, or "." to refer to files beside the item.
    collection_href : str, optional
        URL of the collection; by default the file beside the item, because only what is in the
        folder of the result is found wherever that folder is served.
    """
    dataset = describe(plan, execution_id, provenance)
    assets = {}
    for name, (key, fields) in ASSETS.items():
        if name in files:
            size, sha256 = files[name]
            # Multihash: code 12 is SHA-256, 20 is the length of 32 bytes, both in hexadecimal.
            checksum = {} if sha256 is None else {"file:checksum": f"1220{sha256}"}
            href = f"{base_href.rstrip('/')}/{name}"
            assets[key] = {"href": href, **deepcopy(fields), "file:size": size, **checksum}
    if DATA not in assets:
        raise ValueError(f"the files of {execution_id} include no result")
    assets[DATA]["description"] = str(dataset.attributes["summary"])
    footprint = footprint_of(plan.grid)
    properties = _properties(plan, provenance, dataset)
    rels = ("root", "collection", "parent") if base_href == "." else ("collection", "parent")
    links = [{"rel": rel, "href": collection_href, "type": "application/json"} for rel in rels]
    return {
        "type": "Feature",
        "stac_version": STAC_VERSION,
        "stac_extensions": extensions_used(properties, assets),
        "id": item_id(plan, execution_id),
        "collection": collection_id,
        "geometry": footprint.geometry,
        "bbox": footprint.bbox,
        "properties": properties,
        "links": links,
        "assets": assets,
    }


def _properties(plan: Plan, provenance: Provenance, dataset: Dataset) -> dict[str, Any]:
    attributes = dataset.attributes
    start, end = attributes["time_coverage_start"], attributes["time_coverage_end"]
    length = f"PT{plan.n_steps * plan.step_hours}H"
    description = " ".join(
        str(attributes[name]) for name in ("summary", "comment") if name in attributes
    )
    properties = {
        "title": attributes["title"],
        "description": description,
        "keywords": str(attributes["keywords"]).split(", "),
        # A forecast has no single time: searches use its start and end.
        "datetime": None,
        "start_datetime": start,
        "end_datetime": end,
        "created": attributes["date_created"],
        "forecast:reference_datetime": start,
        # Without a duration it would describe a single instant.
        "forecast:horizon": length,
        "forecast:duration": length,
        **_one_variable(dataset),
        **projection_of(plan.grid),
        "cube:dimensions": dimensions_of(plan, dataset),
        "cube:variables": variables_of(dataset),
        "processing:datetime": attributes["date_created"],
        "processing:lineage": attributes["source"],
        **_own(plan, provenance, attributes),
        **_software(provenance),
    }
    drawn = renders(plan)
    return properties | ({"renders": drawn} if drawn else {})


def _one_variable(dataset: Dataset) -> dict[str, Any]:
    names = {field.attributes.get("standard_name") for field in dataset.fields}
    only = names.pop() if len(names) == 1 else None
    return {"forecast:variable": only} if only else {}


def _own(plan: Plan, provenance: Provenance, attributes: Mapping[str, Any]) -> dict[str, Any]:
    """Return this project's own properties; what is unknown is omitted."""
    names = (
        *("workflow", "execution_id", "model", "model_loader", "weights"),
        *("data_source", "data_source_loader"),
        *("conditioned_on", "conditioning_variable", "conditioning_reference_time"),
    )
    own: dict[str, Any] = {name: attributes[name] for name in names if name in attributes}
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


def extensions_used(properties: Mapping[str, Any], assets: Mapping[str, Any]) -> list[str]:
    """Return the schema URLs of the extensions whose fields are used."""
    fields = {*properties, *(name for asset in assets.values() for name in asset)}
    prefixes = {name.partition(":")[0] for name in fields}
    prefix_of = {
        "datacube": "cube",
        "projection": "proj",
        "render": "renders",
        "xarray-assets": "xarray",
    }
    return [
        f"https://stac-extensions.github.io/{name}/{version}/schema.json"
        for name, version in _EXTENSIONS.items()
        if prefix_of.get(name, name) in prefixes
    ]
