"""The emulator conforms to the contract, as Azure's own client understands it."""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from azure.core.exceptions import (
    ClientAuthenticationError,
    HttpResponseError,
    ResourceExistsError,
    ResourceNotFoundError,
)
from azure.core.pipeline.transport import AioHttpTransport
from azure.planetarycomputer.aio import PlanetaryComputerProClient
from azure.planetarycomputer.models import (
    RenderOption,
    StacCollection,
    StacItem,
    StacItemOrStacItemCollection,
    TileSettings,
)

from tests.emulators.certificates import make_certificate
from tests.emulators.geocatalog import Course, GeoCatalogEmulator
from tests.emulators.stac_documents import COLLECTION, small_collection, small_item, small_option
from tests.emulators.tokens import EmulatorCredential


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return make_certificate(tmp_path_factory.mktemp("certificate"))


@pytest.fixture
def emulator(certificate: tuple[Path, Path]) -> Iterator[GeoCatalogEmulator]:
    with GeoCatalogEmulator(certificate, polls=2) as emulator:
        yield emulator


def client_of(
    emulator: GeoCatalogEmulator, certificate: tuple[Path, Path], **options: Any
) -> PlanetaryComputerProClient:
    trust = ssl.create_default_context(cafile=str(certificate[0]))
    session = aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=trust))
    return PlanetaryComputerProClient(
        emulator.url,
        EmulatorCredential(),
        transport=AioHttpTransport(session=session),
        polling_interval=0.01,
        retry_total=0,
        **options,
    )


@pytest.fixture
async def client(
    emulator: GeoCatalogEmulator, certificate: tuple[Path, Path]
) -> AsyncIterator[PlanetaryComputerProClient]:
    async with client_of(emulator, certificate) as client:
        yield client


async def create(client: PlanetaryComputerProClient) -> None:
    await (await client.stac.begin_create_collection(StacCollection(small_collection()))).result()


async def test_a_collection_is_created_read_replaced_and_deleted(
    client: PlanetaryComputerProClient, emulator: GeoCatalogEmulator
) -> None:
    await create(client)
    collection = await client.stac.get_collection(COLLECTION)
    assert collection.id == COLLECTION
    assert collection.extent.spatial.bounding_box == [[-180, -90, 180, 90]]
    assert [c.id for c in (await client.stac.get_collections()).collections] == [COLLECTION]
    collection.title = "Another title"
    await client.stac.replace_collection(COLLECTION, collection)
    assert emulator.collections[COLLECTION]["title"] == "Another title"
    with pytest.raises(ResourceExistsError, match="already exists"):
        await create(client)
    await (await client.stac.begin_delete_collection(COLLECTION)).result()
    with pytest.raises(ResourceNotFoundError):
        await client.stac.get_collection(COLLECTION)


async def test_an_item_is_created_read_replaced_and_deleted(
    client: PlanetaryComputerProClient, emulator: GeoCatalogEmulator
) -> None:
    await create(client)
    item = small_item()
    poller = await client.stac.begin_create_item(
        COLLECTION, StacItemOrStacItemCollection._deserialize(item, [])
    )
    await poller.result()
    stored = await client.stac.get_item(COLLECTION, item["id"])
    assert isinstance(stored, StacItem)
    assert set(stored.assets) == {"data", "data-kerchunk"}
    assert stored.properties["start_datetime"] == "2025-01-01T00:00:00Z"
    assert stored.created_on is not None
    with pytest.raises(ResourceExistsError):
        await client.stac.begin_create_item(COLLECTION, item)
    changed = small_item(title="Again")
    await (await client.stac.begin_replace_item(COLLECTION, item["id"], changed)).result()
    assert emulator.items[COLLECTION, item["id"]]["properties"]["title"] == "Again"
    patch = {"properties": {"title": None, "mission": "test"}}
    await (await client.stac.begin_update_item(COLLECTION, item["id"], patch)).result()
    properties = emulator.items[COLLECTION, item["id"]]["properties"]
    assert "title" not in properties and properties["mission"] == "test"
    listed = await client.stac.get_item_collection(COLLECTION)
    assert [each.id for each in listed.features] == [item["id"]]
    await (await client.stac.begin_delete_item(COLLECTION, item["id"])).result()
    with pytest.raises(ResourceNotFoundError):
        await client.stac.get_item(COLLECTION, item["id"])


async def test_tile_settings_and_render_options(client: PlanetaryComputerProClient) -> None:
    await create(client)
    with pytest.raises(ResourceNotFoundError):
        await client.stac.get_tile_settings(COLLECTION)
    settings = TileSettings(min_zoom=0, max_items_per_tile=35)
    await client.stac.replace_tile_settings(COLLECTION, settings)
    assert (await client.stac.get_tile_settings(COLLECTION)).max_items_per_tile == 35
    option = RenderOption(small_option())
    created = await client.stac.create_render_option(COLLECTION, option)
    assert created == option
    with pytest.raises(ResourceExistsError):
        await client.stac.create_render_option(COLLECTION, option)
    option.name = "Another name"
    await client.stac.replace_render_option(COLLECTION, option.id, option)
    (stored,) = await client.stac.get_render_options(COLLECTION)
    assert stored.name == "Another name"
    assert stored.options is not None and stored.options.startswith("assets=data-kerchunk")
    await client.stac.delete_render_option(COLLECTION, option.id)
    assert await client.stac.get_render_options(COLLECTION) == []


async def test_an_operation_is_polled_to_its_end(
    client: PlanetaryComputerProClient, emulator: GeoCatalogEmulator
) -> None:
    await create(client)
    poller = await client.stac.begin_create_item(COLLECTION, small_item(), polling=False)
    operation_id = list(emulator.operations)[-1]
    statuses = []
    for _ in range(4):
        operation = await client.ingestion.get_operation(operation_id)
        statuses.append(operation.status)
    assert poller is not None
    assert statuses == ["Pending", "Running", "Succeeded", "Succeeded"]
    assert operation.collection_id == COLLECTION
    assert operation.creation_time.tzinfo is not None
    assert [each.status for each in operation.status_history] == statuses[:3]


async def test_a_failed_operation_has_code_and_message(
    client: PlanetaryComputerProClient, emulator: GeoCatalogEmulator
) -> None:
    await create(client)
    emulator.run_next(
        Course(1, "Failed", code="AssetNotFound", message="no blob", additional={"asset": "data"})
    )
    poller = await client.stac.begin_create_item(COLLECTION, small_item())
    # The error of Azure's client contains the status only.
    with pytest.raises(HttpResponseError, match="failed|Failed"):
        await poller.result()
    operation = await client.ingestion.get_operation(list(emulator.operations)[-1])
    assert operation.status == "Failed"
    assert operation.error is not None
    assert (operation.error.error.code, operation.error.error.message) == (
        "AssetNotFound",
        "no blob",
    )
    assert operation.additional_information == {"asset": "data"}
    assert operation.status_history[-1].error_code == "AssetNotFound"
    # The id is available again.
    await (await client.stac.begin_create_item(COLLECTION, small_item())).result()


async def test_a_cancelled_operation(
    client: PlanetaryComputerProClient, emulator: GeoCatalogEmulator
) -> None:
    await create(client)
    emulator.run_next(Course(1, ends=None))
    await client.stac.begin_create_item(COLLECTION, small_item(), polling=False)
    operation_id = list(emulator.operations)[-1]
    await client.ingestion.cancel_operation(operation_id)
    assert (await client.ingestion.get_operation(operation_id)).status == "Canceled"


@pytest.mark.parametrize(
    "change",
    [
        {"properties": {"datetime": "2025-01-01T00:00:00"}},
        {"properties": small_item()["properties"] | {"forecast:reference_datetime": "2025-01-01"}},
        {"collection": "another"},
        {"id": "with/slash"},
        {"id": "x" * 150},
        {"links": None},
        {"bbox": [0, 1]},
        {"assets": {"da ta": {"href": "https://x.example/y"}}},
        {"type": "FeatureCollection"},
    ],
)
async def test_an_invalid_item_is_refused(
    client: PlanetaryComputerProClient, change: dict[str, Any]
) -> None:
    await create(client)
    with pytest.raises(HttpResponseError) as refused:
        await client.stac.begin_create_item(COLLECTION, small_item() | change)
    assert refused.value.status_code == 400


async def test_a_token_for_another_audience_is_refused(
    emulator: GeoCatalogEmulator, certificate: tuple[Path, Path]
) -> None:
    other = {"credential_scopes": ["https://storage.azure.com/.default"]}
    async with client_of(emulator, certificate, **other) as client:
        with pytest.raises(ClientAuthenticationError, match="InvalidAudience"):
            await client.stac.get_collection(COLLECTION)


async def test_another_api_version_is_refused(
    emulator: GeoCatalogEmulator, certificate: tuple[Path, Path]
) -> None:
    async with client_of(emulator, certificate, api_version="2020-01-01") as client:
        with pytest.raises(HttpResponseError, match="UnsupportedApiVersion"):
            await client.stac.get_collection(COLLECTION)
