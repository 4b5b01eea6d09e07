"""Arguments and results of calls to GeoCatalog."""

from __future__ import annotations

from collections.abc import Mapping

from pydantic import BaseModel, ConfigDict

from workflows.base import Plan
from workflows.dataset import Provenance
from workflows.manifest import Manifest


class Registration(BaseModel):
    """Results to register as a STAC item."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    execution_id: str
    geo_catalog_url: str
    collection_id: str | None = None
    """None for one named after the workflow. Created if it does not exist."""
    plan: Plan
    provenance: Provenance
    files: Mapping[str, tuple[int, str | None]]
    """Size in bytes and SHA-256, in hexadecimal, by key below `base_href`."""
    base_href: str
    """URL of the folder with the results, which the catalogue can read."""


class Registered(BaseModel):
    """Location of a registered item."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    geo_catalog_url: str
    collection_id: str
    item_id: str
    item_url: str

    def added_to(self, manifest: Manifest) -> Manifest:
        """Return a manifest with the location of the item."""
        return manifest.model_copy(
            update={
                "geo_catalog_url": self.geo_catalog_url,
                "geocatalog_collection_id": self.collection_id,
                "geocatalog_stac_feature_id": self.item_id,
            }
        )
