"""A GeoCatalog in memory, written from the REST contract.

It is a real server on loopback. Tests request its faults: see `GeoCatalogEmulator.fail_next` and
`Course`.
"""

from __future__ import annotations

import asyncio
import re
import time
import uuid
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from aiohttp import web

from tests.emulators.geocatalog_rules import (
    COLLECTION_ID,
    Refusal,
    check_document,
    check_item,
    check_render_option,
    ingested,
    now,
    patched,
)
from tests.emulators.loopback import LoopbackServer, Recorded
from tests.emulators.tokens import GEOCATALOG_AUDIENCE, read_claims

API_VERSION = "2026-04-15"
DEFAULT_TILES = {"minZoom": 12, "maxItemsPerTile": 5}


@dataclass
class Fault:
    """What happens to requests instead of, or after, the normal handling."""

    method: str
    path: re.Pattern[str]
    times: int
    status: int | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    body: Any = None
    delay_s: float = 0
    reset: bool = False
    carried_out: bool = False


@dataclass
class Course:
    """How an operation proceeds."""

    polls: int
    """Number of requests of any kind before it ends."""
    ends: str | None = "Succeeded"
    """Final status; None if it never ends."""
    code: str = ""
    message: str = ""
    additional: Mapping[str, str] = field(default_factory=dict)
    status: str = "Running"
    """Status before it ends, from the second request on."""
    location: str | None = ""
    """Header instead of the operation's URL; None for no header."""
    headers: Mapping[str, str] = field(default_factory=dict)
    """Headers of the response that accepts it, and of those that describe it."""


@dataclass
class Operation:
    """A long-running operation that the service has accepted."""

    id: str
    kind: str
    collection_id: str
    plan: Course
    do: Callable[[], None]
    undo: Callable[[], None]
    status: str = "Pending"
    ticks: int = 0
    created: str = field(default_factory=now)
    history: list[dict[str, str]] = field(default_factory=list)

    def tick(self) -> None:
        """Proceed; called before every request."""
        if self.status not in ("Pending", "Running", "Canceling"):
            return
        plan = self.plan
        if plan.ends is None or self.ticks < plan.polls:
            self._become("Pending" if self.ticks == 0 else plan.status)
            self.ticks += 1
            return
        self._become(plan.ends)
        (self.do if plan.ends == "Succeeded" else self.undo)()

    def _become(self, status: str) -> None:
        if not self.history or status != self.status:
            self.history.append({"timestamp": now(), "status": status})
        self.status = status
        if status == "Failed":
            self.history[-1] |= {
                "errorCode": self.plan.code,
                "errorMessage": self.plan.message,
            }

    def describe(self) -> dict[str, Any]:
        """Return the service's description of the operation."""
        body: dict[str, Any] = {
            "id": self.id,
            "status": self.status,
            "type": self.kind,
            "creationTime": self.created,
            "collectionId": self.collection_id,
            "statusHistory": self.history,
            "startTime": self.created,
            "additionalInformation": dict(self.plan.additional) or None,
        }
        if self.status == "Failed":
            body["error"] = {"error": {"code": self.plan.code, "message": self.plan.message}}
        return {name: value for name, value in body.items() if value is not None}


class GeoCatalogEmulator(LoopbackServer):
    """The service.

    Parameters
    ----------
    tls : tuple of Path, optional
        Certificate and key; without them, Azure's own clients send no token.
    polls : int
        Number of requests before an operation ends. Requests of any kind count, so that operations
        that nobody polls end, too.
    creates_at_once : bool
        Whether a collection is created by the request itself, as the service is said to do. By the
        contract it is created by an operation.
    default_tiles : bool
        Whether a new collection has tile settings.
    """

    def __init__(
        self,
        tls: tuple[Path, Path] | None = None,
        *,
        polls: int = 1,
        creates_at_once: bool = False,
        default_tiles: bool = False,
    ) -> None:
        super().__init__(tls)
        self.polls = polls
        self.creates_at_once = creates_at_once
        self.default_tiles = default_tiles
        self.collections: dict[str, dict[str, Any]] = {}
        self.items: dict[tuple[str, str], dict[str, Any]] = {}
        self.tile_settings: dict[str, dict[str, Any]] = {}
        self.render_options: dict[str, dict[str, dict[str, Any]]] = {}
        self.operations: dict[str, Operation] = {}
        self._taken: set[tuple[str, ...]] = set()
        """Ids of collections and items whose creation is in progress."""
        self._faults: list[Fault] = []
        self._plans: deque[Course] = deque()

    def fail_next(
        self,
        method: str,
        path: str,
        *,
        times: int = 1,
        status: int | None = None,
        headers: Mapping[str, str] | None = None,
        body: Any = None,
        delay_s: float = 0,
        reset: bool = False,
        carried_out: bool = False,
    ) -> None:
        """Disturb the next requests of a method whose path matches a pattern.

        Parameters
        ----------
        method : str
        path : str
        times : int
            Number of requests.
        status, headers, body : optional
            The response; without a status, the normal one.
        delay_s : float
            Delay before anything else.
        reset : bool
            Whether to reset the connection instead of responding.
        carried_out : bool
            Whether the request takes effect.
        """
        self._faults.append(
            Fault(
                method,
                re.compile(path),
                times,
                status,
                dict(headers or {}),
                body,
                delay_s,
                reset,
                carried_out,
            )
        )

    def forget_faults(self) -> None:
        """Handle all requests normally from now on."""
        self._faults.clear()
        self._plans.clear()

    def run_next(self, *plans: Course) -> None:
        """Set how the next operations proceed."""
        self._plans.extend(plans)

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        recorded = await self._record(request)
        fault = self._fault_of(request)
        if fault is None:
            return self._handled(request, recorded)
        await asyncio.sleep(fault.delay_s)
        if fault.carried_out:
            self._handled(request, recorded)
        if fault.reset:
            assert request.transport is not None
            request.transport.abort()
            return web.Response()
        if fault.status is None:
            return self._handled(request, recorded)
        if isinstance(fault.body, str):
            return web.Response(status=fault.status, text=fault.body, headers=fault.headers)
        return web.json_response(fault.body, status=fault.status, headers=fault.headers)

    def _fault_of(self, request: web.Request) -> Fault | None:
        for fault in self._faults:
            if fault.times and fault.method == request.method and fault.path.search(request.path):
                fault.times -= 1
                return fault
        return None

    def _handled(self, request: web.Request, recorded: Recorded) -> web.Response:
        try:
            self._check_token(recorded.token)
            if request.query.get("api-version") != API_VERSION:
                raise Refusal(400, "UnsupportedApiVersion", "api-version is not supported")
            for operation in list(self.operations.values()):
                operation.tick()
            return self._route(request, recorded.document)
        except Refusal as refusal:
            return refusal.response()

    def _check_token(self, token: str | None) -> None:
        try:
            claims = read_claims(token or "")
        except ValueError:
            raise Refusal(401, "Unauthorized", "a bearer token is needed") from None
        if claims.get("aud") != GEOCATALOG_AUDIENCE:
            raise Refusal(401, "InvalidAudience", "the token is for another audience")
        if claims.get("exp", 0) <= time.time():
            raise Refusal(401, "ExpiredToken", "the token has expired")

    def _route(self, request: web.Request, document: Any) -> web.Response:
        parts = request.path.strip("/").split("/")
        match request.method, *parts:
            case "GET", "inma", "operations", operation_id:
                return web.json_response(
                    self._operation(operation_id).describe(),
                    headers=self._operation(operation_id).plan.headers,
                )
            case "DELETE", "inma", "operations", operation_id:
                self._operation(operation_id).plan = Course(0, "Canceled")
                return web.Response(status=204)
            case "GET", "stac", "collections":
                return web.json_response(
                    {"collections": list(self.collections.values()), "links": []}
                )
            case "POST", "stac", "collections":
                return self._create_collection(document)
            case method, "stac", "collections", collection_id:
                return self._collection(method, collection_id, document)
            case method, "stac", "collections", collection_id, "items":
                return self._items(method, collection_id, document)
            case method, "stac", "collections", collection_id, "items", item_id:
                return self._item(method, collection_id, item_id, document)
            case method, "stac", "collections", collection_id, "configurations", *rest:
                return self._configuration(method, collection_id, rest, document)
        raise Refusal(404, "NotFound", f"no {request.method} {request.path}")

    def _operation(self, operation_id: str) -> Operation:
        if operation_id not in self.operations:
            raise Refusal(404, "OperationNotFound", f"no operation {operation_id}")
        return self.operations[operation_id]

    def _create_collection(self, document: Any) -> web.Response:
        check_document(document, "Collection")
        collection_id = document["id"]
        if not COLLECTION_ID.fullmatch(collection_id):
            raise Refusal(400, "InvalidCollectionId", collection_id)
        if collection_id in self.collections or (collection_id,) in self._taken:
            raise Refusal(409, "CollectionAlreadyExists", f"{collection_id} already exists")

        def create() -> None:
            self._taken.discard((collection_id,))
            self.collections[collection_id] = document
            self.render_options[collection_id] = {}
            if self.default_tiles:
                self.tile_settings[collection_id] = dict(DEFAULT_TILES)

        if self.creates_at_once:
            create()
            return web.json_response(document, status=201)
        self._taken.add((collection_id,))
        return self._accept(
            "CollectionCreate", collection_id, create, lambda: self._taken.discard((collection_id,))
        )

    def _collection(self, method: str, collection_id: str, document: Any) -> web.Response:
        found = self._existing(collection_id)
        match method:
            case "GET":
                return web.json_response(found)
            case "PUT":
                check_document(document, "Collection")
                self.collections[collection_id] = document
                return web.json_response(document)
            case "DELETE":
                return self._accept(
                    "CollectionDelete", collection_id, lambda: self._remove(collection_id)
                )
        raise Refusal(405, "MethodNotAllowed", method)

    def _remove(self, collection_id: str) -> None:
        del self.collections[collection_id], self.render_options[collection_id]
        self.tile_settings.pop(collection_id, None)
        self.items = {key: item for key, item in self.items.items() if key[0] != collection_id}

    def _existing(self, collection_id: str) -> dict[str, Any]:
        if collection_id not in self.collections:
            raise Refusal(404, "CollectionNotFound", f"no collection {collection_id}")
        return self.collections[collection_id]

    def _items(self, method: str, collection_id: str, document: Any) -> web.Response:
        self._existing(collection_id)
        if method == "GET":
            found = [item for key, item in self.items.items() if key[0] == collection_id]
            return web.json_response({"type": "FeatureCollection", "features": found, "links": []})
        if method != "POST":
            raise Refusal(405, "MethodNotAllowed", method)
        check_item(document, collection_id)
        key = (collection_id, document["id"])
        if key in self.items or key in self._taken:
            raise Refusal(409, "ItemAlreadyExists", f"{document['id']} already exists")
        self._taken.add(key)

        def create() -> None:
            self._taken.discard(key)
            self.items[key] = ingested(document)

        return self._accept("ItemCreate", collection_id, create, lambda: self._taken.discard(key))

    def _item(self, method: str, collection_id: str, item_id: str, document: Any) -> web.Response:
        self._existing(collection_id)
        key = (collection_id, item_id)
        if key not in self.items:
            raise Refusal(404, "ItemNotFound", f"no item {item_id}")
        match method:
            case "GET":
                return web.json_response(self.items[key])
            case "PUT" | "PATCH":
                if method == "PATCH":
                    document = patched(self.items[key], document)
                check_item(document, collection_id)
                if document["id"] != item_id:
                    raise Refusal(400, "IdMismatch", "the id differs from that of the path")
                return self._accept(
                    "ItemUpdate",
                    collection_id,
                    lambda: self.items.__setitem__(key, ingested(document)),
                )
            case "DELETE":
                return self._accept("ItemDelete", collection_id, lambda: self._drop(key))
        raise Refusal(405, "MethodNotAllowed", method)

    def _drop(self, key: tuple[str, str]) -> None:
        self.items.pop(key, None)

    def _configuration(
        self, method: str, collection_id: str, rest: Sequence[str], document: Any
    ) -> web.Response:
        self._existing(collection_id)
        options = self.render_options[collection_id]
        match method, *rest:
            case "GET", "tile-settings":
                if collection_id not in self.tile_settings:
                    raise Refusal(404, "TileSettingsNotFound", collection_id)
                return web.json_response(self.tile_settings[collection_id])
            case "PUT", "tile-settings":
                if not {"minZoom", "maxItemsPerTile"} <= set(document):
                    raise Refusal(400, "InvalidTileSettings", str(document))
                self.tile_settings[collection_id] = document
                return web.json_response(document)
            case "GET", "render-options":
                return web.json_response(list(options.values()))
            case "POST", "render-options":
                check_render_option(document)
                if document["id"] in options:
                    raise Refusal(409, "RenderOptionAlreadyExists", document["id"])
                options[document["id"]] = document
                return web.json_response(document, status=201)
            case method, "render-options", option_id:
                if option_id not in options:
                    raise Refusal(404, "RenderOptionNotFound", option_id)
                if method == "PUT":
                    check_render_option(document)
                    options[option_id] = document
                if method == "DELETE":
                    del options[option_id]
                    return web.Response()
                return web.json_response(options[option_id])
        raise Refusal(405, "MethodNotAllowed", method)

    def _accept(
        self,
        kind: str,
        collection_id: str,
        do: Callable[[], None],
        undo: Callable[[], None] = lambda: None,
    ) -> web.Response:
        plan = self._plans.popleft() if self._plans else Course(self.polls)
        operation = Operation(str(uuid.uuid4()), kind, collection_id, plan, do, undo)
        self.operations[operation.id] = operation
        location = plan.location
        if location == "":
            location = f"{self.url}/inma/operations/{operation.id}?api-version={API_VERSION}"
        elif location is not None:
            location = location.replace("{id}", operation.id)
        named = {} if location is None else {"Location": location, "Operation-Location": location}
        return web.json_response({"id": operation.id}, status=202, headers=named | plan.headers)
