"""The sections under ``args.azure``: where results may go, and who this server is there.

Nothing here imports Azure's libraries: without these settings nobody needs them.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import urlsplit

from pydantic import (
    AfterValidator,
    Field,
    Strict,
    ValidationInfo,
    field_validator,
    model_validator,
)

from serve_app.settings.section import Amount, Count, ImportPath, Section
from workflows.delivery import (
    Container,
    DeliveryRules,
    check_collection,
    parse_catalog,
    parse_container,
)

LOOPBACK = ("127.0.0.1", "localhost", "::1")


def _emulator(value: str) -> str:
    url = urlsplit(value)
    if url.scheme != "https" or not url.hostname or url.query or url.path.count("/") != 1:
        raise ValueError("give its endpoint, as in https://127.0.0.1:10000/devstoreaccount1")
    return value


def _catalog(value: str) -> str:
    catalog = parse_catalog(value)
    url = urlsplit(catalog)
    if url.scheme != "https" and url.hostname not in LOOPBACK:
        raise ValueError("https:// is needed; http:// is for an emulator on this machine")
    return catalog


Catalog = Annotated[str, AfterValidator(_catalog)]


class CredentialSettings(Section):
    """Who this server is to Azure."""

    loader: ImportPath = Field(
        default="azure.identity.aio:DefaultAzureCredential",
        description='"module:callable": what gives an asynchronous token credential; the default '
        "finds workload identity, managed identity and the Azure CLI's login.",
    )
    options: dict[str, Any] = Field(
        default_factory=dict,
        description="Keyword arguments for it, such as managed_identity_client_id. No secrets: "
        "Ray shows the configuration on its dashboard.",
    )


class BlobSettings(Section):
    """Delivery to Blob Storage."""

    emulator: Annotated[str, AfterValidator(_emulator)] | None = Field(
        default=None,
        description="Endpoint of an account whose name comes in the path, as Azurite's does.",
    )
    allowed_containers: tuple[str, ...] = Field(
        default=(),
        description="Containers, or folders in them, to which results may go: "
        "https://ACCOUNT.blob.core.windows.net/CONTAINER. Empty allows none.",
    )
    default_container: str | None = Field(
        default=None, description="Where results go if a request names no container_url."
    )
    signed_url_s: Amount | None = Field(
        default=None,
        le=7 * 24 * 3600,
        description="Seconds that a read-only link to an execution's blobs is valid, which its "
        "results then have; null makes none.",
    )
    time_limit_s: Amount = Field(
        default=6 * 3600.0, description="Seconds that one attempt at an upload may take."
    )
    upload_ahead: Annotated[bool, Strict()] = Field(
        default=True,
        description="Whether the chunks of a Zarr store are uploaded while others are still "
        "computed.",
    )
    replicas: Count = Field(default=1, description="Replicas that upload.")

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
            if not any(each.contains(container) for each in allowed):
                raise ValueError("it is not in allowed_containers")
        return value

    @property
    def containers(self) -> tuple[Container, ...]:
        """The containers to which results may go."""
        return tuple(parse_container(url, self.emulator) for url in self.allowed_containers)


class GeoCatalogSettings(Section):
    """Registration in Planetary Computer Pro."""

    allowed: tuple[Catalog, ...] = Field(
        default=(), description="GeoCatalogs in which results may be registered. Empty allows none."
    )
    default_catalog: Catalog | None = Field(
        default=None,
        description="Where results are registered if a request names no geo_catalog_url.",
    )
    collections: Mapping[str, Annotated[str, AfterValidator(check_collection)]] = Field(
        default_factory=dict,
        description="Collection of a workflow's items where a request names no collection_id; by "
        "default one that is named after the workflow.",
    )
    api_version: str = Field(
        default="2026-04-15",
        pattern=r"^[0-9]{4}-[0-9]{2}-[0-9]{2}(-preview)?$",
        description="Version of GeoCatalog's API.",
    )
    time_limit_s: Amount = Field(
        default=900.0, description="Seconds that the service gets to take in an item."
    )

    @model_validator(mode="after")
    def _default_is_allowed(self) -> GeoCatalogSettings:
        if self.default_catalog is not None and self.default_catalog not in self.allowed:
            raise ValueError("default_catalog is not in allowed")
        return self


class AzureSettings(Section):
    """Delivery to Azure; without allowed places there is none of it."""

    credential: CredentialSettings = CredentialSettings()
    ca_file: Path | None = Field(
        default=None,
        description="Certificates of authorities to trust instead of the system's, PEM: for "
        "emulators, and networks that inspect TLS.",
    )
    blob: BlobSettings = BlobSettings()
    geocatalog: GeoCatalogSettings = GeoCatalogSettings()

    @property
    def rules(self) -> DeliveryRules:
        """What a request may ask for."""
        default = self.blob.default_container
        return DeliveryRules(
            containers=self.blob.containers,
            default_container=parse_container(default, self.blob.emulator) if default else None,
            emulator=self.blob.emulator,
            catalogs=self.geocatalog.allowed,
            default_catalog=self.geocatalog.default_catalog,
            collections=self.geocatalog.collections,
        )
