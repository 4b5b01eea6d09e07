"""Ports and sockets of a server with its own Ray, so that several servers can share a machine.

By default, Serve's ports and sockets behind HAProxy are the same for every server. When the ingress
is slow to answer its health checks, as on a busy machine, HAProxy falls back to a proxy on port
8500: whichever server owns that port would then answer requests to another one.
"""

from __future__ import annotations

import errno
import random
import socket
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from itertools import islice
from pathlib import Path
from typing import Any

RANGE = 100
"""Number of ports for the ingress replicas of a server."""
SINGLE = range(31_001, 32_768)
"""Ports for anything else: above those of Ray's workers and of Serve, and below those that the
system assigns. Another process could get one of these before the server listens there."""
DEFAULT_HTTP_PORT = 8000
HAPROXY_PORTS = {"RAY_SERVE_HAPROXY_METRICS_PORT": 9101, "RAY_SERVE_HAPROXY_STATS_PORT": 8404}


def ports_and_sockets(folder: Path) -> dict[str, str]:
    """Return environment variables for free ports, which Serve reads when it is imported.

    Parameters
    ----------
    folder : Path
        Private folder for HAProxy's files. Its path must be short, because a socket's is limited.
    """
    http, grpc = _free_range(20_000, 25_000), _free_range(25_000, 30_000)
    fallback_http, fallback_grpc = free_ports(2)
    return {
        "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT": str(fallback_http),
        "RAY_SERVE_FALLBACK_PROXY_GRPC_PORT": str(fallback_grpc),
        "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": str(folder / "haproxy.cfg"),
        "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": str(folder),
        "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": str(folder / "server-state"),
        "RAY_SERVE_HAPROXY_SOCKET_PATH": str(folder / "admin.sock"),
        "RAY_SERVE_HAPROXY_METRICS_SOCKET_PATH": str(folder / "metrics.sock"),
        "RAY_SERVE_DIRECT_INGRESS_MIN_HTTP_PORT": str(http),
        "RAY_SERVE_DIRECT_INGRESS_MAX_HTTP_PORT": str(http + RANGE - 1),
        "RAY_SERVE_DIRECT_INGRESS_MIN_GRPC_PORT": str(grpc),
        "RAY_SERVE_DIRECT_INGRESS_MAX_GRPC_PORT": str(grpc + RANGE - 1),
    }


def free_port() -> int:
    """Return a port on which nothing listens."""
    return free_ports(1)[0]


def free_ports(number: int) -> list[int]:
    """Return different ports on which nothing listens.

    Raises
    ------
    RuntimeError
        If there are not enough.
    """
    shuffled = random.sample(SINGLE, len(SINGLE))
    free = list(islice((port for port in shuffled if _are_free([port])), number))
    if len(free) < number:
        raise RuntimeError(f"no {number} free ports from {SINGLE.start} to {SINGLE.stop - 1}")
    return free


def _free_range(start: int, stop: int) -> int:
    """Return the first of consecutive free ports."""
    for _ in range(1000):
        first = random.randrange(start, stop, RANGE)  # noqa: S311
        if _are_free(range(first, first + RANGE)):
            return first
    raise RuntimeError(f"no {RANGE} consecutive free ports between {start} and {stop}")


def _are_free(ports: Iterable[int]) -> bool:
    with ExitStack() as stack:
        try:
            for port in ports:
                stack.enter_context(socket.socket()).bind(("", port))
        except OSError:
            return False
    return True


def describe_taken_ports(
    http_options: Mapping[str, Any], environment: Mapping[str, str]
) -> list[str]:
    """Return a message for each port where the server could not listen, saying what to do about it.

    Ray would start anyway and never answer, and HAProxy would share a port with another HAProxy
    without an error.
    """
    host = http_options.get("host") or "127.0.0.1"
    port = http_options.get("port") or DEFAULT_HTTP_PORT
    messages = []
    problem = _bind_error(host, port)
    if problem is not None and problem.errno == errno.EADDRINUSE:
        messages.append(f"port {port} is in use; choose another with PORT=… or --port")
    elif problem is not None:
        messages.append(f"http_options: cannot listen at {host}, port {port}: {problem.strerror}")
    if environment.get("RAY_SERVE_ENABLE_HA_PROXY") == "1":
        messages += [
            f"port {number} is in use, but HAProxy needs it; choose another with {name}, or set "
            "RAY_SERVE_ENABLE_HA_PROXY=0 to run without HAProxy"
            for name, default in HAPROXY_PORTS.items()
            if _bind_error("0.0.0.0", number := int(environment.get(name, default)))  # noqa: S104
        ]
    return messages


def _bind_error(host: str, port: int) -> OSError | None:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        # Lingering connections of a stopped server do not count.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
            probe.listen(1)
        except OSError as error:
            return error
    return None


def base_url(http_options: Mapping[str, Any], route_prefix: str = "/") -> str:
    """Return the URL at which this machine can call an application of the server."""
    host = str(http_options.get("host") or "127.0.0.1")
    # With "::", HAProxy listens at IPv4 addresses only, and Serve's own proxy at both kinds.
    host = "127.0.0.1" if host in ("0.0.0.0", "::") else host  # noqa: S104
    host = f"[{host}]" if ":" in host else host
    port = http_options.get("port") or DEFAULT_HTTP_PORT
    return f"http://{host}:{port}{route_prefix.rstrip('/')}"
