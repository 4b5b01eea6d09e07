"""What keeps a server with a Ray of its own from meeting others on its machine.

Serve's ports and sockets behind HAProxy are the same for every server. HAProxy falls back to a
proxy at port 8500 when the ingress is slow to answer its checks, as on a busy machine: to that of
whichever server has it, which then answers in the place of the one that was asked.
"""

from __future__ import annotations

import random
import socket
from contextlib import ExitStack
from pathlib import Path

RANGE = 100
"""Ports that the ingress replicas of a server may take."""


def ports_and_sockets(folder: Path) -> dict[str, str]:
    """Give variables that Serve reads when it is imported.

    Parameters
    ----------
    folder : Path
        For the sockets; its path is short, as a socket's must be.
    """
    http, grpc = _free_range(20_000, 25_000), _free_range(25_000, 30_000)
    return {
        "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT": str(free_port()),
        "RAY_SERVE_FALLBACK_PROXY_GRPC_PORT": str(free_port()),
        "RAY_SERVE_HAPROXY_SOCKET_PATH": str(folder / "admin.sock"),
        "RAY_SERVE_HAPROXY_METRICS_SOCKET_PATH": str(folder / "metrics.sock"),
        "RAY_SERVE_DIRECT_INGRESS_MIN_HTTP_PORT": str(http),
        "RAY_SERVE_DIRECT_INGRESS_MAX_HTTP_PORT": str(http + RANGE - 1),
        "RAY_SERVE_DIRECT_INGRESS_MIN_GRPC_PORT": str(grpc),
        "RAY_SERVE_DIRECT_INGRESS_MAX_GRPC_PORT": str(grpc + RANGE - 1),
    }


def free_port() -> int:
    """Find a port that nobody listens at."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _free_range(start: int, stop: int) -> int:
    """Find consecutive ports that nobody listens at; those from 32768 the system gives away."""
    for _ in range(1000):
        first = random.randrange(start, stop, RANGE)  # noqa: S311
        with ExitStack() as stack:
            try:
                for port in range(first, first + RANGE):
                    probe = stack.enter_context(socket.socket())
                    probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return first
    raise RuntimeError(f"no {RANGE} free ports in a row from {start} to {stop}")
