"""Collections and items of a GeoCatalog; the only STAC API client of the project.

References
----------
Microsoft Planetary Computer Pro, data plane REST API, 2026-04-15.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import quote
from weakref import WeakValueDictionary

from deployments.geocatalog.http import Deadline, GeoCatalogHttp
from deployments.geocatalog.options import GeoCatalogOptions
from deployments.geocatalog.responses import (
    describe_operation,
    describe_response,
    failed_items,
    quote_text,
    read_json,
)
from deployments.runtime.retries import RetryPolicy, parse_retry_after
from workflows.errors import IngestionFailed
from workflows.execution import Stage

if TYPE_CHECKING:
    import httpx
    from azure.core.credentials_async import AsyncTokenCredential

logger = logging.getLogger("ray.serve")

TILE_SETTINGS = {"minZoom": 0, "maxItemsPerTile": 35}
"""A forecast covers much of the Earth, so it is visible at all zoom levels."""
POLL = RetryPolicy(initial_delay_s=1.0, factor=1.5, max_delay_s=10.0)
REPLACEMENT = RetryPolicy(initial_delay_s=1.0, max_delay_s=10.0)
UNFINISHED = frozenset({"pending", "running", "canceling"})


class _Ingestion(NamedTuple):
    """An operation of the service that has not ended."""

    item: Mapping[str, Any]
    response: httpx.Response
    """The response that started it."""
    deadline: Deadline


class GeoCatalogClient:
    """Creates collections and items in one catalogue; every call may be repeated.

    The credential is this server's identity, and is closed with the client.
    """

    def __init__(
        self,
        url: str,
        credential: AsyncTokenCredential,
        options: GeoCatalogOptions,
        *,
        transport: httpx.AsyncBaseTransport | None = None,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.url = url.removesuffix("/")
        self._credential = credential
        self._time_limit_s = options.time_limit_s
        self._sleep = sleep
        self._clock = clock
        self._http = GeoCatalogHttp(self.url, credential, options, transport=transport, sleep=sleep)
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._ingesting: dict[str, _Ingestion] = {}
        """Operations by path of the item, until they end or the call that sent it would have."""

    def collection_url(self, collection_id: str) -> str:
        """Return the URL of a collection."""
        return f"{self.url}{_collection_path(collection_id)}"

    async def close(self) -> None:
        """Close connections and the credential."""
        await self._http.close()
        await self._credential.close()

    async def ensure_collection(
        self, collection: Mapping[str, Any], render_options: Sequence[Mapping[str, Any]]
    ) -> None:
        """Create a collection if it does not exist, and the render options that it lacks.

        An existing collection, its tile settings and its render options are not changed: an
        operator may have made them.

        Parameters
        ----------
        collection : mapping
            A STAC collection.
        render_options : sequence of mapping
            As the service takes them, with ``id`` and ``options``.

        Raises
        ------
        TransientFailure
            If the service stays busy or unreachable.
        IngestionFailed
            If it refuses.
        """
        path = _collection_path(collection["id"])
        async with self._locks.setdefault(path, asyncio.Lock()):
            deadline = self._deadline()
            is_new = await self._read(path, deadline) is None
            if is_new:
                # 409: another process was first, or the response to this request was lost.
                response = await self._http.send(
                    "POST", "/stac/collections", deadline, collection, expected=(409,)
                )
                await self._wait_for_operation(response, deadline)
                await self._wait_until_found(path, deadline)
            await self._configure(f"{path}/configurations", render_options, is_new, deadline)

    async def _configure(
        self,
        path: str,
        render_options: Sequence[Mapping[str, Any]],
        is_new: bool,
        deadline: Deadline,
    ) -> None:
        tiles = f"{path}/tile-settings"
        if is_new or await self._read(tiles, deadline) is None:
            await self._http.send("PUT", tiles, deadline, TILE_SETTINGS)
        options = f"{path}/render-options"
        response = await self._http.send("GET", options, deadline)
        existing = {option["id"] for option in read_json(response, list) if "id" in option}
        for option in render_options:
            if option["id"] not in existing:
                await self._http.send("POST", options, deadline, option, expected=(409,))

    async def put_item(self, collection_id: str, item: Mapping[str, Any]) -> str:
        """Create an item, or replace the one with its id.

        The operation of a call that was interrupted is resumed for as long as its time limit. If it
        has failed, or the service no longer knows it, the item is sent again.

        Returns
        -------
        str
            URL of the item, which the service has ingested.

        Raises
        ------
        TransientFailure
            If the service stays busy or unreachable.
        IngestionFailed
            If it refuses the item, fails to ingest it or does not finish in time.
        """
        deadline = self._deadline()
        items = f"{_collection_path(collection_id)}/items"
        path = f"{items}/{quote(item['id'], safe='')}"
        if not await self._resume(path, item, deadline):
            response = await self._send_item(items, path, item, deadline)
            self._ingesting[path] = ingestion = _Ingestion(item, response, deadline)
            await self._wait_for_item(path, ingestion, deadline)
        found = await self._wait_until_found(path, deadline)
        if found.get("id") != item["id"]:
            raise IngestionFailed(
                Stage.REGISTER, f"the catalogue returned another item than {item['id']}"
            )
        return f"{self.url}{path}"

    async def _resume(self, path: str, item: Mapping[str, Any], deadline: Deadline) -> bool:
        """Wait for the operation that an interrupted call has started; return whether it succeeded.

        False also if there is none for this item.
        """
        for old in [path for path, each in self._ingesting.items() if each.deadline.is_over]:
            del self._ingesting[old]
        ingestion = self._ingesting.get(path)
        if ingestion is None or ingestion.item != item:
            return False
        try:
            await self._wait_for_item(path, ingestion, deadline)
        except IngestionFailed as error:
            logger.warning("%s is sent again: %s", item["id"], error)
            return False
        return True

    async def _wait_for_item(self, path: str, ingestion: _Ingestion, deadline: Deadline) -> None:
        """Wait until an item is ingested; an interruption leaves the operation to the next call."""
        try:
            await self._wait_for_operation(ingestion.response, deadline)
        except IngestionFailed:
            self._ingesting.pop(path, None)
            raise
        self._ingesting.pop(path, None)

    async def _send_item(
        self, items: str, path: str, item: Mapping[str, Any], deadline: Deadline
    ) -> httpx.Response:
        """Send an item until the service accepts it, and return its response."""
        exists = await self._read(path, deadline) is not None
        backoff = deadline.backoff(REPLACEMENT)
        while True:
            if exists:
                response = await self._http.send("PUT", path, deadline, item, expected=(404, 409))
            else:
                response = await self._http.send("POST", items, deadline, item, expected=(409,))
            if response.is_success:
                return response
            # The service is ingesting or removing an item of this id, such as that of a killed
            # attempt. A PUT may not find an item that is not complete yet.
            exists = response.status_code == 409
            delay_s = backoff.next_delay_s()
            if delay_s is None:
                raise IngestionFailed(
                    Stage.REGISTER,
                    f"the catalogue neither created nor replaced {item['id']} within "
                    f"{deadline.used_s:.0f} s: {describe_response(response)}",
                )
            await self._sleep(delay_s)

    async def _wait_for_operation(self, response: httpx.Response, deadline: Deadline) -> None:
        """Wait until the operation that a response started has ended; 202 is the only one."""
        if response.status_code != 202:
            return
        url = self._http.operation_url(response)
        name = f"operation {quote_text(url.path.rpartition('/')[2])} of the catalogue"
        status, backoff = "not polled", deadline.backoff(POLL)
        while True:
            # A Retry-After of 0 would flood the service.
            requested_s = parse_retry_after(response.headers.get("retry-after")) or None
            delay_s = backoff.next_delay_s(requested_s)
            if delay_s is None:
                raise IngestionFailed(
                    Stage.REGISTER, f"{name} was still {status} after {deadline.used_s:.0f} s"
                )
            await self._sleep(delay_s)
            response = await self._http.send("GET", url, deadline)
            operation = read_json(response, dict)
            status = quote_text(str(operation.get("status")))
            if status.casefold() not in UNFINISHED:
                break
        if status.casefold() in ("failed", "canceled"):
            raise IngestionFailed(
                Stage.REGISTER, f"{name} ended as {status}: {describe_operation(operation)}"
            )
        if status.casefold() != "succeeded":
            raise IngestionFailed(Stage.REGISTER, f"{name} has an unknown status: {status}")
        if n_failed := failed_items(operation):
            raise IngestionFailed(
                Stage.REGISTER,
                f"{name} succeeded except for {n_failed} items: {describe_operation(operation)}",
            )

    async def _wait_until_found(self, path: str, deadline: Deadline) -> dict[str, Any]:
        """Wait until the service returns a document that it reported as created."""
        backoff = deadline.backoff(POLL)
        while (found := await self._read(path, deadline)) is None:
            delay_s = backoff.next_delay_s()
            if delay_s is None:
                raise IngestionFailed(
                    Stage.REGISTER,
                    f"the catalogue reported {path} as created but did not return it within "
                    f"{deadline.used_s:.0f} s",
                )
            await self._sleep(delay_s)
        return found

    async def _read(self, path: str, deadline: Deadline) -> dict[str, Any] | None:
        """Return a document, or None if it does not exist."""
        response = await self._http.send("GET", path, deadline, expected=(404,))
        return None if response.status_code == 404 else read_json(response, dict)

    def _deadline(self) -> Deadline:
        return Deadline(self._time_limit_s, self._clock)


def _collection_path(collection_id: str) -> str:
    return f"/stac/collections/{quote(collection_id, safe='')}"
