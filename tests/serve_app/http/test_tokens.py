"""Bearer tokens: the tokens file, and the requests that need one."""

import hashlib
import os
import subprocess
import sys

import pytest

from serve_app.http.tokens import MalformedTokensFile, Tokens, new_token, read_tokens
from tests.serve_app.conftest import URL


def bearer(token):
    return {"Authorization": f"Bearer {token}"}


@pytest.fixture
def issued_token(tmp_path):
    token, line = new_token("anna")
    path = tmp_path / "tokens"
    path.write_text(f"# callers\n\n{line}\n")
    return token, path


async def test_every_route_except_liveness_requires_a_token(serve, issued_token):
    token, path = issued_token
    client = serve(auth={"tokens_file": path}).client
    assert (await client.get("/liveness")).status_code == 200
    for method, url in [
        ("GET", "/health"),
        ("GET", "/readiness"),
        ("GET", "/metrics"),
        ("GET", "/openapi.json"),
        ("GET", "/v1/infer/workflows"),
        ("POST", URL),
        ("GET", f"{URL}/exec_1_00000000/status"),
        ("DELETE", f"{URL}/exec_1_00000000"),
        ("GET", f"{URL}/exec_1_00000000/results/a"),
        ("GET", "/nowhere"),
        ("HEAD", "/metrics"),
        ("OPTIONS", URL),
    ]:
        response = await client.request(method, url)
        assert response.status_code == 401, (method, url)
        assert response.headers["www-authenticate"] == "Bearer"
        assert method == "HEAD" or response.json() == {"detail": "a bearer token is required"}
    response = await client.get("/v1/infer/workflows", headers=bearer(token))
    assert response.status_code == 200
    assert (await client.post(URL, json={}, headers=bearer(token))).status_code == 200


@pytest.mark.parametrize(
    "header",
    [
        "Bearer wrong",
        "Bearer ",
        "Basic YTpi",
        "bearer",
        "Bearer " + "x" * 10_000,
        "Bearer \u00e4".encode("latin-1"),
    ],
)
async def test_invalid_tokens_are_refused(serve, issued_token, header):
    client = serve(auth={"tokens_file": issued_token[1]}).client
    response = await client.get("/v1/infer/workflows", headers={"Authorization": header})
    assert response.status_code == 401
    assert response.headers["www-authenticate"].startswith("Bearer")


async def test_the_digest_is_not_a_token(serve, issued_token):
    token, path = issued_token
    digest = hashlib.sha256(token.encode()).hexdigest()
    client = serve(auth={"tokens_file": path}).client
    response = await client.get("/v1/infer/workflows", headers=bearer(digest))
    assert response.status_code == 401
    assert 'error="invalid_token"' in response.headers["www-authenticate"]


async def test_the_file_is_reread_when_it_changes(serve, issued_token):
    token, path = issued_token
    client = serve(auth={"tokens_file": path}).client
    other, line = new_token("bert")
    path.write_text(line + "\n")
    assert (await client.get("/metrics", headers=bearer(other))).status_code == 200
    assert (await client.get("/metrics", headers=bearer(token))).status_code == 401


def test_a_file_that_becomes_invalid_is_ignored(issued_token, caplog):
    token, path = issued_token
    tokens = Tokens(path)
    path.write_text("anna:not hex\n")
    assert tokens.name_of(token) == "anna"
    path.unlink()
    assert tokens.name_of(token) == "anna"
    assert f"{path}:1" in caplog.text
    assert token not in caplog.text and "not hex" not in caplog.text


@pytest.mark.parametrize(
    ("text", "where"),
    [
        ("a:" + "0" * 64 + "\nb " + "0" * 64, ":2:"),
        ("# no caller\n", "no token"),
        ("a:" + "0" * 63, ":1:"),
        (":" + "0" * 64, ":1:"),
    ],
)
async def test_a_malformed_file_prevents_the_start(serve, tmp_path, text, where):
    path = tmp_path / "tokens"
    path.write_text(text)
    with pytest.raises(MalformedTokensFile, match=where):
        serve(auth={"tokens_file": path})


async def test_a_missing_file_prevents_the_start(serve, tmp_path):
    with pytest.raises(MalformedTokensFile, match="cannot be read"):
        serve(auth={"tokens_file": tmp_path / "absent"})


def test_the_command_creates_a_usable_token(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "serve_app.auth", "anna"],
        capture_output=True,
        text=True,
        check=True,
        env={"PATH": os.environ["PATH"]},
        cwd=os.getcwd(),
    )
    token, line = (row.split()[-1] for row in done.stdout.splitlines())
    path = tmp_path / "tokens"
    path.write_text(line)
    assert read_tokens(path)[0][0] == "anna"
    assert Tokens(path).name_of(token) == "anna"


def test_names_that_the_file_cannot_contain_are_refused():
    for name in ("", "a:b", "a b", "a\nb", "x" * 65):
        with pytest.raises(ValueError, match="1 to 64"):
            new_token(name)
