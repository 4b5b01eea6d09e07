"""Where results go besides this server: a Blob container, a GeoCatalog.

A client names places, the server reaches them with its own identity. So a place counts only if it
is one that the operator has allowed, before anything is accepted.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict

from workflows.errors import DeliveryForbidden, InvalidParameters, Problem

CONTAINER_URL, GEO_CATALOG_URL, COLLECTION_ID = DELIVERY = (
    "container_url",
    "geo_catalog_url",
    "collection_id",
)
"""Parameters that say where results go, as Earth2Studio's own workflows name them."""

_ACCOUNT_HOST = re.compile(r"([a-z0-9]{3,24})\.(?:z[0-9]{1,2}\.)?blob\.[a-z0-9-]+(?:\.[a-z0-9-]+)+")
MAX_FOLDER = 512
"""Characters. The name of a blob may have 1024, and those of results' files come behind."""

_ACCOUNT = re.compile(r"[a-z0-9]{3,24}")
_CONTAINER_NAME = re.compile(r"(?!.*--)[a-z0-9][a-z0-9-]{1,61}[a-z0-9]")
_PREFIX_PART = re.compile(r"(?!\.{1,2}$)[A-Za-z0-9._=-]{1,255}(?<!\.)")
_COLLECTION = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


class Container(BaseModel):
    """A Blob container, or a folder in one."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    account_url: str
    """Endpoint of the storage account, ``https://`` and without a slash at the end."""
    account: str
    name: str
    prefix: str = ""
    """Folder in the container, without slashes at its ends; empty is the container itself."""

    @property
    def url(self) -> str:
        """URL of the container, or of the folder."""
        return "/".join(filter(None, (self.account_url, self.name, self.prefix)))

    def holds(self, other: Container) -> bool:
        """Say whether another place is this one or lies below it."""
        return f"{other.url}/".startswith(f"{self.url}/")


class Delivery(BaseModel):
    """Where the results of one execution go; what is None is not asked for."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    container: Container | None = None
    geo_catalog_url: str | None = None
    """Without a slash at its end."""
    collection_id: str | None = None


class DeliveryRules(BaseModel):
    """What the operator allows, and what goes where if a request does not say so."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    containers: tuple[Container, ...] = ()
    default_container: Container | None = None
    emulator: str | None = None
    """Endpoint of an account whose name comes in the path, as Azurite's does."""
    catalogs: tuple[str, ...] = ()
    default_catalog: str | None = None
    collections: Mapping[str, str] = {}
    """Collection of a workflow's items where a request names none."""
    results_in_blob: bool = False
    """Whether results lie in a container anyway, so that a catalogue can refer to them."""

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
        """Decide where the results of a request go.

        Parameters
        ----------
        workflow : str
        values : mapping
            Parameters of the request, by name.
        can_be_registered : bool
            Whether results of this workflow can be described for a catalogue.

        Returns
        -------
        Delivery or None
            None if they stay here.

        Raises
        ------
        DeliveryForbidden
            If the request names a place that is not allowed.
        InvalidParameters
            If it names what is no such place, or what this server has nothing for.
        """
        self._refuse_what_is_not_served(values)
        if not can_be_registered and values.get(GEO_CATALOG_URL) is not None:
            raise _refused(GEO_CATALOG_URL, "results of this workflow are uploaded, not registered")
        container = self.default_container
        catalog = self.default_catalog if can_be_registered else None
        if (asked := values.get(CONTAINER_URL)) is not None:
            container = self._allowed_container(asked)
        if (asked := values.get(GEO_CATALOG_URL)) is not None:
            catalog = self._allowed_catalog(asked)
        collection = values.get(COLLECTION_ID)
        if collection is not None and catalog is None:
            raise _refused(COLLECTION_ID, f"a collection needs a catalogue: give {GEO_CATALOG_URL}")
        try:
            collection = None if collection is None else check_collection(str(collection))
        except ValueError as error:
            raise _refused(COLLECTION_ID, str(error)) from None
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

    def _refuse_what_is_not_served(self, values: Mapping[str, Any]) -> None:
        served = {
            CONTAINER_URL: self.uploads,
            GEO_CATALOG_URL: self.registers,
            COLLECTION_ID: self.registers,
        }
        what = {CONTAINER_URL: "does not deliver to Azure Blob"}
        problems = [
            Problem(
                f"parameters.{name}",
                f"this server {what.get(name, 'registers nothing in a GeoCatalog')}; leave it out",
            )
            for name, is_served in served.items()
            if values.get(name) is not None and not is_served
        ]
        if problems:
            raise InvalidParameters(problems)

    def _allowed_container(self, url: Any) -> Container:
        try:
            container = parse_container(str(url), self.emulator)
        except ValueError as error:
            raise _refused(CONTAINER_URL, str(error)) from None
        if not any(allowed.holds(container) for allowed in self.containers):
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


def parse_container(url: str, emulator: str | None = None) -> Container:
    """Read the URL of a container, or of a folder in one.

    Parameters
    ----------
    url : str
        ``https://{account}.blob.{cloud}/{container}`` and perhaps ``/{folder}``, of any cloud.
    emulator : str, optional
        Endpoint of an account whose name comes in the path.

    Raises
    ------
    ValueError
        Saying what is needed. Two URLs of one place are read alike, so what could be read in
        two ways, such as escapes and ``..``, is refused.
    """
    needed = "https://ACCOUNT.blob.core.windows.net/CONTAINER is needed, perhaps with /FOLDER"
    if emulator is not None and url.startswith(f"{emulator}/"):
        account_url, account = emulator, emulator.rpartition("/")[2]
        path = url[len(emulator) + 1 :]
    else:
        split = urlsplit(url)
        match = _ACCOUNT_HOST.fullmatch(split.netloc.lower())
        # `urlsplit` drops line breaks and tabs.
        if split.scheme != "https" or match is None or re.search(r"[\s?#\\]", url):
            raise ValueError(f"{needed}; without port, credentials or query")
        account_url, account = f"https://{match[0]}", match[1]
        path = split.path[1:]
    return _below(account_url, account, path, needed)


def _below(account_url: str, account: str, path: str, needed: str) -> Container:
    name, *folders = path.removesuffix("/").split("/")
    if not _CONTAINER_NAME.fullmatch(name):
        raise ValueError(
            f"{needed}; a container has 3 to 63 lower-case letters, digits and single hyphens"
        )
    if len(path) > MAX_FOLDER:
        raise ValueError(f"container and folder have {MAX_FOLDER} characters together at most")
    if not all(map(_PREFIX_PART.fullmatch, folders)):
        raise ValueError("a folder has letters, digits, '.', '_', '=' and '-' between its slashes")
    return Container(account_url=account_url, account=account, name=name, prefix="/".join(folders))


def parse_results_container(url: str, emulator: str | None = None) -> Container:
    """Read where results lie, if that is a container: ``az://ACCOUNT/CONTAINER/FOLDER``.

    The account is the emulator's if it has that name, else one of Azure's public cloud. In
    another cloud it has the URL of its own, as `parse_container` reads it.

    Raises
    ------
    ValueError
        Saying what is needed.
    """
    if url.startswith("https://"):
        return parse_container(url, emulator)
    needed = "az://ACCOUNT/CONTAINER is needed, perhaps with /FOLDER"
    account, _, path = url.removeprefix("az://").partition("/")
    if not url.startswith("az://") or not _ACCOUNT.fullmatch(account):
        raise ValueError(f"{needed}; an account has 3 to 24 lower-case letters and digits")
    if emulator is not None and account == emulator.rpartition("/")[2]:
        return _below(emulator, account, path, needed)
    return _below(f"https://{account}.blob.core.windows.net", account, path, needed)


def check_collection(name: str) -> str:
    """Refuse what cannot name a collection.

    Raises
    ------
    ValueError
        Saying what is allowed.
    """
    if not _COLLECTION.fullmatch(name):
        raise ValueError("letters, digits, '.', '_' and '-' are allowed")
    return name


def parse_catalog(url: str) -> str:
    """Read the URL of a GeoCatalog; whether it may be ``http://``, the allow-list says.

    Raises
    ------
    ValueError
        Saying what is needed.
    """
    if not re.fullmatch(r"https?://[A-Za-z0-9.:\[\]-]+(/[A-Za-z0-9._~-]+)*/?", url):
        raise ValueError("an https:// URL without credentials, query or escapes is needed")
    split = urlsplit(url)
    port = f":{split.port}" if split.port not in (None, 443) else ""
    return f"{split.scheme}://{split.hostname}{port}{split.path}".removesuffix("/")


def _refused(name: str, message: str) -> InvalidParameters:
    return InvalidParameters([Problem(f"parameters.{name}", message)])


def _forbidden(name: str, setting: str) -> DeliveryForbidden:
    message = f"this server may not deliver there: it is not in {setting}"
    return DeliveryForbidden([Problem(f"parameters.{name}", message, "forbidden")])
