"""Ports and sockets of a server with its own Ray, so that several servers can share a machine.

By default, Serve's ports and sockets behind HAProxy are the same for every server. When the ingress
is slow to answer its health checks, as on a busy machine, HAProxy falls back to a proxy on port
8500: whichever server owns that port would then answer requests to another one.
"""

from __future__ import annotations

import errno
import random
import socket
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

RANGE = 100
"""Number of ports for the ingress replicas of a server."""
DEFAULT_HTTP_PORT = 8000
HAPROXY_PORTS = {"RAY_SERVE_HAPROXY_METRICS_PORT": 9101, "RAY_SERVE_HAPROXY_STATS_PORT": 8404}


def ports_and_sockets(folder: Path) -> dict[str, str]:
    """Return environment variables for free ports, which Serve reads when it is imported.

    Parameters
    ----------
    folder : Path
        Folder of the sockets. Its path must be short, because a socket's is limited.
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
    """Return a port on which nothing listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _free_range(start: int, stop: int) -> int:
    """Return the first of consecutive free ports; the system itself assigns those from 32768."""
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
    raise RuntimeError(f"no {RANGE} consecutive free ports between {start} and {stop}")


def describe_taken_ports(
    http_options: Mapping[str, Any], environment: Mapping[str, str]
) -> list[str]:
    """Return a message for each port that another program uses, saying what to do about it.

    Ray would start anyway and never answer, and HAProxy would share a port with another HAProxy
    without an error.
    """
    host = http_options.get("host") or "127.0.0.1"
    port = http_options.get("port") or DEFAULT_HTTP_PORT
    messages = []
    if _is_taken(host, port):
        messages.append(f"port {port} is in use; choose another with PORT=… or --port")
    if environment.get("RAY_SERVE_ENABLE_HA_PROXY") == "1":
        messages += [
            f"port {number} is in use, but HAProxy needs it; choose another with {name}, or set "
            "RAY_SERVE_ENABLE_HA_PROXY=0 to run without HAProxy"
            for name, default in HAPROXY_PORTS.items()
            if _is_taken("0.0.0.0", number := int(environment.get(name, default)))  # noqa: S104
        ]
    return messages


def _is_taken(host: str, port: int) -> bool:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        # Lingering connections of a stopped server do not count.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
            probe.listen(1)
        except OSError as error:
            return error.errno == errno.EADDRINUSE
    return False


def base_url(http_options: Mapping[str, Any]) -> str:
    """Return the URL at which this machine can call the server."""
    host = str(http_options.get("host") or "127.0.0.1")
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104
    host = f"[{host}]" if ":" in host else host
    return f"http://{host}:{http_options.get('port') or DEFAULT_HTTP_PORT}"
