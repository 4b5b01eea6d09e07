"""Which documents a GeoCatalog accepts, and how it changes them."""

from __future__ import annotations

import re
import uuid
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import pystac.validation
from aiohttp import web
from pystac.errors import STACValidationError

OPTIMIZED = {"application/netcdf", "application/x-netcdf", "application/x-hdf5"}
# From Microsoft's page on troubleshooting ingestion.
ITEM_ID = re.compile(r"[A-Za-z0-9_+,().-]{1,149}")
ASSET_KEY = re.compile(r"[A-Za-z0-9_+,().-]{1,255}")
COLLECTION_ID = re.compile(r"[A-Za-z0-9_.-]+")
ZONED = re.compile(r".*(Z|[+-]\d\d:\d\d)")


class Refusal(Exception):
    """An error response of the service."""

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(status, code, message)
        self.status, self.code, self.message = status, code, message

    def response(self) -> web.Response:
        return web.json_response(
            {"error": {"code": self.code, "message": self.message}},
            status=self.status,
            headers={"x-ms-error-code": self.code},
        )


def check_document(document: Any, kind: str) -> None:
    """Refuse a document that is not of a kind."""
    if not isinstance(document, dict) or document.get("type") != kind:
        raise Refusal(400, "InvalidStac", f"a {kind} is needed")
    if "id" not in document or not isinstance(document.get("links"), list):
        raise Refusal(400, "InvalidStac", "id and links are needed")
    try:
        # The core only, as the service does.
        pystac.validation.validate_dict(document, extensions=[])
    except STACValidationError as error:
        raise Refusal(400, "InvalidStac", str(error)) from None


def check_item(document: Any, collection_id: str) -> None:
    """Refuse a document that is not an item of a collection."""
    check_document(document, "Feature")
    if document.get("collection") != collection_id:
        raise Refusal(400, "InvalidStac", f"the item's collection is not {collection_id}")
    if not ITEM_ID.fullmatch(document["id"]):
        raise Refusal(400, "InvalidItemId", document["id"])
    if wrong := [key for key in document["assets"] if not ASSET_KEY.fullmatch(key)]:
        raise Refusal(400, "InvalidAssetKey", wrong[0])
    for name, value in document["properties"].items():
        if name.rpartition(":")[2].endswith("datetime") and isinstance(value, str):
            if not ZONED.fullmatch(value):
                raise Refusal(400, "InvalidStac", f"{name} has no time zone: {value}")


def check_render_option(document: Any) -> None:
    """Refuse a document that is not a render option."""
    if not isinstance(document, dict) or not {"id", "name", "type"} <= set(document):
        raise Refusal(400, "InvalidRenderOption", "id, name and type are needed")
    if document["type"] not in ("raster-tile", "vt-polygon", "vt-line"):
        raise Refusal(400, "InvalidRenderOption", f"no type {document['type']}")


def ingested(document: Mapping[str, Any]) -> dict[str, Any]:
    """Return an item as the service stores it: with references derived from NetCDF."""
    assets = dict(document["assets"])
    for key, asset in document["assets"].items():
        if asset.get("type") in OPTIMIZED and {"data", "visual"} & set(asset.get("roles", [])):
            assets[f"{key}-kerchunk"] = {
                "href": f"{asset['href']}.kerchunk.json",
                "type": "application/json",
                "roles": ["references"],
            }
    return {
        **document,
        "assets": assets,
        "msft:_created": now(),
        "msft:_updated": now(),
        "_msft:etag": uuid.uuid4().hex,
    }


def patched(target: Any, patch: Any) -> Any:
    """Apply a JSON merge patch, RFC 7396."""
    if not isinstance(patch, dict):
        return patch
    result = dict(target) if isinstance(target, dict) else {}
    for name, value in patch.items():
        if value is None:
            result.pop(name, None)
        else:
            result[name] = patched(result.get(name), value)
    return result


def now() -> str:
    """Return the current time in the service's format."""
    return f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%S.%fZ}"
