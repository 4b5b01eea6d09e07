"""A validator of STAC documents that needs no network."""

from __future__ import annotations

import functools
import json
from pathlib import Path

import pyproj
from pystac.validation.stac_validator import JsonSchemaSTACValidator

SCHEMAS = Path(__file__).with_name("schemas")
PROJJSON = "https://proj.org/schemas/v{}/projjson.schema.json"


@functools.cache
def validator() -> JsonSchemaSTACValidator:
    """Return a validator that knows the extensions and PROJJSON; pystac brings the core schemas."""
    validator = JsonSchemaSTACValidator()
    known = validator.schema_cache
    for file in SCHEMAS.glob("*/*/schema.json"):
        url = f"https://stac-extensions.github.io/{file.relative_to(SCHEMAS)}"
        known[url] = json.loads(file.read_text())
    projjson = Path(pyproj.datadir.get_data_dir()) / "projjson.schema.json"
    # Version 0.7 accepts everything that 0.4 does.
    for version in ("0.4", "0.7"):
        url = PROJJSON.format(version)
        known[url] = json.loads(projjson.read_text()) | {"$id": url}
    return validator
