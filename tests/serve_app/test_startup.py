"""The announcement of a starting server."""

import json
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import pytest

from serve_app.ports import free_port
from serve_app.startup import announce


def unready(reason: str) -> tuple[int, dict[str, Any]]:
    return 503, {"detail": {"workflows": {"w": {"ready": False, "reason": reason}}}}


def announced(responses: list[tuple[int, dict[str, Any]]]) -> list[str]:
    """Return what is announced of a server with these responses to /readiness."""
    remaining = iter(responses)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            code, body = next(remaining)
            self.send_response(code)
            self.end_headers()
            self.wfile.write(json.dumps(body).encode())

        def log_message(self, *_: object) -> None:
            pass

    lines: list[str] = []
    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}"
        thread = announce(url, lines.append, poll_s=0.01, patience_s=0.05)
        thread.join(timeout=20)
        assert not thread.is_alive()
        server.shutdown()
    return [line.replace(url, "URL") for line in lines]


def test_a_short_reason_is_not_announced() -> None:
    assert announced([(404, {}), unready("fcn3: not checked yet"), (200, {})]) == ["ready: URL"]


def test_a_server_that_requires_a_token_is_not_called_ready() -> None:
    assert announced([(503, {}), (401, {"detail": "no token"})]) == [
        "answering: URL; GET URL/readiness with a token shows when models are ready"
    ]


def test_a_proxy_for_other_machines_is_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    # urllib reads these variables itself.
    monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{free_port()}")
    monkeypatch.delenv("no_proxy", raising=False)
    assert announced([(200, {})]) == ["ready: URL"]


def test_a_lasting_reason_is_announced_once() -> None:
    slow = [unready("ifs: no network")] * 40
    assert announced([*slow, (200, {})]) == ["not ready yet: ifs: no network", "ready: URL"]


def test_a_refusal_is_a_reason_and_a_start_is_none() -> None:
    starting = [(503, {"detail": "the server is starting"})] * 40
    refused = [(421, {"detail": "not known as 'x'; see args.auth.allowed_hosts"})] * 40
    assert announced([*starting, *refused, (200, {})]) == [
        "not ready yet: not known as 'x'; see args.auth.allowed_hosts",
        "ready: URL",
    ]


def test_the_announcement_waits_for_a_server_at_the_port() -> None:
    lines: list[str] = []
    thread = announce(f"http://127.0.0.1:{free_port()}", lines.append, poll_s=0.01)
    thread.join(timeout=0.3)
    assert thread.is_alive() and lines == []
