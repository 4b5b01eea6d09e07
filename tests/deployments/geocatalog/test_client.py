"""The GeoCatalog client against an emulator over loopback, and faults of every kind."""

from __future__ import annotations

import asyncio
import base64
import functools
import pickle
from collections.abc import AsyncIterator, Callable, Iterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import httpx
import pytest
from azure.core.exceptions import ServiceRequestError

from deployments.azure.options import AzureOptions
from deployments.geocatalog.client import GeoCatalogClient
from deployments.geocatalog.options import GeoCatalogOptions
from deployments.runtime.failures import TransientFailure
from tests.emulators.certificates import make_certificate
from tests.emulators.geocatalog import Course, GeoCatalogEmulator
from tests.emulators.loopback import ForeignServer
from tests.emulators.stac_documents import COLLECTION, small_collection, small_item, small_option
from tests.emulators.tokens import EmulatorCredential
from workflows.errors import IngestionFailed, StageFailed

SECRET = "PLANTED-8c1f"  # noqa: S105 - what must not leak
ITEM = small_item()["id"]


class Clock:
    """Time that passes only in `sleep`."""

    def __init__(self) -> None:
        self.now = 0.0
        self.slept: list[float] = []

    def __call__(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds
        await asyncio.sleep(0)


@pytest.fixture
def emulator() -> Iterator[GeoCatalogEmulator]:
    with GeoCatalogEmulator() as emulator:
        yield emulator


@pytest.fixture
def foreign() -> Iterator[ForeignServer]:
    with ForeignServer() as server:
        yield server


@pytest.fixture
def clock() -> Clock:
    return Clock()


NewClient = Callable[..., GeoCatalogClient]


@pytest.fixture
async def new_client(emulator: GeoCatalogEmulator, clock: Clock) -> AsyncIterator[NewClient]:
    clients = []

    def make(url: str | None = None, credential: Any = None, **options: Any) -> GeoCatalogClient:
        usual = {"sleep": clock.sleep, "clock": clock, "transport": None}
        injected = {name: options.pop(name, value) for name, value in usual.items()}
        client = GeoCatalogClient(
            url or emulator.url,
            credential or EmulatorCredential(secret=SECRET),
            GeoCatalogOptions(**options),
            **injected,
        )
        clients.append(client)
        return client

    yield make
    for client in clients:
        await client.close()


@pytest.fixture
def client(new_client: NewClient) -> GeoCatalogClient:
    return new_client()


@pytest.fixture
async def ready(client: GeoCatalogClient, emulator: GeoCatalogEmulator) -> GeoCatalogClient:
    """Return a client of a catalogue that has the collection."""
    await client.ensure_collection(small_collection(), [])
    emulator.requests.clear()
    return client


async def until(condition: Callable[[], bool]) -> None:
    """Wait until the emulator's thread has done something."""
    for _ in range(10_000):
        if condition():
            return
        await asyncio.sleep(0.001)
    raise TimeoutError


async def reason_of(work: Any, kind: type[StageFailed] = IngestionFailed) -> str:
    """Return the reason of a failure, which must survive pickling and contain no secret."""
    with pytest.raises(StageFailed) as failed:
        await work
    error = failed.value
    assert type(error) is kind, error
    assert error.stage == "register"
    assert pickle.loads(pickle.dumps(error)).reason == error.reason
    assert error.__suppress_context__ or error.__context__ is None
    assert SECRET not in error.reason and "eyJ" not in error.reason
    assert len(error.reason) < 800
    return error.reason


async def test_collection_and_item(client: GeoCatalogClient, emulator: GeoCatalogEmulator) -> None:
    await client.ensure_collection(small_collection(), [small_option(), small_option("msl")])
    url = await client.put_item(COLLECTION, small_item())
    assert url == f"{emulator.url}/stac/collections/{COLLECTION}/items/{ITEM}"
    assert set(emulator.collections) == {COLLECTION}
    assert set(emulator.items) == {(COLLECTION, ITEM)}
    assert emulator.tile_settings[COLLECTION] == {"minZoom": 0, "maxItemsPerTile": 35}
    assert list(emulator.render_options[COLLECTION]) == ["t2m", "msl"]
    assert "data-kerchunk" in emulator.items[COLLECTION, ITEM]["assets"]
    # The last request verifies that the item exists.
    assert (emulator.requests[-1].method, emulator.requests[-1].path) == (
        "GET",
        f"/stac/collections/{COLLECTION}/items/{ITEM}",
    )
    assert all(r.authorized and r.query["api-version"] == "2026-04-15" for r in emulator.requests)


async def test_every_request_asks_for_a_token(
    new_client: NewClient, emulator: GeoCatalogEmulator
) -> None:
    credential = EmulatorCredential()
    await new_client(credential=credential).ensure_collection(small_collection(), [])
    assert len(credential.asked) == len(emulator.requests)
    assert set(credential.asked) == {("https://geocatalog.spatio.azure.com/.default",)}


async def test_a_collection_created_synchronously(new_client: NewClient) -> None:
    with GeoCatalogEmulator(creates_at_once=True) as emulator:
        client = new_client(emulator.url)
        await client.ensure_collection(small_collection(), [small_option()])
        await client.put_item(COLLECTION, small_item())
        assert emulator.items and emulator.tile_settings


async def test_a_catalogue_with_tls(new_client: NewClient, tmp_path: Path, clock: Clock) -> None:
    certificate, key = make_certificate(tmp_path)
    with GeoCatalogEmulator((certificate, key)) as emulator:
        client = new_client(emulator.url, azure=AzureOptions(ca_file=certificate))
        await client.ensure_collection(small_collection(), [])
        clock.slept.clear()
        mistrusting = new_client(emulator.url)
        reason = await reason_of(mistrusting.put_item(COLLECTION, small_item()))
        assert "127.0.0.1 is not trusted" in reason
        assert clock.slept == []


async def test_a_repeated_item_is_replaced(
    ready: GeoCatalogClient, emulator: GeoCatalogEmulator
) -> None:
    await ready.put_item(COLLECTION, small_item())
    await ready.put_item(COLLECTION, small_item(title="Again"))
    assert len(emulator.items) == 1
    assert emulator.items[COLLECTION, ITEM]["properties"]["title"] == "Again"
    assert (len(emulator.calls("POST")), len(emulator.calls("PUT"))) == (1, 1)


async def test_an_operators_settings_are_kept(
    client: GeoCatalogClient, emulator: GeoCatalogEmulator
) -> None:
    theirs = small_collection() | {"title": "Theirs"}
    emulator.collections[COLLECTION] = theirs
    emulator.render_options[COLLECTION] = {"t2m": small_option() | {"name": "Theirs"}, "own": {}}
    emulator.tile_settings[COLLECTION] = {"minZoom": 4, "maxItemsPerTile": 1}
    await client.ensure_collection(small_collection(), [small_option(), small_option("msl")])
    assert emulator.collections[COLLECTION] == theirs
    assert emulator.tile_settings[COLLECTION]["minZoom"] == 4
    assert list(emulator.render_options[COLLECTION]) == ["t2m", "own", "msl"]
    assert emulator.render_options[COLLECTION]["t2m"]["name"] == "Theirs"


async def test_default_tile_settings_of_a_new_collection_are_replaced(
    new_client: NewClient,
) -> None:
    with GeoCatalogEmulator(default_tiles=True) as emulator:
        await new_client(emulator.url).ensure_collection(small_collection(), [])
        assert emulator.tile_settings[COLLECTION]["minZoom"] == 0


async def test_concurrent_registrations_share_a_new_collection(
    client: GeoCatalogClient, new_client: NewClient, emulator: GeoCatalogEmulator
) -> None:
    """Within a process one waits for the other; other processes get a 409."""
    emulator.polls = 6
    others = [new_client() for _ in range(3)]

    async def register(client: GeoCatalogClient, number: int) -> None:
        await client.ensure_collection(small_collection(), [small_option(), small_option("msl")])
        await client.put_item(COLLECTION, small_item(f"item-{number}"))

    clients = [client, client, client, *others]
    await asyncio.gather(*(register(each, number) for number, each in enumerate(clients)))
    assert set(emulator.collections) == {COLLECTION}
    assert len(emulator.items) == len(clients)
    assert list(emulator.render_options[COLLECTION]) == ["t2m", "msl"]
    created = [o for o in emulator.operations.values() if o.kind == "CollectionCreate"]
    assert len(created) == 1
    # At most one for each process.
    assert len(emulator.calls("POST", "collections$")) <= 4


async def test_concurrent_registrations_of_one_item(
    ready: GeoCatalogClient, new_client: NewClient, emulator: GeoCatalogEmulator
) -> None:
    emulator.polls = 3
    clients = [ready, ready, new_client(), new_client()]
    await asyncio.gather(*(each.put_item(COLLECTION, small_item()) for each in clients))
    assert set(emulator.items) == {(COLLECTION, ITEM)}


@pytest.mark.parametrize("call", ["ensure_collection", "put_item"])
@pytest.mark.parametrize("requests", range(1, 10))
async def test_an_attempt_after_a_kill_completes_the_registration(
    new_client: NewClient, emulator: GeoCatalogEmulator, requests: int, call: str
) -> None:
    """However far the first attempt got, the second leaves one of everything."""
    emulator.polls = 2
    if call == "put_item":
        await new_client().ensure_collection(small_collection(), [small_option()])
        emulator.requests.clear()

    async def work(client: GeoCatalogClient) -> None:
        if call == "ensure_collection":
            await client.ensure_collection(small_collection(), [small_option()])
        await client.put_item(COLLECTION, small_item())

    slowly = new_client(sleep=lambda pause_s: asyncio.sleep(pause_s / 50))
    killed = asyncio.create_task(work(slowly))
    await until(lambda: len(emulator.requests) >= requests or killed.done())
    killed.cancel()
    await asyncio.gather(killed, return_exceptions=True)
    await work(new_client())
    assert set(emulator.collections) == {COLLECTION}
    assert set(emulator.items) == {(COLLECTION, ITEM)}
    assert list(emulator.render_options[COLLECTION]) == ["t2m"]
    assert emulator.tile_settings[COLLECTION]["minZoom"] == 0


async def test_an_ingestion_that_outlives_its_client(
    ready: GeoCatalogClient, emulator: GeoCatalogEmulator, clock: Clock
) -> None:
    emulator.run_next(Course(polls=8))
    emulator.fail_next("GET", "/inma/", delay_s=60)
    killed = asyncio.create_task(ready.put_item(COLLECTION, small_item()))
    await until(lambda: bool(emulator.calls("GET", "/inma/")))
    killed.cancel()
    await asyncio.gather(killed, return_exceptions=True)
    assert not emulator.items
    await ready.put_item(COLLECTION, small_item(title="Second"))
    assert emulator.items[COLLECTION, ITEM]["properties"]["title"] == "Second"
    created = [o for o in emulator.operations.values() if o.kind == "ItemCreate"]
    assert len(created) == 1


@pytest.mark.parametrize("interruption", ["outage", "kill"])
async def test_an_interrupted_poll_is_resumed(
    ready: GeoCatalogClient, emulator: GeoCatalogEmulator, interruption: str
) -> None:
    """Polling is only reading: the item must not be sent again."""
    emulator.run_next(Course(polls=8))
    if interruption == "outage":
        emulator.fail_next("GET", "/inma/", times=6, status=503)
        await reason_of(ready.put_item(COLLECTION, small_item()), TransientFailure)
    else:
        emulator.fail_next("GET", "/inma/", delay_s=60)
        killed = asyncio.create_task(ready.put_item(COLLECTION, small_item()))
        await until(lambda: bool(emulator.calls("GET", "/inma/")))
        killed.cancel()
        await asyncio.gather(killed, return_exceptions=True)
    await ready.put_item(COLLECTION, small_item())
    assert len(emulator.calls("POST", "/items")) + len(emulator.calls("PUT", "/items")) == 1
    # Nothing is left of it: the next registration sends its item.
    await ready.put_item(COLLECTION, small_item())
    assert len(emulator.calls("PUT", "/items")) == 1


async def interrupt(client: GeoCatalogClient, emulator: GeoCatalogEmulator) -> None:
    """Let a call start an operation, and fail before it ends."""
    emulator.fail_next("GET", "/inma/", times=6, status=503)
    await reason_of(client.put_item(COLLECTION, small_item()), TransientFailure)


@pytest.mark.parametrize("outcome", ["failed", "forgotten", "failed twice"])
async def test_a_resumed_operation_that_failed_is_started_again(
    ready: GeoCatalogClient, emulator: GeoCatalogEmulator, outcome: str
) -> None:
    failure = Course(polls=0, ends="Failed", code="Busy", message="restarted")
    emulator.run_next(*[failure] * (2 if outcome == "failed twice" else 1))
    await interrupt(ready, emulator)
    if outcome == "forgotten":
        next(reversed(emulator.operations.values())).tick()
        emulator.operations.clear()
    again = ready.put_item(COLLECTION, small_item())
    if outcome == "failed twice":
        assert "restarted" in await reason_of(again)
    else:
        await again
        assert set(emulator.items) == {(COLLECTION, ITEM)}
    assert len(emulator.calls("POST", "/items")) + len(emulator.calls("PUT", "/items")) == 2


async def test_an_operation_is_not_resumed_after_its_time_limit(
    new_client: NewClient, emulator: GeoCatalogEmulator, clock: Clock
) -> None:
    client = new_client(time_limit_s=100.0)
    await client.ensure_collection(small_collection(), [])
    emulator.run_next(Course(polls=8))
    await interrupt(client, emulator)
    operation = next(reversed(emulator.operations))
    clock.now += 100
    emulator.requests.clear()
    # Whichever item comes next: executions that are never retried must not accumulate.
    await client.put_item(COLLECTION, small_item("other"))
    await client.put_item(COLLECTION, small_item())
    assert not emulator.calls("GET", operation)
    assert len(emulator.items) == 2


async def test_a_lost_response_to_the_creation_of_an_item(
    ready: GeoCatalogClient, emulator: GeoCatalogEmulator
) -> None:
    emulator.fail_next("POST", "items$", reset=True, carried_out=True)
    await ready.put_item(COLLECTION, small_item())
    assert set(emulator.items) == {(COLLECTION, ITEM)}


async def test_a_lost_response_to_the_creation_of_a_collection(
    client: GeoCatalogClient, emulator: GeoCatalogEmulator
) -> None:
    emulator.default_tiles = True
    emulator.fail_next("POST", "collections$", status=503, carried_out=True)
    await client.ensure_collection(small_collection(), [small_option()])
    assert emulator.tile_settings[COLLECTION]["minZoom"] == 0


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 504])
async def test_a_busy_service_is_retried_with_growing_delays(
    ready: GeoCatalogClient, emulator: GeoCatalogEmulator, clock: Clock, status: int
) -> None:
    clock.slept.clear()
    emulator.fail_next("POST", "items$", status=status, times=3)
    await ready.put_item(COLLECTION, small_item())
    assert len(emulator.items) == 1
    pauses = clock.slept[:3]
    assert all(base <= p <= 1.5 * base for base, p in zip((1, 2, 4), pauses, strict=True))


@pytest.mark.parametrize(
    ("asked", "low", "high"),
    [
        ("7", 7, 10.5),
        ("0", 0, 0),
        ("100000", 60, 90),
        (lambda: format_datetime(datetime.now(UTC) + timedelta(seconds=20), usegmt=True), 18, 30),
        (lambda: format_datetime(datetime.now(UTC) - timedelta(days=1), usegmt=True), 0, 0),
        ("soon", 1, 1.5),
        ("-5", 1, 1.5),
        ("nan", 1, 1.5),
    ],
)
async def test_retry_after_is_honoured(
    ready: GeoCatalogClient,
    emulator: GeoCatalogEmulator,
    clock: Clock,
    asked: Any,
    low: float,
    high: float,
) -> None:
    clock.slept.clear()
    said = asked if isinstance(asked, str) else asked()
    emulator.fail_next("POST", "items$", status=429, headers={"Retry-After": said})
    await ready.put_item(COLLECTION, small_item())
    assert low <= clock.slept[0] <= high


async def test_a_service_that_stays_throttled(
    ready: GeoCatalogClient, emulator: GeoCatalogEmulator, clock: Clock
) -> None:
    emulator.fail_next(
        "POST",
        "items$",
        status=429,
        times=1000,
        body={"error": {"code": "TooManyRequests", "message": "slow down"}},
    )
    reason = await reason_of(ready.put_item(COLLECTION, small_item()), TransientFailure)
    assert "429 Too Many Requests: TooManyRequests: slow down" in reason
    assert "given up after 6 requests" in reason
    assert len(emulator.calls("POST", "items$")) == 6


async def test_retries_end_with_the_time_limit(new_client: NewClient, clock: Clock) -> None:
    with GeoCatalogEmulator() as emulator:
        emulator.fail_next("GET", "", status=503, times=1000, headers={"Retry-After": "30"})
        client = new_client(emulator.url, time_limit_s=100.0)
        await reason_of(client.put_item(COLLECTION, small_item()), TransientFailure)
        assert clock.now <= 100


@pytest.mark.parametrize("path", ["items$", "/inma/", f"items/{ITEM}$"])
async def test_reset_connections_are_retried(
    ready: GeoCatalogClient, emulator: GeoCatalogEmulator, path: str
) -> None:
    method = "POST" if path == "items$" else "GET"
    emulator.fail_next(method, path, reset=True, times=3)
    await ready.put_item(COLLECTION, small_item())
    emulator.fail_next("GET", f"items/{ITEM}$", reset=True, times=1000)
    reason = await reason_of(ready.put_item(COLLECTION, small_item()), TransientFailure)
    assert "was not answered" in reason


async def test_an_unreachable_service(new_client: NewClient) -> None:
    with ForeignServer() as gone:
        url = gone.url
    reason = await reason_of(new_client(url).put_item(COLLECTION, small_item()), TransientFailure)
    assert "was not answered: ConnectError" in reason


async def test_a_slow_service(
    ready: GeoCatalogClient, new_client: NewClient, emulator: GeoCatalogEmulator
) -> None:
    client = new_client(request_timeout_s=0.2)
    emulator.fail_next("GET", "items/", delay_s=2, times=2)
    await client.put_item(COLLECTION, small_item())
    emulator.fail_next("GET", "items/", delay_s=2, times=6)
    reason = await reason_of(client.put_item(COLLECTION, small_item()), TransientFailure)
    assert "was not answered" in reason


async def test_a_response_that_never_ends(new_client: NewClient) -> None:
    """Every byte arrives in time, but the last one never does."""

    class Drip(httpx.AsyncByteStream):
        async def __aiter__(self) -> AsyncIterator[bytes]:
            while True:
                await asyncio.sleep(0.01)
                yield b" "

    transport = httpx.MockTransport(lambda request: httpx.Response(200, stream=Drip()))
    client = new_client(transport=transport, request_timeout_s=0.1)
    reason = await reason_of(client.put_item(COLLECTION, small_item()), TransientFailure)
    assert "not within 0.1 s" in reason


@pytest.mark.parametrize(
    ("status", "body", "words"),
    [
        (403, {"error": {"code": "Forbidden", "message": "no role"}}, "Forbidden: no role"),
        (403, "", "403 Forbidden"),
        (400, {"code": "BadRequest", "description": "no bbox"}, "BadRequest: no bbox"),
        (501, "<html>\n oops </html>", "501 Not Implemented: <html> oops </html>"),
        (404, {"error": {"code": "CollectionNotFound", "message": "gone"}}, "CollectionNotFound"),
        (418, {"detail": "short"}, "short"),
        (422, ["odd"], "odd"),
        (413, {"error": {"code": "TooLarge", "message": "x" * 10000}}, "TooLarge"),
        (401, {"error": {"code": "Unauthorized", "message": "who?"}}, "Unauthorized: who?"),
    ],
)
async def test_a_refusal_is_reported(
    ready: GeoCatalogClient, emulator: GeoCatalogEmulator, status: int, body: Any, words: str
) -> None:
    emulator.fail_next("POST", "items$", status=status, body=body, times=2)
    reason = await reason_of(ready.put_item(COLLECTION, small_item()))
    assert str(status) in reason and words in reason
    assert "POST /stac/collections/earth2serve-test/items" in reason
    assert len(emulator.calls("POST", "items$")) == (2 if status == 401 else 1)
    assert not emulator.items


async def test_secrets_in_a_refusal_are_removed(
    ready: GeoCatalogClient, emulator: GeoCatalogEmulator
) -> None:
    token = (await EmulatorCredential(secret=SECRET).get_token("https://x.example/.default")).token
    body = {
        "error": {
            "code": "InvalidToken",
            "message": f"Authorization: Bearer {token} and {token} and ?sv=1&sig={SECRET}%3D&se=2",
        }
    }
    emulator.fail_next("POST", "items$", status=403, body=body)
    reason = await reason_of(ready.put_item(COLLECTION, small_item()))
    assert "InvalidToken" in reason and "[removed]" in reason
    emulator.run_next(Course(0, "Failed", "BadHref", body["error"]["message"]))
    assert "BadHref" in await reason_of(ready.put_item(COLLECTION, small_item()))


async def test_an_invalid_item(ready: GeoCatalogClient, emulator: GeoCatalogEmulator) -> None:
    naive = small_item(datetime="2025-01-01T00:00:00")
    assert "InvalidStac" in await reason_of(ready.put_item(COLLECTION, naive))


async def test_a_credential_that_refuses(
    new_client: NewClient, emulator: GeoCatalogEmulator
) -> None:
    client = new_client(credential=EmulatorCredential(refuse=True, secret=SECRET))
    reason = await reason_of(client.put_item(COLLECTION, small_item()))
    assert reason == (
        "this server got no token for https://geocatalog.spatio.azure.com/.default: "
        "ClientAuthenticationError (AADSTS7000215)"
    )
    assert emulator.requests == []


class BrokenCredential(EmulatorCredential):
    """Raises a given error."""

    def __init__(self, error: Exception) -> None:
        super().__init__()
        self.error = error

    async def get_token(self, *scopes: str, **options: Any) -> Any:
        raise self.error


async def test_a_credential_that_raises(new_client: NewClient) -> None:
    client = new_client(credential=BrokenCredential(RuntimeError(f"client_secret={SECRET}")))
    assert "RuntimeError" in await reason_of(client.put_item(COLLECTION, small_item()))
    away = new_client(credential=BrokenCredential(ServiceRequestError("no route")))
    reason = await reason_of(away.put_item(COLLECTION, small_item()), TransientFailure)
    assert "no token, ServiceRequestError" in reason


async def test_a_token_that_cannot_be_sent(new_client: NewClient) -> None:
    class Odd(EmulatorCredential):
        async def get_token(self, *scopes: str, **options: Any) -> Any:
            given = await super().get_token(*scopes, **options)
            return given._replace(token=f"{given.token}\n{SECRET}")

    await reason_of(new_client(credential=Odd(secret=SECRET)).put_item(COLLECTION, small_item()))


async def test_tokens_are_renewed_between_polls(
    ready: GeoCatalogClient, emulator: GeoCatalogEmulator, new_client: NewClient
) -> None:
    """Every poll of an operation asks for a token again."""
    emulator.polls = 5
    credential = EmulatorCredential()
    await new_client(credential=credential).put_item(COLLECTION, small_item())
    assert len({request.token for request in emulator.calls("GET", "/inma/")}) == 6


async def test_an_expired_token_is_replaced(
    ready: GeoCatalogClient, emulator: GeoCatalogEmulator, new_client: NewClient
) -> None:
    class ExpiresOnce(EmulatorCredential):
        """Returns one token that has expired."""

        async def get_token(self, *scopes: str, **options: Any) -> Any:
            self.lifetime_s = -1 if len(self.asked) == 3 else 3600
            return await super().get_token(*scopes, **options)

    emulator.polls = 4
    credential = ExpiresOnce()
    await new_client(credential=credential).put_item(COLLECTION, small_item())
    assert len(credential.asked) == len(emulator.requests)
    assert set(emulator.items) == {(COLLECTION, ITEM)}


async def test_demanded_claims_are_passed_to_the_credential(
    ready: GeoCatalogClient, emulator: GeoCatalogEmulator, new_client: NewClient
) -> None:
    claims = '{"access_token":{"nbf":{"essential":true,"value":"1"}}}'
    encoded = base64.urlsafe_b64encode(claims.encode()).decode().rstrip("=")
    challenge = f'Bearer error="insufficient_claims", claims="{encoded}"'
    emulator.fail_next("POST", "items$", status=401, headers={"WWW-Authenticate": challenge})
    credential = EmulatorCredential()
    await new_client(credential=credential).put_item(COLLECTION, small_item())
    asked = [options.get("claims") for options in credential.options]
    assert asked.count(claims) == 1 and set(asked) == {claims, None}


async def test_a_failed_operation(ready: GeoCatalogClient, emulator: GeoCatalogEmulator) -> None:
    emulator.run_next(
        Course(2, "Failed", "AssetNotFound", "no such blob", {"asset": "data", "line": "1"})
    )
    reason = await reason_of(ready.put_item(COLLECTION, small_item()))
    (operation_id,) = [k for k, o in emulator.operations.items() if o.kind == "ItemCreate"]
    assert reason == (
        f"operation {operation_id} of the catalogue ended as Failed: AssetNotFound: no such blob "
        "(asset data, line 1)"
    )


async def test_a_collection_that_cannot_be_created(
    client: GeoCatalogClient, emulator: GeoCatalogEmulator
) -> None:
    emulator.run_next(Course(1, "Failed", "QuotaExceeded", "too many collections"))
    reason = await reason_of(client.ensure_collection(small_collection(), []))
    assert "QuotaExceeded: too many collections" in reason


async def test_a_cancelled_operation(ready: GeoCatalogClient, emulator: GeoCatalogEmulator) -> None:
    emulator.run_next(Course(5, "Canceled", status="Canceling"))
    reason = await reason_of(ready.put_item(COLLECTION, small_item()))
    assert "ended as Canceled: no reason was given" in reason
    assert len(emulator.calls("GET", "/inma/")) == 6


async def test_an_operation_that_is_being_cancelled_may_succeed(
    ready: GeoCatalogClient, emulator: GeoCatalogEmulator
) -> None:
    emulator.run_next(Course(5, "Succeeded", status="Canceling"))
    await ready.put_item(COLLECTION, small_item())


async def test_an_operation_that_never_ends(
    ready: GeoCatalogClient, emulator: GeoCatalogEmulator, clock: Clock
) -> None:
    clock.slept.clear()
    emulator.run_next(Course(1, ends=None))
    reason = await reason_of(ready.put_item(COLLECTION, small_item()))
    (operation_id,) = [k for k, o in emulator.operations.items() if o.kind == "ItemCreate"]
    assert f"operation {operation_id} of the catalogue was still Running after 89" in reason
    # The delays grow from one second to ten.
    assert clock.slept[0] == 1 and clock.slept == sorted(clock.slept) and clock.slept[-1] == 10
    assert len(emulator.calls("GET", "/inma/")) < 100


async def test_polls_honour_retry_after(
    ready: GeoCatalogClient, emulator: GeoCatalogEmulator, clock: Clock
) -> None:
    clock.slept.clear()
    emulator.run_next(Course(2, headers={"Retry-After": "5"}))
    await ready.put_item(COLLECTION, small_item())
    assert clock.slept == [5, 5, 5]


async def test_polls_ignore_a_retry_after_of_zero(
    ready: GeoCatalogClient, emulator: GeoCatalogEmulator, clock: Clock
) -> None:
    clock.slept.clear()
    emulator.run_next(Course(2, headers={"Retry-After": "0"}))
    await ready.put_item(COLLECTION, small_item())
    assert clock.slept == [1, 1.5, 2.25]


async def test_an_unknown_status(ready: GeoCatalogClient, emulator: GeoCatalogEmulator) -> None:
    emulator.run_next(Course(1, "Paused"))
    assert "unknown status: Paused" in await reason_of(ready.put_item(COLLECTION, small_item()))


async def test_a_partial_success_is_a_failure(
    ready: GeoCatalogClient, emulator: GeoCatalogEmulator
) -> None:
    emulator.run_next(Course(1, additional={"totalFailedItems": "1", "why": "odd"}))
    reason = await reason_of(ready.put_item(COLLECTION, small_item()))
    assert "succeeded except for 1 items: totalFailedItems 1, why odd" in reason
    emulator.run_next(Course(1, additional={"totalFailedItems": "0"}))
    await ready.put_item(COLLECTION, small_item())


async def test_an_item_that_appears_late(
    ready: GeoCatalogClient, emulator: GeoCatalogEmulator, clock: Clock
) -> None:
    emulator.fail_next("GET", f"items/{ITEM}$", status=404, times=5)
    await ready.put_item(COLLECTION, small_item())
    emulator.fail_next("GET", f"items/{ITEM}$", status=404, times=10**6)
    reason = await reason_of(ready.put_item(COLLECTION, small_item()))
    assert "reported" in reason and "did not return it within" in reason


async def test_another_item_under_the_url(
    ready: GeoCatalogClient, emulator: GeoCatalogEmulator
) -> None:
    await ready.put_item(COLLECTION, small_item())
    emulator.fail_next("GET", f"items/{ITEM}$", status=200, body={"id": "another"}, times=2)
    assert "another item" in await reason_of(ready.put_item(COLLECTION, small_item()))


@pytest.mark.parametrize("status", [404, 409])
async def test_an_item_that_can_neither_be_created_nor_replaced(
    ready: GeoCatalogClient, emulator: GeoCatalogEmulator, status: int
) -> None:
    await ready.put_item(COLLECTION, small_item())
    emulator.fail_next("PUT", "items/", status=status, times=10**6, body={"code": "Locked"})
    reason = await reason_of(ready.put_item(COLLECTION, small_item()))
    assert "neither created nor replaced" in reason


def elsewhere(url: str) -> list[str]:
    host = url.partition("://")[2]
    return [
        f"{url}/inma/operations/{{id}}",
        f"//{host}/inma/operations/{{id}}",
        f"{url.replace('127.0.0.1', 'localhost')}/inma/operations/{{id}}",
        f"https://{host}/inma/operations/{{id}}",
    ]


@pytest.mark.parametrize("number", range(4))
async def test_a_location_on_another_host_gets_no_token(
    ready: GeoCatalogClient, emulator: GeoCatalogEmulator, foreign: ForeignServer, number: int
) -> None:
    emulator.run_next(Course(1, location=elsewhere(foreign.url)[number]))
    reason = await reason_of(ready.put_item(COLLECTION, small_item()))
    assert "Location on another host" in reason and "nothing was sent there" in reason
    assert foreign.requests == []
    assert emulator.calls("GET", "/inma/") == []


@pytest.mark.parametrize(
    "location",
    [
        "{url}@{foreign}/inma/operations/{id}",
        "{scheme}://user:password@{host}/inma/operations/{id}",
        "https://{host}/inma/operations/{id}",
        "/stac/collections",
        "/inma/operations/%2e%2e/%2e%2e/stac/collections",
        "/inma/../admin",
        "javascript:alert(1)",
        "http://[",
        "//[:::]/inma/operations/{id}",
    ],
)
async def test_a_location_outside_the_catalogue_gets_no_token(
    ready: GeoCatalogClient, emulator: GeoCatalogEmulator, foreign: ForeignServer, location: str
) -> None:
    scheme, _, host = emulator.url.partition("://")
    location = (
        location.replace("{url}", emulator.url)
        .replace("{scheme}", scheme)
        .replace("{host}", host)
        .replace("{foreign}", foreign.url.partition("://")[2])
    )
    emulator.run_next(Course(1, location=location))
    assert "Location" in await reason_of(ready.put_item(COLLECTION, small_item()))
    assert foreign.requests == []
    assert emulator.calls("GET", "/inma/") == []


async def test_a_relative_location(ready: GeoCatalogClient, emulator: GeoCatalogEmulator) -> None:
    emulator.run_next(Course(1, location="/inma/operations/{id}"))
    await ready.put_item(COLLECTION, small_item())
    assert emulator.calls("GET", "/inma/")[0].query == {"api-version": "2026-04-15"}


async def test_a_missing_location(ready: GeoCatalogClient, emulator: GeoCatalogEmulator) -> None:
    emulator.run_next(Course(1, location=None))
    assert "without a Location" in await reason_of(ready.put_item(COLLECTION, small_item()))


@pytest.mark.parametrize("status", [301, 302, 307, 308])
@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_redirects_are_not_followed(
    ready: GeoCatalogClient,
    emulator: GeoCatalogEmulator,
    foreign: ForeignServer,
    status: int,
    method: str,
) -> None:
    emulator.fail_next(method, "items", status=status, headers={"Location": f"{foreign.url}/x"})
    assert "a redirect" in await reason_of(ready.put_item(COLLECTION, small_item()))
    assert foreign.requests == []


@pytest.mark.parametrize("body", ["<html>", "", [1], "null"])
async def test_a_response_that_is_no_json(
    ready: GeoCatalogClient, emulator: GeoCatalogEmulator, body: Any
) -> None:
    emulator.fail_next("GET", "/inma/", status=200, body=body)
    assert "no JSON dict" in await reason_of(ready.put_item(COLLECTION, small_item()))


async def test_a_catalogue_below_a_path(new_client: NewClient) -> None:
    """Nothing else on its host is requested."""
    asked = []

    def answer(request: httpx.Request, location: str) -> httpx.Response:
        asked.append(request.url.path)
        if request.method == "POST":
            return httpx.Response(202, headers={"Operation-Location": location})
        return httpx.Response(404)

    client = new_client(
        "https://gateway.example/tenant/",
        transport=httpx.MockTransport(
            functools.partial(answer, location="/inma/operations/of-another-tenant")
        ),
    )
    assert "no operation" in await reason_of(client.put_item(COLLECTION, small_item()))
    assert all(path.startswith("/tenant/stac/") for path in asked)


async def test_close_closes_the_credential() -> None:
    credential = EmulatorCredential()
    client = GeoCatalogClient("https://catalog.example", credential, GeoCatalogOptions())
    await client.close()
    assert credential.closed
