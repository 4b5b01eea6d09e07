"""Ports of a server: free ones, and those that another program uses."""

from __future__ import annotations

import re
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
    free_ports,
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


def test_no_chosen_port_is_one_that_the_system_assigns(tmp_path: Path) -> None:
    first_assigned = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    for _ in range(20):
        chosen = ports_and_sockets(tmp_path)
        numbers = [int(value) for name, value in chosen.items() if name.endswith("_PORT")]
        assert len(set(numbers)) == 6
        assert max(*numbers, free_port()) < first_assigned


def test_free_ports_differ_and_exclude_those_in_use() -> None:
    first = free_port()
    with socket.create_server(("127.0.0.1", first)):
        assert first not in free_ports(500)
    assert len(set(free_ports(500))) == 500
    with pytest.raises(RuntimeError, match="no 100000 free ports"):
        free_ports(100_000)


def test_every_file_of_haproxy_is_in_the_folder(tmp_path: Path) -> None:
    from ray.serve._private import constants

    chosen = ports_and_sockets(tmp_path)
    shared = "/tmp/haproxy-serve"
    variables = re.findall(
        rf'"(RAY_SERVE_HAPROXY_\w+)", "{shared}', Path(constants.__file__).read_text()
    )
    assert len(variables) == 5
    for name in variables:
        assert tmp_path in (Path(chosen[name]), Path(chosen[name]).parent)


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


def test_an_address_of_another_machine_is_reported() -> None:
    options = {"host": "192.0.2.1", "port": free_port()}
    (message,) = describe_taken_ports(options, {})
    assert message.startswith("http_options: cannot listen at 192.0.2.1, port ")


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
        ({"host": "::", "port": 81}, "http://127.0.0.1:81"),
        ({"host": "::1", "port": 81}, "http://[::1]:81"),
        ({"host": "10.0.0.7"}, "http://10.0.0.7:8000"),
    ],
)
def test_the_base_url_can_be_called_from_this_machine(options: dict[str, Any], url: str) -> None:
    assert base_url(options) == url
    assert base_url(options, "/earth2") == f"{url}/earth2"
