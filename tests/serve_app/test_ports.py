from __future__ import annotations

import socket
from pathlib import Path

from serve_app.ports import RANGE, ports_and_sockets

HTTP = "RAY_SERVE_DIRECT_INGRESS_{}_HTTP_PORT"


def test_ports_that_somebody_has_are_not_given(tmp_path: Path) -> None:
    given = ports_and_sockets(tmp_path)
    first, last = int(given[HTTP.format("MIN")]), int(given[HTTP.format("MAX")])
    assert last - first == RANGE - 1
    with socket.create_server(("127.0.0.1", first + 1)):
        for _ in range(200):
            other = ports_and_sockets(tmp_path)
            assert int(other[HTTP.format("MIN")]) != first


def test_every_name_is_one_that_serve_reads(tmp_path: Path) -> None:
    from ray.serve._private import constants

    source = Path(constants.__file__).read_text()
    for name in ports_and_sockets(tmp_path):
        assert f'"{name}"' in source
