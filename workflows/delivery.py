"""Further destinations of results: a Blob container, a GeoCatalog.

Clients name destinations, but the server reaches them with its own identity. A request is therefore
accepted only if the operator has allowed its destinations.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict

from workflows.errors import DeliveryForbidden, InvalidParameters, Problem

# Parameters, with their names in Earth2Studio's own workflows.
CONTAINER_URL = "container_url"
GEO_CATALOG_URL = "geo_catalog_url"
COLLECTION_ID = "collection_id"

_ACCOUNT_HOST = re.compile(r"([a-z0-9]{3,24})\.(?:z[0-9]{1,2}\.)?blob\.[a-z0-9-]+(?:\.[a-z0-9-]+)+")
MAX_FOLDER = 512
"""Characters. The name of a blob may have 1024, including the names of the result's files."""

_ACCOUNT = re.compile(r"[a-z0-9]{3,24}")
_CONTAINER_NAME = re.compile(r"(?!.*--)[a-z0-9][a-z0-9-]{1,61}[a-z0-9]")
_PREFIX_PART = re.compile(r"(?!\.{1,2}$)[A-Za-z0-9._=-]{1,255}(?<!\.)")
_COLLECTION = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,254}")


class Container(BaseModel):
    """A Blob container, or a folder in one."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    account_url: str
    """Endpoint of the storage account, without a trailing slash."""
    account: str
    name: str
    prefix: str = ""
    """Folder in the container, without slashes at its ends; empty for the container itself."""

    @property
    def url(self) -> str:
        """URL of the container, or of the folder."""
        return "/".join(filter(None, (self.account_url, self.name, self.prefix)))

    def contains(self, other: Container) -> bool:
        """Return whether another container or folder is this one or lies below it."""
        return f"{other.url}/".startswith(f"{self.url}/")


class Delivery(BaseModel):
    """Further destinations of one execution's results, if any."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    container: Container | None = None
    geo_catalog_url: str | None = None
    """Without a trailing slash."""
    collection_id: str | None = None


class DeliveryRules(BaseModel):
    """Destinations that the operator allows, and defaults for requests that name none."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    containers: tuple[Container, ...] = ()
    default_container: Container | None = None
    emulator: str | None = None
    """Endpoint of an account whose name is part of the path, as in Azurite's URLs."""
    catalogs: tuple[str, ...] = ()
    default_catalog: str | None = None
    collections: Mapping[str, str] = {}
    """Collection of items by workflow, for requests that name none."""
    allowed_collections: tuple[str, ...] | None = None
    """Collections that requests may name besides that of their workflow; None allows any."""
    results_in_blob: bool = False
    """Whether results are stored in a container, where a catalogue can refer to them."""

    @property
    def uploads(self) -> bool:
        """Whether anything can be uploaded."""
        return bool(self.containers)

    @property
    def registers(self) -> bool:
        """Whether anything can be registered."""
        return bool(self.catalogs)

    def resolve(
        self, workflow: str, values: Mapping[str, Any], *, can_be_registered: bool = True
    ) -> Delivery | None:
        """Return the destinations of a request's results.

        Parameters
        ----------
        values : mapping
            Parameters of the request, by name.
        can_be_registered : bool
            Whether results of this workflow can be described for a catalogue.

        Returns
        -------
        Delivery or None
            None if they stay on this server.

        Raises
        ------
        DeliveryForbidden
            If the request names a destination that is not allowed.
        InvalidParameters
            If a URL is invalid, or this server does not deliver to such destinations.
        """
        self._check_served(values)
        if not can_be_registered and values.get(GEO_CATALOG_URL) is not None:
            raise _refused(GEO_CATALOG_URL, "results of this workflow are uploaded, not registered")
        container = self.default_container
        catalog = self.default_catalog if can_be_registered else None
        if (requested := values.get(CONTAINER_URL)) is not None:
            container = self._allowed_container(requested)
        if (requested := values.get(GEO_CATALOG_URL)) is not None:
            catalog = self._allowed_catalog(requested)
        collection = values.get(COLLECTION_ID)
        if collection is not None and catalog is None:
            raise _refused(COLLECTION_ID, f"a collection needs a catalogue: give {GEO_CATALOG_URL}")
        if collection is not None:
            collection = self._allowed_collection(collection, workflow)
        if catalog is not None and container is None and not self.results_in_blob:
            raise _refused(
                GEO_CATALOG_URL,
                f"a catalogue refers to results in Azure: give {CONTAINER_URL} as well",
            )
        if container is None and catalog is None:
            return None
        if catalog is not None and collection is None:
            collection = self.collections.get(workflow)
        return Delivery(container=container, geo_catalog_url=catalog, collection_id=collection)

    def _check_served(self, values: Mapping[str, Any]) -> None:
        uploads = self.uploads, "does not deliver to Azure Blob"
        registers = self.registers, "registers nothing in a GeoCatalog"
        served = {CONTAINER_URL: uploads, GEO_CATALOG_URL: registers, COLLECTION_ID: registers}
        problems = [
            Problem(f"parameters.{name}", f"this server {otherwise}; leave it out")
            for name, (is_served, otherwise) in served.items()
            if values.get(name) is not None and not is_served
        ]
        if problems:
            raise InvalidParameters(problems)

    def _allowed_container(self, url: Any) -> Container:
        try:
            container = parse_container(str(url), self.emulator)
        except ValueError as error:
            raise _refused(CONTAINER_URL, str(error)) from None
        if not any(allowed.contains(container) for allowed in self.containers):
            raise _forbidden(CONTAINER_URL, "args.azure.blob.allowed_containers")
        return container

    def _allowed_catalog(self, url: Any) -> str:
        try:
            catalog = parse_catalog(str(url))
        except ValueError as error:
            raise _refused(GEO_CATALOG_URL, str(error)) from None
        if catalog not in self.catalogs:
            raise _forbidden(GEO_CATALOG_URL, "args.azure.geocatalog.allowed")
        return catalog

    def _allowed_collection(self, name: Any, workflow: str) -> str:
        try:
            collection = check_collection(str(name))
        except ValueError as error:
            raise _refused(COLLECTION_ID, str(error)) from None
        allowed = self.allowed_collections
        if allowed is not None and collection not in (self.collections.get(workflow), *allowed):
            raise _forbidden(COLLECTION_ID, "args.azure.geocatalog.allowed_collections")
        return collection


def parse_container(url: str, emulator: str | None = None) -> Container:
    """Parse the URL of a container, or of a folder in one.

    URLs that two parsers could read differently, such as those with escapes or ``..``, are refused.

    Parameters
    ----------
    url : str
        ``https://{account}.blob.{cloud}/{container}``, optionally with ``/{folder}``, of any cloud.
    emulator : str, optional
        Endpoint of an account whose name is part of the path.

    Raises
    ------
    ValueError
        With what is required.
    """
    required = "must be https://ACCOUNT.blob.core.windows.net/CONTAINER, optionally with /FOLDER"
    if emulator is not None and url.startswith(f"{emulator}/"):
        account_url, account = emulator, emulator.rpartition("/")[2]
        path = url[len(emulator) + 1 :]
    else:
        split = urlsplit(url)
        match = _ACCOUNT_HOST.fullmatch(split.netloc.lower())
        # `urlsplit` drops line breaks and tabs.
        if split.scheme != "https" or match is None or re.search(r"[\s?#\\]", url):
            raise ValueError(f"{required}; without port, credentials or query")
        account_url, account = f"https://{match[0]}", match[1]
        path = split.path[1:]
    return _below(account_url, account, path, required)


def _below(account_url: str, account: str, path: str, required: str) -> Container:
    name, *folders = path.removesuffix("/").split("/")
    if not _CONTAINER_NAME.fullmatch(name):
        raise ValueError(
            f"{required}; a container has 3 to 63 lower-case letters, digits and single hyphens"
        )
    if len(path) > MAX_FOLDER:
        raise ValueError(f"container and folder may have at most {MAX_FOLDER} characters together")
    if not all(map(_PREFIX_PART.fullmatch, folders)):
        raise ValueError("a folder has letters, digits, '.', '_', '=' and '-' between its slashes")
    return Container(account_url=account_url, account=account, name=name, prefix="/".join(folders))


def parse_results_container(url: str, emulator: str | None = None) -> Container:
    """Parse the container of ``results_url``: ``az://ACCOUNT/CONTAINER/FOLDER``.

    The account is the emulator's if it has that name, or else one of Azure's public cloud. An
    account of another cloud is given by a URL that `parse_container` accepts. Raises ValueError
    with what is required.
    """
    if url.startswith("https://"):
        return parse_container(url, emulator)
    required = "must be az://ACCOUNT/CONTAINER, optionally with /FOLDER"
    account, _, path = url.removeprefix("az://").partition("/")
    if not url.startswith("az://") or not _ACCOUNT.fullmatch(account):
        raise ValueError(f"{required}; an account has 3 to 24 lower-case letters and digits")
    if emulator is not None and account == emulator.rpartition("/")[2]:
        return _below(emulator, account, path, required)
    return _below(f"https://{account}.blob.core.windows.net", account, path, required)


def check_collection(name: str) -> str:
    """Return a valid name of a collection; raise ValueError for any other."""
    if not _COLLECTION.fullmatch(name):
        raise ValueError(
            "1 to 255 letters, digits, '.', '_' and '-' are allowed, of which the first is a "
            "letter or digit"
        )
    return name


def parse_catalog(url: str) -> str:
    """Return the normalized URL of a GeoCatalog; ValueError with what is required.

    ``http://`` is accepted for the operator's list of allowed catalogues.
    """
    split = urlsplit(url)
    host = split.hostname
    if not host or not re.fullmatch(r"https?://[A-Za-z0-9.:\[\]-]+(/[A-Za-z0-9._~-]+)*/?", url):
        raise ValueError("must be an https:// URL without credentials, query or escapes")
    if ":" in host:  # `hostname` has no brackets, which separate an IPv6 address from its port
        host = f"[{host}]"
    port = f":{split.port}" if split.port not in (None, 443) else ""
    return f"{split.scheme}://{host}{port}{split.path}".removesuffix("/")


def _refused(name: str, message: str) -> InvalidParameters:
    return InvalidParameters([Problem(f"parameters.{name}", message)])


def _forbidden(name: str, setting: str) -> DeliveryForbidden:
    message = f"this server does not deliver there: it is not in {setting}"
    return DeliveryForbidden([Problem(f"parameters.{name}", message, "forbidden")])
