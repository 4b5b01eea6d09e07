"""Middleware: body limits, unexpected errors, cross-site requests, HEAD."""

import asyncio
import socket
from typing import Any

import httpx
import pytest
from fastapi import FastAPI, Response

from serve_app.files.buffers import UNCOUNTED, Buffers
from serve_app.http.middleware import BodyLimit, BoundedBuffers, UnexpectedErrors
from tests.serve_app.conftest import URL


async def test_the_size_of_bodies_is_limited(serve):
    client = serve(limits={"max_body_mb": 0.01}).client
    fits = b'{"parameters": {}}'.ljust(10_000)
    assert (await client.post(URL, content=fits)).status_code == 200
    response = await client.post(URL, content=fits + b" ")
    assert response.status_code == 413
    assert response.json() == {"detail": "the request body is larger than 10000 bytes"}


async def test_the_size_of_bodies_without_content_length_is_limited(serve):
    sent = 0

    async def chunks():
        nonlocal sent
        for _ in range(10_000):
            sent += 1
            yield b" " * 100

    response = await serve(limits={"max_body_mb": 0.01}).client.post(URL, content=chunks())
    assert response.status_code == 413
    assert sent < 200  # the rest was never read


async def endless(consumed):
    while True:
        consumed.append(1)
        yield b" " * 1000


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("DELETE", "{url}?purge=true"),
        ("DELETE", "{url}"),
        ("POST", "{url}/retry"),
        ("GET", "{url}/status?wait=60"),
        ("HEAD", "{url}/status"),
        ("GET", "/health"),
        ("GET", "/liveness"),
        ("PUT", "/nowhere"),
    ],
)
async def test_bodies_that_no_route_reads_are_limited_as_well(serve, method, path):
    service = serve(limits={"max_body_mb": 0.01})
    url = path.format(url=f"{URL}/{await service.submit()}")
    consumed: list[int] = []
    async with asyncio.timeout(10):
        response = await service.client.request(method, url, content=endless(consumed))
    assert response.status_code == 413
    assert response.headers["connection"] == "close"
    assert len(consumed) <= 12


async def test_a_body_is_passed_on_and_then_the_disconnect():
    received = []

    async def app(scope, receive, send):
        received.extend([await receive(), await receive()])

    messages = [
        {"type": "http.request", "body": b"ab", "more_body": True},
        {"type": "http.request", "body": b"c", "more_body": False},
        {"type": "http.disconnect"},
    ]

    async def receive():
        return messages.pop(0)

    scope = {"type": "http", "method": "POST", "headers": [(b"content-length", b"3")]}
    await BodyLimit(app, 10)(scope, receive, None)
    assert received == [
        {"type": "http.request", "body": b"abc", "more_body": False},
        {"type": "http.disconnect"},
    ]


async def test_a_body_that_does_not_arrive_is_given_up():
    async def never(_scope, _receive, _send):
        raise AssertionError

    async def receive():
        await asyncio.Event().wait()

    sent: list[dict[str, Any]] = []

    async def send(message):
        sent.append(message)

    scope = {"type": "http", "method": "POST", "headers": [(b"content-length", b"3")]}
    await BodyLimit(never, 10, time_limit_s=0.0)(scope, receive, send)
    assert sent[0]["status"] == 408
    assert (b"connection", b"close") in sent[0]["headers"]


def with_buffers(buffers, sizes):
    """Return an application behind the bound, which sends bodies of some sizes."""

    async def app(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})
        for size in sizes:
            await send({"type": "http.response.body", "body": b"x" * size, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    return BoundedBuffers(app, buffers)


async def test_responses_that_nobody_reads_are_bounded_together():
    buffers = Buffers(total=2 * UNCOUNTED + 10)
    app = with_buffers(buffers, [UNCOUNTED + 1])
    scope = {"type": "http", "method": "GET", "headers": []}
    sent: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
    read = asyncio.Event()

    async def send(message):
        # As uvicorn does: the first message that waits is the one after a large body.
        if not message.get("body") and message["type"] == "http.response.body":
            await read.wait()
        sent.put_nowait(message)

    async with asyncio.timeout(10):
        slow = [asyncio.create_task(app({**scope}, None, send)) for _ in range(2)]
        # The last bytes are a message of their own.
        bodies = [(await sent.get())["type"] for _ in range(6)]
        assert bodies.count("http.response.body") == 4
        assert buffers.held == 2 * (UNCOUNTED + 1)
        await app({**scope}, None, send)
        refusal = await sent.get()
        assert refusal["status"] == 503
        assert (b"retry-after", b"5") in refusal["headers"]
        assert b"try again" in (await sent.get())["body"]
        # Small responses need no room, such as those to probes.
        read.set()
        await asyncio.gather(*slow)
    assert buffers.held == 0


async def test_small_responses_need_no_room(serve):
    service = serve()
    buffers = Buffers(total=0)
    app = BoundedBuffers(service.app, buffers)
    async with httpx.AsyncClient(
        transport=httpx.ASGITransport(app), base_url="http://server"
    ) as client:
        assert (await client.get("/liveness")).status_code == 200
        assert (await client.post(URL, json={})).status_code == 200


@pytest.mark.parametrize("length", ["-1", "1e9", "\u0663", "9" * 10_000])
async def test_malformed_content_lengths_are_no_server_error(service, length):
    headers = {"Content-Length": length.encode()}
    response = await service.client.post(URL, content=b"{}", headers=headers)
    assert response.status_code in (200, 413)


async def test_unexpected_errors_are_logged_but_not_sent(caplog):
    app = FastAPI()
    app.add_middleware(UnexpectedErrors)

    @app.get("/")
    async def broken() -> Response:
        raise RuntimeError("/secret/path")

    async with httpx.AsyncClient(
        transport=httpx.ASGITransport(app), base_url="http://server"
    ) as client:
        response = await client.get("/")
    assert response.status_code == 500
    assert response.json()["detail"] == "internal error"
    assert "secret" not in response.text
    assert response.json()["reference"] in caplog.text
    assert "/secret/path" in caplog.text


async def test_foreign_pages_cannot_write(serve):
    client = serve(cors={"allow_origins": ("https://friend.example",)}).client
    foreign = {"Sec-Fetch-Site": "cross-site", "Origin": "https://evil.example"}
    assert (await client.post(URL, json={}, headers=foreign)).status_code == 403
    assert (await client.delete(f"{URL}/exec_1_00000000", headers=foreign)).status_code == 403
    foreign["Sec-Fetch-Site"] = "same-site"
    assert (await client.post(URL, json={}, headers=foreign)).status_code == 403
    friend = {**foreign, "Origin": "https://friend.example"}
    assert (await client.post(URL, json={}, headers=friend)).status_code == 200
    own = {"Sec-Fetch-Site": "same-origin", "Origin": "http://server"}
    assert (await client.post(URL, json={}, headers=own)).status_code == 200


@pytest.mark.parametrize(
    ("origin", "status"),
    [
        ("http://evil.example", 403),
        ("https://evil.example", 403),
        ("null", 403),
        ("http://server.evil.example", 403),
        ("http://server:8080", 403),
        ("https://friend.example", 200),
        ("http://server", 200),
        ("https://server", 200),  # a proxy in front of the server terminates TLS
        (None, 200),
    ],
)
async def test_foreign_pages_cannot_write_over_plain_http(serve, origin, status):
    # Browsers send Sec-Fetch-Site to https and loopback only.
    client = serve(cors={"allow_origins": ("https://friend.example",)}).client
    headers = {} if origin is None else {"Origin": origin}
    response = await client.post(URL, content=b"{}", headers=headers)
    assert response.status_code == status


@pytest.mark.parametrize(
    "host",
    [
        "server",
        "server:8000",
        "localhost",
        "LOCALHOST.:80",
        "a.localhost",
        "127.0.0.1:8000",
        "10.1.2.3",
        "127.1",
        "[::1]:8000",
        "[fd00::1]",
        "earth2serve-serve-svc.weather.svc.cluster.local:8000",
        "earth2serve-serve-svc.weather.svc",
        "laptop.local",
        "vm.internal",
        "weather.example.org",
        "Weather.Example.org:443",
        socket.gethostname(),
    ],
)
async def test_a_server_without_tokens_answers_to_its_own_names(serve, host):
    client = serve(auth={"allowed_hosts": ("weather.example.org",)}).client
    for method, path in [("GET", "/health"), ("POST", URL)]:
        response = await client.request(method, path, content=b"{}", headers={"Host": host})
        assert response.status_code in (200, 503)


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "evil.example:8000",
        "127.0.0.1.evil.example",
        "[evil.example]",
        "localhost.x",
    ],
)
async def test_a_name_that_anybody_may_own_is_not_answered_without_tokens(serve, host, tmp_path):
    client = serve().client
    # The page of that name is its own origin.
    headers = {"Host": host, "Origin": f"http://{host}", "Sec-Fetch-Site": "same-origin"}
    for method, path in [("GET", URL), ("POST", URL), ("GET", "/v1/infer/workflows")]:
        response = await client.request(method, path, headers=headers)
        assert response.status_code == 421
        assert "args.auth.allowed_hosts" in response.json()["detail"]
    assert (await client.get("/liveness", headers=headers)).status_code == 200

    anything = serve(auth={"allowed_hosts": ("*",)}).client
    assert (await anything.get(URL, headers=headers)).status_code == 200
    # With tokens, a page would need one.
    tokens = tmp_path / "tokens"
    tokens.write_text("a:" + "0" * 64)
    protected = serve(auth={"tokens_file": tokens}).client
    assert (await protected.get(URL, headers=headers)).status_code == 401


async def test_liveness_is_open_below_a_route_prefix(serve, tmp_path):
    tokens = tmp_path / "tokens"
    tokens.write_text("a:" + "0" * 64)
    for auth, refused in [({"tokens_file": tokens}, 401), ({}, 421)]:
        # Serve passes on the whole path, and the prefix besides.
        transport = httpx.ASGITransport(serve(auth=auth).app, root_path="/earth2")
        async with httpx.AsyncClient(transport=transport, base_url="http://evil.example") as client:
            assert (await client.get("/earth2/liveness")).status_code == 200
            assert (await client.get("/earth2/health")).status_code == refused
            assert (await client.get("/other/liveness")).status_code == refused


async def test_cors_is_disabled_by_default(service):
    preflight = {"Origin": "https://any.example", "Access-Control-Request-Method": "POST"}
    response = await service.client.options(URL, headers=preflight)
    assert response.status_code == 405
    response = await service.client.get(URL, headers=preflight)
    assert not [name for name in response.headers if name.startswith("access-control")]


async def test_allowed_origins_may_call_and_their_preflight_needs_no_token(serve, tmp_path):
    tokens = tmp_path / "tokens"
    tokens.write_text("a:" + "0" * 64)
    client = serve(
        cors={"allow_origins": ("https://friend.example",)}, auth={"tokens_file": tokens}
    ).client
    headers = {
        "Origin": "https://friend.example",
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "authorization,idempotency-key",
    }
    response = await client.options(URL, headers=headers)
    assert response.status_code == 200
    assert response.headers["access-control-allow-origin"] == "https://friend.example"
    response = await client.options(URL, headers={**headers, "Origin": "https://evil.example"})
    assert "access-control-allow-origin" not in response.headers
    response = await client.get("/liveness", headers=headers)
    exposed = response.headers["access-control-expose-headers"]
    for name in ("ETag", "Content-Range", "Accept-Ranges", "Retry-After"):
        assert name in exposed


@pytest.mark.parametrize(
    "path",
    ["/health", "/liveness", "/metrics", "/v1/infer/workflows", URL, f"{URL}/x/status", "/no"],
)
async def test_head_is_get_without_the_body(service, path):
    get, head = await service.client.get(path), await service.client.head(path)
    assert head.status_code == get.status_code
    assert head.content == b""
    assert set(head.headers) == set(get.headers)


async def test_methods_that_a_path_does_not_support(service):
    response = await service.client.put(URL)
    assert response.status_code == 405
    assert response.json() == {"detail": "Method Not Allowed"}
    assert response.headers["allow"] == "GET, HEAD, POST"
    # Two routes match this one.
    response = await service.client.put("/v1/infer/workflows")
    assert response.headers["allow"] == "GET, HEAD, POST"
    response = await service.client.get("/nowhere")
    assert (response.status_code, response.json()) == (404, {"detail": "Not Found"})
