"""Minimal STAC documents."""

from __future__ import annotations

from typing import Any

COLLECTION = "earth2serve-test"


def small_collection(collection_id: str = COLLECTION) -> dict[str, Any]:
    return {
        "type": "Collection",
        "stac_version": "1.1.0",
        "id": collection_id,
        "description": "Forecasts of a test.",
        "license": "other",
        "extent": {
            "spatial": {"bbox": [[-180, -90, 180, 90]]},
            "temporal": {"interval": [["2025-01-01T00:00:00Z", None]]},
        },
        "links": [],
    }


def small_item(
    item_id: str = "fcn3-20250101T0000Z-abc", collection_id: str = COLLECTION, **properties: Any
) -> dict[str, Any]:
    """Return an item with a NetCDF file."""
    return {
        "type": "Feature",
        "stac_version": "1.1.0",
        "id": item_id,
        "collection": collection_id,
        "geometry": {
            "type": "Polygon",
            "coordinates": [[[-180, -90], [180, -90], [180, 90], [-180, 90], [-180, -90]]],
        },
        "bbox": [-180, -90, 180, 90],
        "properties": {
            "datetime": None,
            "start_datetime": "2025-01-01T00:00:00Z",
            "end_datetime": "2025-01-02T00:00:00Z",
            **properties,
        },
        "links": [{"rel": "collection", "href": f"../{collection_id}"}],
        "assets": {
            "data": {
                "href": "https://account.blob.core.windows.net/results/abc/results.nc",
                "type": "application/netcdf",
                "roles": ["data"],
            }
        },
    }


def small_option(option_id: str = "t2m") -> dict[str, Any]:
    return {
        "id": option_id,
        "name": option_id,
        "type": "raster-tile",
        "options": "assets=data-kerchunk&subdataset_name=t2m&rescale=263,313",
        "minZoom": 0,
    }
