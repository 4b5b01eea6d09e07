"""STAC's schemas: core from pystac, extensions from beside the checkout or else the network."""

from __future__ import annotations

import json
from pathlib import Path

import pyproj
import pystac
import pytest
from pystac.validation.stac_validator import JsonSchemaSTACValidator

SCHEMAS = Path(__file__).parents[3].parent / "shared" / "schemas" / "stac"
PROJJSON = "https://proj.org/schemas/v{}/projjson.schema.json"


def validator() -> JsonSchemaSTACValidator:
    """Give a validator, or skip the test where there are no schemas."""
    validator = JsonSchemaSTACValidator()
    known = validator.schema_cache
    for file in SCHEMAS.glob("*/*/schema.json"):
        url = f"https://stac-extensions.github.io/{file.relative_to(SCHEMAS)}"
        known[url] = json.loads(file.read_text())
    if not SCHEMAS.exists():
        try:
            pystac.StacIO.default().read_text(PROJJSON.format("0.7"))
        except Exception as error:
            pytest.skip(f"no STAC schemas in {SCHEMAS}, and none from the network: {error}")
        return validator
    projjson = Path(pyproj.datadir.get_data_dir()) / "projjson.schema.json"
    for version in ("0.4", "0.7"):  # the later one takes all of the earlier
        url = PROJJSON.format(version)
        known[url] = json.loads(projjson.read_text()) | {"$id": url}
    return validator
