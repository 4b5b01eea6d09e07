"""Middleware: body limits, unexpected errors, cross-site requests, HEAD."""

import httpx
import pytest
from fastapi import FastAPI, Response

from serve_app.http.middleware import UnexpectedErrors
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
