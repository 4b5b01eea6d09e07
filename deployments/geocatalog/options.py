"""Options of the GeoCatalog deployment."""

from __future__ import annotations

from typing import Annotated
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from deployments.azure.options import AzureOptions
from deployments.runtime.option_types import Seconds
from workflows.delivery import parse_catalog

API_VERSION = "2026-04-15"
SCOPE = "https://geocatalog.spatio.azure.com/.default"
LOOPBACK = ("127.0.0.1", "localhost", "::1")


def _catalog(value: str) -> str:
    catalog = parse_catalog(value)
    url = urlsplit(catalog)
    if url.scheme != "https" and url.hostname not in LOOPBACK:
        raise ValueError("must start with https://; http:// is for an emulator on this machine")
    return catalog


CatalogUrl = Annotated[str, AfterValidator(_catalog)]


class GeoCatalogConfig(BaseModel):
    """What an operator configures."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    allowed: tuple[CatalogUrl, ...] = Field(
        default=(),
        description="GeoCatalogs in which results may be registered. Empty allows none.",
    )
    api_version: str = Field(
        default=API_VERSION,
        pattern=r"^[0-9]{4}-[0-9]{2}-[0-9]{2}(-preview)?$",
        description="Version of the GeoCatalog API.",
    )
    time_limit_s: Seconds = Field(
        default=900.0, description="Time limit for the ingestion of one item, seconds."
    )


class GeoCatalogOptions(GeoCatalogConfig):
    """Options of a GeoCatalog replica.

    A plan may be older than `allowed`, so the deployment checks it again. `time_limit_s` applies to
    a collection and again to an item, the service's own work included.
    """

    azure: AzureOptions = AzureOptions()
    scope: str = SCOPE
    """Scope of the tokens; sovereign clouds have their own."""
    request_timeout_s: float = 60.0
    """Limit for one complete response, even if its bytes keep arriving."""
