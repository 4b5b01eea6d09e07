"""What whoever starts the server is told."""

import json
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import pytest

from serve_app.startup import announce, base_url, taken_ports


@contextmanager
def listening() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


def free() -> int:
    with listening() as port:
        return port


def test_a_taken_port_is_named() -> None:
    with listening() as port:
        options = {"host": "127.0.0.1", "port": port}
        assert taken_ports(options, {}) == [f"port {port} is taken; PORT=… or --port names another"]
    assert taken_ports(options, {}) == []


def test_a_port_of_haproxy_counts_only_with_haproxy() -> None:
    with listening() as port:
        environment = {
            "RAY_SERVE_HAPROXY_METRICS_PORT": str(port),
            "RAY_SERVE_HAPROXY_STATS_PORT": str(free()),
        }
        options = {"port": free()}
        assert taken_ports(options, environment) == []
        (found,) = taken_ports(options, {**environment, "RAY_SERVE_ENABLE_HA_PROXY": "1"})
        assert found.startswith(f"port {port} is taken, which HAProxy needs; RAY_SERVE_HAPROXY_M")


@pytest.mark.parametrize(
    ("options", "url"),
    [
        ({}, "http://127.0.0.1:8000"),
        ({"host": "0.0.0.0", "port": 81}, "http://127.0.0.1:81"),
        ({"host": "::", "port": 81}, "http://[::1]:81"),
        ({"host": "10.0.0.7"}, "http://10.0.0.7:8000"),
    ],
)
def test_the_address_can_be_called(options: dict[str, Any], url: str) -> None:
    assert base_url(options) == url


def unready(reason: str) -> tuple[int, dict[str, Any]]:
    return 503, {"detail": {"workflows": {"w": {"ready": False, "reason": reason}}}}


def told(answers: list[tuple[int, dict[str, Any]]]) -> list[str]:
    """What is said of a server that gives these answers."""
    left = iter(answers)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            code, body = next(left)
            self.send_response(code)
            self.end_headers()
            self.wfile.write(json.dumps(body).encode())

        def log_message(self, *_: object) -> None:
            pass

    said: list[str] = []
    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}"
        thread = announce(url, said.append, poll_s=0.01, patience_s=0.05)
        thread.join(timeout=20)
        assert not thread.is_alive()
        server.shutdown()
    return [line.replace(url, "URL") for line in said]


def test_ready_is_said_once() -> None:
    assert told([(404, {}), unready("fcn3: not checked yet"), (200, {})]) == ["ready: URL"]


def test_a_server_with_tokens_is_ready_when_it_asks_for_one() -> None:
    assert told([(401, {"detail": "no token"})]) == ["ready: URL"]


def test_a_reason_that_lasts_is_said_once() -> None:
    slow = [unready("ifs: no network")] * 40
    assert told([*slow, (200, {})]) == ["not ready yet: ifs: no network", "ready: URL"]


def test_nobody_at_the_port_is_waited_for() -> None:
    said: list[str] = []
    thread = announce(f"http://127.0.0.1:{free()}", said.append, poll_s=0.01)
    thread.join(timeout=0.3)
    assert thread.is_alive() and said == []
