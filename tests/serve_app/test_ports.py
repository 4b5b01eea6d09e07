"""Ports of a server: free ones, and those that another program uses."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from serve_app.ports import (
    RANGE,
    base_url,
    describe_taken_ports,
    free_port,
    ports_and_sockets,
)

HTTP = "RAY_SERVE_DIRECT_INGRESS_{}_HTTP_PORT"


def test_ports_in_use_are_not_chosen(tmp_path: Path) -> None:
    chosen = ports_and_sockets(tmp_path)
    first, last = int(chosen[HTTP.format("MIN")]), int(chosen[HTTP.format("MAX")])
    assert last - first == RANGE - 1
    with socket.create_server(("127.0.0.1", first + 1)):
        for _ in range(200):
            other = ports_and_sockets(tmp_path)
            assert int(other[HTTP.format("MIN")]) != first


def test_every_variable_is_one_that_serve_reads(tmp_path: Path) -> None:
    from ray.serve._private import constants

    source = Path(constants.__file__).read_text()
    for name in ports_and_sockets(tmp_path):
        assert f'"{name}"' in source


@contextmanager
def listening() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


def test_a_port_in_use_is_reported() -> None:
    with listening() as port:
        options = {"host": "127.0.0.1", "port": port}
        assert describe_taken_ports(options, {}) == [
            f"port {port} is in use; choose another with PORT=… or --port"
        ]
    assert describe_taken_ports(options, {}) == []


def test_ports_of_haproxy_are_checked_only_with_haproxy() -> None:
    with listening() as port:
        environment = {
            "RAY_SERVE_HAPROXY_METRICS_PORT": str(port),
            "RAY_SERVE_HAPROXY_STATS_PORT": str(free_port()),
        }
        options = {"port": free_port()}
        assert describe_taken_ports(options, environment) == []
        environment["RAY_SERVE_ENABLE_HA_PROXY"] = "1"
        (message,) = describe_taken_ports(options, environment)
        assert message.startswith(f"port {port} is in use, but HAProxy needs it; ")
        assert "RAY_SERVE_HAPROXY_METRICS_PORT" in message


@pytest.mark.parametrize(
    ("options", "url"),
    [
        ({}, "http://127.0.0.1:8000"),
        ({"host": "0.0.0.0", "port": 81}, "http://127.0.0.1:81"),
        ({"host": "::", "port": 81}, "http://[::1]:81"),
        ({"host": "10.0.0.7"}, "http://10.0.0.7:8000"),
    ],
)
def test_the_base_url_can_be_called_from_this_machine(options: dict[str, Any], url: str) -> None:
    assert base_url(options) == url
