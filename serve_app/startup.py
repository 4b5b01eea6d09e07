"""What whoever starts the server is told: which port is taken, and when it can be used."""

from __future__ import annotations

import errno
import json
import socket
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any
from urllib.error import HTTPError
from urllib.request import urlopen

POLL_S = 0.5
PATIENCE_S = 10.0
"""How long a reason must last before it is told: every start has some for a moment."""

DEFAULT_PORT = 8000
HAPROXY_PORTS = {"RAY_SERVE_HAPROXY_METRICS_PORT": 9101, "RAY_SERVE_HAPROXY_STATS_PORT": 8404}


def taken_ports(http_options: Mapping[str, Any], environment: Mapping[str, str]) -> list[str]:
    """Say which ports another program has, and what to do about each.

    Ray would go on without an answer, and HAProxy would share a port with its like unnoticed.

    Parameters
    ----------
    http_options : mapping
        As in a configuration file.
    """
    host = http_options.get("host") or "127.0.0.1"
    port = http_options.get("port") or DEFAULT_PORT
    found = [f"port {port} is taken; PORT=… or --port names another"] if _taken(host, port) else []
    if environment.get("RAY_SERVE_ENABLE_HA_PROXY") == "1":
        found += [
            f"port {number} is taken, which HAProxy needs; {name} names another, "
            "RAY_SERVE_ENABLE_HA_PROXY=0 does without HAProxy"
            for name, usual in HAPROXY_PORTS.items()
            if _taken("0.0.0.0", number := int(environment.get(name, usual)))  # noqa: S104
        ]
    return found


def _taken(host: str, port: int) -> bool:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        # Connections of a server that has just stopped must not count.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
            probe.listen(1)
        except OSError as error:
            return error.errno == errno.EADDRINUSE
    return False


def base_url(http_options: Mapping[str, Any]) -> str:
    """Give the address under which a server on this machine can be called."""
    host = str(http_options.get("host") or "127.0.0.1")
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104
    return (
        f"http://{f'[{host}]' if ':' in host else host}:{http_options.get('port') or DEFAULT_PORT}"
    )


def announce(
    url: str, say: Callable[[str], None], *, poll_s: float = POLL_S, patience_s: float = PATIENCE_S
) -> threading.Thread:
    """Say, from a thread, when the server is ready; and what it lacks if that lasts."""
    thread = threading.Thread(
        target=_watch, args=(url, say, poll_s, patience_s), name="announce", daemon=True
    )
    thread.start()
    return thread


def _watch(url: str, say: Callable[[str], None], poll_s: float, patience_s: float) -> None:
    lack, since, told = "", time.monotonic(), ""
    while True:
        found = _lack(url)
        if found is None:
            return say(f"ready: {url}")
        if found != lack:
            lack, since = found, time.monotonic()
        if lack and lack != told and time.monotonic() - since >= patience_s:
            told = lack
            say(f"not ready yet: {lack}")
        time.sleep(poll_s)


def _lack(url: str) -> str | None:
    """Say why the server is not ready; None if it is, empty if it does not say."""
    try:
        with urlopen(f"{url}/readiness", timeout=5):  # noqa: S310
            return None
    except HTTPError as error:
        if error.code == 401:  # it asks for a token, so it answers
            return None
        try:
            workflows = json.loads(error.read())["detail"]["workflows"].values()
            return "; ".join(sorted({each["reason"] for each in workflows if each["reason"]}))
        except (ValueError, KeyError, TypeError, AttributeError):
            return ""
    except OSError:
        return ""
