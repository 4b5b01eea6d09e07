"""The only STAC HTTP of the project: collections and items of a GeoCatalog.

References
----------
Microsoft Planetary Computer Pro, data plane REST API, 2026-04-15.
"""

from __future__ import annotations

import asyncio
import ssl
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any
from urllib.parse import quote
from weakref import WeakValueDictionary

from deployments.geocatalog.http import GeoCatalogHttp, TimeLimit
from deployments.geocatalog.responses import (
    in_short,
    read_json,
    retry_after_s,
    told,
    words_of_error,
)
from workflows.errors import IngestionFailed
from workflows.execution import Stage

if TYPE_CHECKING:
    import httpx
    from azure.core.credentials_async import AsyncTokenCredential

API_VERSION = "2026-04-15"
SCOPE = "https://geocatalog.spatio.azure.com/.default"
TILE_SETTINGS = {"minZoom": 0, "maxItemsPerTile": 35}
"""A forecast covers much of the Earth: it is looked at from far away."""

FIRST_PAUSE_S, LONGEST_PAUSE_S = 1.0, 10.0
"""Between two looks, unless the service says how long to wait."""

UNFINISHED = frozenset({"pending", "running", "canceling"})


class GeoCatalogClient:
    """Puts collections and items into one catalogue, each once however often it is asked.

    Parameters
    ----------
    url : str
        Of the catalogue.
    credential : AsyncTokenCredential
        Who this server is; closed with the client.
    api_version : str
    verify : SSLContext or bool
        What verifies the service.
    scope : str
        What tokens are asked for.
    time_limit_s : float
        For each call, the service's own work included.
    request_limit_s : float
        For each answer.
    transport : httpx.AsyncBaseTransport, optional
    sleep, clock : callable
    """

    def __init__(
        self,
        url: str,
        credential: AsyncTokenCredential,
        *,
        api_version: str = API_VERSION,
        verify: ssl.SSLContext | bool = True,
        scope: str = SCOPE,
        time_limit_s: float,
        request_limit_s: float = 60.0,
        transport: httpx.AsyncBaseTransport | None = None,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.url = url.removesuffix("/")
        self._credential = credential
        self._time_limit_s = time_limit_s
        self._sleep = sleep
        self._clock = clock
        self._http = GeoCatalogHttp(
            self.url,
            credential,
            api_version=api_version,
            scope=scope,
            verify=verify,
            request_limit_s=request_limit_s,
            transport=transport,
            sleep=sleep,
        )
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    def collection_url(self, collection_id: str) -> str:
        """Give the URL of a collection."""
        return f"{self.url}{_collection_path(collection_id)}"

    async def close(self) -> None:
        """Close connections and the credential."""
        await self._http.close()
        await self._credential.close()

    async def ensure_collection(
        self, collection: Mapping[str, Any], render_options: Sequence[Mapping[str, Any]]
    ) -> None:
        """Create a collection unless it is there, and the render options that it lacks.

        One that is there stays as it is, with its tile settings and render options: an operator
        may have made them.

        Parameters
        ----------
        collection : mapping
            A STAC collection.
        render_options : sequence of mapping
            As the service takes them, ``id`` and ``options`` among them.

        Raises
        ------
        TransientFailure
            If the service stays busy or out of reach.
        IngestionFailed
            If it refuses.
        """
        path = _collection_path(collection["id"])
        async with self._locks.setdefault(path, asyncio.Lock()):
            limit = TimeLimit(self._time_limit_s, self._clock)
            is_new = await self._read(path, limit) is None
            if is_new:
                # 409: another process was first, or the answer to our own request was lost.
                answer = await self._http.send(
                    "POST", "/stac/collections", limit, collection, expected=(409,)
                )
                await self._complete(answer, limit)
                await self._until_there(path, limit)
            await self._configure(f"{path}/configurations", render_options, is_new, limit)

    async def _configure(
        self,
        path: str,
        render_options: Sequence[Mapping[str, Any]],
        is_new: bool,
        limit: TimeLimit,
    ) -> None:
        tiles = f"{path}/tile-settings"
        if is_new or await self._read(tiles, limit) is None:
            await self._http.send("PUT", tiles, limit, TILE_SETTINGS)
        options = f"{path}/render-options"
        answer = await self._http.send("GET", options, limit)
        there = {option["id"] for option in read_json(answer, list) if "id" in option}
        for option in render_options:
            if option["id"] not in there:
                await self._http.send("POST", options, limit, option, expected=(409,))

    async def put_item(self, collection_id: str, item: Mapping[str, Any]) -> str:
        """Create an item, or replace the one of its id.

        Returns
        -------
        str
            Its URL. The service has ingested it, and gives it.

        Raises
        ------
        TransientFailure
            If the service stays busy or out of reach.
        IngestionFailed
            If it refuses the item, fails with it or does not come to an end in time.
        """
        limit = TimeLimit(self._time_limit_s, self._clock)
        items = f"{_collection_path(collection_id)}/items"
        path = f"{items}/{quote(item['id'], safe='')}"
        is_there = await self._read(path, limit) is not None
        pause_s = FIRST_PAUSE_S
        while True:
            if is_there:
                answer = await self._http.send("PUT", path, limit, item, expected=(404, 409))
            else:
                answer = await self._http.send("POST", items, limit, item, expected=(409,))
            if answer.is_success:
                break
            # The service is about to take in, or to remove, an item of this id: that of an attempt
            # that was killed, say. To a PUT an item that is not all there may not be there at all.
            is_there = answer.status_code == 409
            if not limit.allows(pause_s):
                raise IngestionFailed(
                    Stage.REGISTER,
                    f"the catalogue neither created nor replaced {item['id']} within "
                    f"{limit.used_s:.0f} s: {told(answer)}",
                )
            await self._sleep(pause_s)
            pause_s = min(2 * pause_s, LONGEST_PAUSE_S)
        await self._complete(answer, limit)
        found = await self._until_there(path, limit)
        if found.get("id") != item["id"]:
            raise IngestionFailed(
                Stage.REGISTER, f"the catalogue gives another item in the place of {item['id']}"
            )
        return f"{self.url}{path}"

    async def _complete(self, answer: httpx.Response, limit: TimeLimit) -> None:
        """Wait for the operation that an answer names; without one all is done already."""
        if answer.status_code != 202:
            return
        url = self._http.named_by(answer)
        name = f"operation {in_short(url.path.rpartition('/')[2])} of the catalogue"
        status, pause_s = "not looked at", FIRST_PAUSE_S
        while True:
            # No more often than that even if it asks for no pause.
            wait_s = retry_after_s(answer) or pause_s
            if not limit.allows(wait_s):
                raise IngestionFailed(
                    Stage.REGISTER, f"{name} was still {status} after {limit.used_s:.0f} s"
                )
            await self._sleep(wait_s)
            pause_s = min(1.5 * pause_s, LONGEST_PAUSE_S)
            answer = await self._http.send("GET", url, limit)
            operation = read_json(answer, dict)
            status = in_short(str(operation.get("status")))
            if status.casefold() not in UNFINISHED:
                break
        if status.casefold() in ("failed", "canceled"):
            raise IngestionFailed(
                Stage.REGISTER, f"{name} ended as {status}: {_why(operation) or 'it says no more'}"
            )
        if status.casefold() != "succeeded":
            raise IngestionFailed(
                Stage.REGISTER, f"{name} has a status that is not known: {status}"
            )
        if failed := _failed_items(operation):
            raise IngestionFailed(
                Stage.REGISTER,
                f"{name} succeeded but for {failed} items: {_why(operation) or 'it says no more'}",
            )

    async def _until_there(self, path: str, limit: TimeLimit) -> dict[str, Any]:
        pause_s = FIRST_PAUSE_S
        while (found := await self._read(path, limit)) is None:
            if not limit.allows(pause_s):
                raise IngestionFailed(
                    Stage.REGISTER,
                    f"the catalogue says that it has {path}, but after {limit.used_s:.0f} s it "
                    "still gives none",
                )
            await self._sleep(pause_s)
            pause_s = min(1.5 * pause_s, LONGEST_PAUSE_S)
        return found

    async def _read(self, path: str, limit: TimeLimit) -> dict[str, Any] | None:
        answer = await self._http.send("GET", path, limit, expected=(404,))
        found: dict[str, Any] | None = None
        if answer.status_code != 404:
            found = read_json(answer, dict)
        return found


def _collection_path(collection_id: str) -> str:
    return f"/stac/collections/{quote(collection_id, safe='')}"


def _why(operation: Mapping[str, Any]) -> str:
    """Tell what an operation says of its failure: its error, or else its last status."""
    words = words_of_error(operation["error"]) if operation.get("error") else ""
    history = operation.get("statusHistory")
    if not words and isinstance(history, list) and history and isinstance(history[-1], dict):
        said = (history[-1].get(name) for name in ("errorCode", "errorMessage"))
        words = ": ".join(str(part) for part in said if part)
    more = operation.get("additionalInformation")
    if isinstance(more, dict) and more:
        details = ", ".join(f"{key} {value}" for key, value in more.items())
        words = f"{words} ({details})" if words else details
    return in_short(words)


def _failed_items(operation: Mapping[str, Any]) -> int:
    more = operation.get("additionalInformation")
    for name, value in more.items() if isinstance(more, dict) else ():
        if name.casefold() == "totalfaileditems" and str(value).isdigit():
            return int(value)
    return 0
