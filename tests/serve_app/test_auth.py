import hashlib
import os
import subprocess
import sys

import pytest

from serve_app.auth import MalformedTokensFile, Tokens, new_token, read_tokens
from tests.serve_app.conftest import URL


def bearer(token):
    return {"Authorization": f"Bearer {token}"}


@pytest.fixture
def issued(tmp_path):
    token, line = new_token("anna")
    path = tmp_path / "tokens"
    path.write_text(f"# callers\n\n{line}\n")
    return token, path


async def test_everything_but_liveness_needs_a_token(serve, issued):
    token, path = issued
    client = serve(tokens_file=path).client
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
        answer = await client.request(method, url)
        assert answer.status_code == 401, (method, url)
        assert answer.headers["www-authenticate"] == "Bearer"
        assert method == "HEAD" or answer.json() == {"detail": "a bearer token is required"}
    answer = await client.get("/v1/infer/workflows", headers=bearer(token))
    assert answer.status_code == 200
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
async def test_wrong_tokens(serve, issued, header):
    client = serve(tokens_file=issued[1]).client
    answer = await client.get("/v1/infer/workflows", headers={"Authorization": header})
    assert answer.status_code == 401
    assert answer.headers["www-authenticate"].startswith("Bearer")


async def test_the_digest_is_no_token(serve, issued):
    token, path = issued
    digest = hashlib.sha256(token.encode()).hexdigest()
    client = serve(tokens_file=path).client
    answer = await client.get("/v1/infer/workflows", headers=bearer(digest))
    assert answer.status_code == 401
    assert 'error="invalid_token"' in answer.headers["www-authenticate"]


async def test_the_file_is_read_again_when_it_changes(serve, issued):
    token, path = issued
    client = serve(tokens_file=path).client
    other, line = new_token("bert")
    path.write_text(line + "\n")
    assert (await client.get("/metrics", headers=bearer(other))).status_code == 200
    assert (await client.get("/metrics", headers=bearer(token))).status_code == 401


def test_a_file_that_breaks_while_serving_changes_nothing(issued, caplog):
    token, path = issued
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
        ("# nobody\n", "no token"),
        ("a:" + "0" * 63, ":1:"),
        (":" + "0" * 64, ":1:"),
    ],
)
async def test_a_malformed_file_stops_the_start(serve, tmp_path, text, where):
    path = tmp_path / "tokens"
    path.write_text(text)
    with pytest.raises(MalformedTokensFile, match=where):
        serve(tokens_file=path)


async def test_a_missing_file_stops_the_start(serve, tmp_path):
    with pytest.raises(MalformedTokensFile, match="cannot be read"):
        serve(tokens_file=tmp_path / "absent")


def test_the_command_draws_a_usable_token(tmp_path):
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


def test_names_that_break_the_file_are_refused():
    for name in ("", "a:b", "a b", "a\nb", "x" * 65):
        with pytest.raises(ValueError, match="1 to 64"):
            new_token(name)
