import httpx
import pytest
from fastapi import FastAPI, Response

from serve_app.http.middleware import UnexpectedErrors
from tests.serve_app.conftest import URL


async def test_bodies_are_bounded(serve):
    client = serve(max_body_bytes=1000).client
    fits = b'{"parameters": {}}'.ljust(1000)
    assert (await client.post(URL, content=fits)).status_code == 200
    answer = await client.post(URL, content=fits + b" ")
    assert answer.status_code == 413
    assert answer.json() == {"detail": "the request body is larger than 1000 bytes"}


async def test_bodies_of_unannounced_length_are_bounded(serve):
    sent = 0

    async def pieces():
        nonlocal sent
        for _ in range(10_000):
            sent += 1
            yield b" " * 100

    answer = await serve(max_body_bytes=1000).client.post(URL, content=pieces())
    assert answer.status_code == 413
    assert sent < 100  # the rest was never read


@pytest.mark.parametrize("length", ["-1", "1e9", "\u0663", "9" * 10_000])
async def test_odd_lengths_are_no_server_error(service, length):
    headers = {"Content-Length": length.encode()}
    answer = await service.client.post(URL, content=b"{}", headers=headers)
    assert answer.status_code in (200, 413)


async def test_unexpected_errors_are_logged_and_tell_nothing(caplog):
    app = FastAPI()
    app.add_middleware(UnexpectedErrors)

    @app.get("/")
    async def broken() -> Response:
        raise RuntimeError("/secret/path")

    async with httpx.AsyncClient(
        transport=httpx.ASGITransport(app), base_url="http://server"
    ) as client:
        answer = await client.get("/")
    assert answer.status_code == 500
    assert answer.json()["detail"] == "internal error"
    assert "secret" not in answer.text
    assert answer.json()["reference"] in caplog.text
    assert "/secret/path" in caplog.text


async def test_foreign_pages_cannot_write(serve):
    client = serve(allow_origins=("https://friend.example",)).client
    foreign = {"Sec-Fetch-Site": "cross-site", "Origin": "https://evil.example"}
    assert (await client.post(URL, json={}, headers=foreign)).status_code == 403
    assert (await client.delete(f"{URL}/exec_1_00000000", headers=foreign)).status_code == 403
    foreign["Sec-Fetch-Site"] = "same-site"
    assert (await client.post(URL, json={}, headers=foreign)).status_code == 403
    friend = {**foreign, "Origin": "https://friend.example"}
    assert (await client.post(URL, json={}, headers=friend)).status_code == 200
    own = {"Sec-Fetch-Site": "same-origin", "Origin": "http://server"}
    assert (await client.post(URL, json={}, headers=own)).status_code == 200


async def test_no_origin_is_named_by_default(service):
    preflight = {"Origin": "https://any.example", "Access-Control-Request-Method": "POST"}
    answer = await service.client.options(URL, headers=preflight)
    assert answer.status_code == 405
    answer = await service.client.get(URL, headers=preflight)
    assert not [name for name in answer.headers if name.startswith("access-control")]


async def test_named_origins_may_call_without_a_token_for_the_preflight(serve, tmp_path):
    tokens = tmp_path / "tokens"
    tokens.write_text("a:" + "0" * 64)
    client = serve(allow_origins=("https://friend.example",), tokens_file=tokens).client
    headers = {
        "Origin": "https://friend.example",
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "authorization,idempotency-key",
    }
    answer = await client.options(URL, headers=headers)
    assert answer.status_code == 200
    assert answer.headers["access-control-allow-origin"] == "https://friend.example"
    answer = await client.options(URL, headers={**headers, "Origin": "https://evil.example"})
    assert "access-control-allow-origin" not in answer.headers
    answer = await client.get("/liveness", headers=headers)
    exposed = answer.headers["access-control-expose-headers"]
    for name in ("ETag", "Content-Range", "Accept-Ranges", "Retry-After"):
        assert name in exposed


@pytest.mark.parametrize(
    "path",
    ["/health", "/liveness", "/metrics", "/v1/infer/workflows", URL, f"{URL}/x/status", "/no"],
)
async def test_head_is_get_without_its_body(service, path):
    get, head = await service.client.get(path), await service.client.head(path)
    assert head.status_code == get.status_code
    assert head.content == b""
    assert set(head.headers) == set(get.headers)


async def test_methods_that_a_path_lacks(service):
    answer = await service.client.put(URL)
    assert answer.status_code == 405
    assert answer.json() == {"detail": "Method Not Allowed"}
    assert answer.headers["allow"] == "GET, HEAD, POST"
    # Two routes match this one.
    answer = await service.client.put("/v1/infer/workflows")
    assert answer.headers["allow"] == "GET, HEAD, POST"
    answer = await service.client.get("/nowhere")
    assert (answer.status_code, answer.json()) == (404, {"detail": "Not Found"})
