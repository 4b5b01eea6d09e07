"""The section ``azure``: delivery to Azure, and the identity of this server there.

Nothing here imports Azure's libraries, which a server without these settings does not need.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field, ValidationInfo, field_validator, model_validator

from deployments.azure.options import AzureOptions
from deployments.blob_uploader.options import BlobUploaderConfig
from deployments.geocatalog.options import CatalogUrl, GeoCatalogConfig
from deployments.runtime.option_types import Replicas, Seconds
from serve_app.settings.section import Section
from workflows.delivery import Container, check_collection, parse_container


def _emulator(value: str) -> str:
    url = urlsplit(value)
    url.port  # noqa: B018 -- raises if it is out of range
    if url.scheme != "https" or not url.hostname or url.query or url.path.count("/") != 1:
        raise ValueError("must be its endpoint, as in https://127.0.0.1:10000/devstoreaccount1")
    return value


CollectionId = Annotated[str, AfterValidator(check_collection)]


class BlobSettings(BlobUploaderConfig, Section):
    """Delivery to Blob Storage."""

    emulator: Annotated[str, AfterValidator(_emulator)] | None = Field(
        default=None,
        description="Endpoint of a storage account that is named in the URL path, such as "
        "Azurite's.",
    )
    allowed_containers: tuple[str, ...] = Field(
        default=(),
        description="Containers, or folders in them, to which results may be uploaded: "
        "https://ACCOUNT.blob.core.windows.net/CONTAINER. Empty allows none.",
    )
    default_container: str | None = Field(
        default=None, description="Destination of requests that set no container_url."
    )
    signed_url_s: Seconds | None = Field(
        default=None,
        le=7 * 24 * 3600,
        description="Validity of read-only links to the blobs of an execution, seconds. Null "
        "creates no links.",
    )
    replicas: Replicas = Field(default=1, description="Replicas that upload.")

    @field_validator("allowed_containers")
    @classmethod
    def _are_containers(cls, value: tuple[str, ...], info: ValidationInfo) -> tuple[str, ...]:
        for url in value:
            parse_container(url, info.data.get("emulator"))
        return value

    @field_validator("default_container")
    @classmethod
    def _is_allowed(cls, value: str | None, info: ValidationInfo) -> str | None:
        if value is not None and "allowed_containers" in info.data:
            emulator = info.data.get("emulator")
            allowed = [parse_container(url, emulator) for url in info.data["allowed_containers"]]
            container = parse_container(value, emulator)
            if not any(place.contains(container) for place in allowed):
                raise ValueError("it is not in allowed_containers")
        return value

    @property
    def containers(self) -> tuple[Container, ...]:
        """Containers to which results may be uploaded."""
        return tuple(parse_container(url, self.emulator) for url in self.allowed_containers)


class GeoCatalogSettings(GeoCatalogConfig, Section):
    """Registration in GeoCatalogs of Planetary Computer Pro."""

    default_catalog: CatalogUrl | None = Field(
        default=None, description="GeoCatalog of requests that set no geo_catalog_url."
    )
    allowed_collections: tuple[CollectionId, ...] | None = Field(
        default=None,
        description="Collections that requests may name as collection_id, besides that of their "
        "workflow in `collections`. Null allows any, which is created if it does not exist.",
    )
    collections: Mapping[str, CollectionId] = Field(
        default_factory=dict,
        description="Collection of each workflow, for requests that set no collection_id. A "
        "workflow without an entry has a collection of its own name.",
    )

    @model_validator(mode="after")
    def _default_is_allowed(self) -> GeoCatalogSettings:
        if self.default_catalog is not None and self.default_catalog not in self.allowed:
            raise ValueError("default_catalog is not in allowed")
        return self


class AzureSettings(AzureOptions, Section):
    """Delivery to Azure; nothing is delivered without allowed destinations."""

    blob: BlobSettings = BlobSettings()
    geocatalog: GeoCatalogSettings = GeoCatalogSettings()

    @property
    def account(self) -> AzureOptions:
        """How to access Azure."""
        return self.to_options(AzureOptions)
