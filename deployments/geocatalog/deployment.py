"""GeoCatalog: register results in a catalogue of Planetary Computer Pro."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

from ray import serve

from deployments.geocatalog.client import GeoCatalogClient
from deployments.geocatalog.messages import Registered, Registration
from deployments.geocatalog.options import GeoCatalogOptions
from deployments.runtime.gpus import hide_gpus
from deployments.runtime.log_context import bind_execution
from deployments.runtime.metrics import RAY, REGISTRATIONS, Recorder
from workflows.errors import IngestionFailed
from workflows.execution import Stage
from workflows.stac.collection import default_collection_id, describe_collection
from workflows.stac.item import describe_item
from workflows.stac.renders import render_options

logger = logging.getLogger("ray.serve")


@serve.deployment(
    name="GeoCatalog",
    max_ongoing_requests=16,
    health_check_period_s=5,
    health_check_timeout_s=15,
)
class GeoCatalog:
    """Registers results as items; a registration may be repeated."""

    def __init__(self, options: GeoCatalogOptions, metrics: Recorder = RAY) -> None:
        hide_gpus()
        self._metrics = metrics
        self._options = options
        self._clients: dict[str, GeoCatalogClient] = {}

    async def register(self, registration: Registration) -> Registered:
        """Create or replace the item of an execution, and its collection if it does not exist.

        Raises
        ------
        TransientFailure
            If the catalogue stays busy or unreachable.
        IngestionFailed
            If it refuses or cannot ingest the item.
        """
        bind_execution(registration.execution_id, registration.plan.workflow, Stage.REGISTER)
        if registration.geo_catalog_url not in self._options.allowed:
            raise IngestionFailed(
                Stage.REGISTER,
                f"{registration.geo_catalog_url} is not in args.azure.geocatalog.allowed any more",
            )
        catalog = self._client(registration.geo_catalog_url)
        collection_id = registration.collection_id or default_collection_id(
            registration.plan.workflow
        )
        # The footprint of a million points takes a second.
        collection, item = await asyncio.to_thread(
            _describe, registration, collection_id, catalog.collection_url(collection_id)
        )
        await catalog.ensure_collection(collection, render_options(registration.plan))
        item_url = await catalog.put_item(collection_id, item)
        self._metrics.add(REGISTRATIONS, workflow=registration.plan.workflow)
        logger.info("registered %s as %s", registration.execution_id, item_url)
        return Registered(
            geo_catalog_url=catalog.url,
            collection_id=collection_id,
            item_id=item["id"],
            item_url=item_url,
        )

    def _client(self, url: str) -> GeoCatalogClient:
        if url not in self._clients:
            credential = self._options.azure.open_credential()
            self._clients[url] = GeoCatalogClient(url, credential, self._options)
        return self._clients[url]

    async def close(self) -> None:
        """Close connections and credentials."""
        clients, self._clients = self._clients, {}
        for client in clients.values():
            await client.close()

    async def __del__(self) -> None:
        # Serve calls this at shutdown, also after a constructor that failed.
        if hasattr(self, "_clients"):
            await self.close()


def _describe(
    registration: Registration, collection_id: str, collection_url: str
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the collection and the item."""
    plan, provenance = registration.plan, registration.provenance
    item = describe_item(
        plan,
        registration.execution_id,
        provenance,
        registration.files,
        collection_id=collection_id,
        base_href=registration.base_href,
        collection_href=collection_url,
    )
    return describe_collection(plan, provenance, collection_id), item
