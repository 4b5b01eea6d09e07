"""Options of the GeoCatalog deployment."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict

from deployments.azure.options import AzureOptions

API_VERSION = "2026-04-15"
SCOPE = "https://geocatalog.spatio.azure.com/.default"


class GeoCatalogOptions(BaseModel):
    """Identity towards GeoCatalogs, and the limits of calls to them."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    azure: AzureOptions = AzureOptions()
    api_version: str = API_VERSION
    scope: str = SCOPE
    """Scope of the tokens; another in sovereign clouds."""
    allowed: tuple[str, ...] | None = None
    """Catalogues that may be called; None for any. A plan may be older than the list."""
    time_limit_s: float = 900.0
    """For a collection, and again for an item, the service's own work included."""
