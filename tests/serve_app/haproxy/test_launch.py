"""HAProxy itself, started as Serve starts it, in front of stand-ins for Serve's processes."""

from __future__ import annotations

import http.client
import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import MappingProxyType

import pytest

import serve_app.haproxy
from serve_app.haproxy.launch import ERRORS, RETRY_AFTER_S
from tests.serve_app.haproxy.generated import Generated

LAUNCHER = Path(serve_app.haproxy.__file__).with_name("haproxy")
LIMIT_S = 20.0
SLOW = threading.Event()
"""Set when requests to /slow may be answered."""


class Replica(BaseHTTPRequestHandler):
    """An ingress replica."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        if self.path == "/slow":
            SLOW.wait(LIMIT_S)
        self._answer(200, b'{"alive":true}')

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self._answer(200, b'{"accepted":true}')

    def _answer(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


class Fallback(Replica):
    """Serve's own proxy, before it knows a route."""

    def do_GET(self) -> None:
        healthy = self.path == "/-/healthz"
        self._answer(200 if healthy else 404, b"success" if healthy else b"Path not found.")


@pytest.fixture
def cleanup() -> Iterator[ExitStack]:
    SLOW.clear()
    with ExitStack() as stack:
        yield stack
        SLOW.set()


@pytest.fixture
def folder(cleanup: ExitStack) -> Path:
    # A socket's path must be short.
    return Path(cleanup.enter_context(tempfile.TemporaryDirectory(prefix="e2s-")))


def listen(cleanup: ExitStack, handler: type[BaseHTTPRequestHandler]) -> ThreadingHTTPServer:
    server = cleanup.enter_context(ThreadingHTTPServer(("127.0.0.1", 0), handler))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    cleanup.callback(server.shutdown)
    return server


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + LIMIT_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def accepts(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def start(cleanup: ExitStack, generated: Generated, **environment: str) -> int:
    """Start HAProxy, and return its port once it accepts connections."""
    process = subprocess.Popen(
        [LAUNCHER, "-db", "-f", generated.file, "-dR"],
        env={**os.environ, "EARTH2SERVE_PYTHON": sys.executable, **environment},
    )
    cleanup.callback(process.wait)
    cleanup.callback(process.kill)
    until(lambda: process.poll() is not None or accepts(generated.port))
    assert process.poll() is None
    return generated.port


def get(
    port: int, path: str, headers: Mapping[str, str] = MappingProxyType({})
) -> tuple[int, str | None, object]:
    """Return status, Retry-After and the JSON body of a response."""
    with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=LIMIT_S)) as connection:
        connection.request("GET", path, headers=dict(headers))
        response = connection.getresponse()
        assert response.getheader("Content-Type") == "application/json"
        return response.status, response.getheader("Retry-After"), json.load(response)


STARTING = (503, str(RETRY_AFTER_S), {"detail": ERRORS[503][2]})


@pytest.mark.parametrize("path", ["/", "/v1/results/x/results.zarr/t2m/0.0", "/favicon.ico"])
def test_while_no_route_is_known_nothing_is_missing(
    cleanup: ExitStack, folder: Path, path: str
) -> None:
    assert get(start(cleanup, Generated(folder)), path) == STARTING


def test_while_no_replica_responds_serves_own_proxy_is_not_asked(
    cleanup: ExitStack, folder: Path
) -> None:
    replica, fallback = listen(cleanup, Replica), listen(cleanup, Fallback)
    generated = Generated(folder, replica=replica.server_port, fallback=fallback.server_port)
    port = start(cleanup, generated)
    until(lambda: get(port, "/liveness")[0] == 200)
    replica.shutdown()
    replica.server_close()
    assert [get(port, "/liveness") for _ in range(5)] == [STARTING] * 5


def test_a_path_outside_the_application_is_not_called_missing(
    cleanup: ExitStack, folder: Path
) -> None:
    replica = listen(cleanup, Replica)
    port = start(cleanup, Generated(folder, replica=replica.server_port, prefix="/earth2"))
    until(lambda: get(port, "/earth2/liveness")[0] == 200)
    assert get(port, "/other") == STARTING


def test_a_request_that_a_dying_replica_has_received_is_answered(
    cleanup: ExitStack, folder: Path
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as replica:
        port = start(cleanup, Generated(folder, replica=replica.getsockname()[1]))
        with ThreadPoolExecutor(1) as pool:
            answer = pool.submit(get, port, "/liveness")
            while not answer.done():
                replica.settimeout(LIMIT_S)
                connection, _ = replica.accept()
                with connection:
                    request = connection.recv(4096)
                    if b"healthz" in request:
                        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
                if b"liveness" in request:
                    break
            assert answer.result() == (503, str(RETRY_AFTER_S), {"detail": ERRORS[502][2]})


def test_large_headers_reach_the_ingress(cleanup: ExitStack, folder: Path) -> None:
    replica = listen(cleanup, Replica)
    port = start(cleanup, Generated(folder, replica=replica.server_port))
    until(lambda: get(port, "/liveness")[0] == 200)
    assert get(port, "/liveness", {"X-Large": "a" * 60_000})[0] == 200


@pytest.mark.parametrize(
    ("line", "code"),
    [(b"PATCHED / HTTP/1.1", 405), (b"GET / HTTP/0.9", 400), (b"OPTIONS * HTTP/1.1", 400)],
)
def test_what_the_ingress_would_refuse_in_plain_text_is_refused_in_json(
    cleanup: ExitStack, folder: Path, line: bytes, code: int
) -> None:
    replica = listen(cleanup, Replica)
    port = start(cleanup, Generated(folder, replica=replica.server_port))
    until(lambda: get(port, "/liveness")[0] == 200)
    with socket.create_connection(("127.0.0.1", port), timeout=LIMIT_S) as connection:
        connection.sendall(line + b"\r\nHost: a\r\nConnection: close\r\n\r\n")
        head, _, body = connection.makefile("rb").read().partition(b"\r\n\r\n")
    assert head.split()[1] == str(code).encode()
    assert json.loads(body) == {"detail": ERRORS[code][2]}


@pytest.mark.parametrize(
    "beginning",
    [
        b"GET /liv",
        b"GET /liveness HTTP/1.1\r\nHost: a\r\n",
        b"POST /liveness HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\n{",
    ],
    ids=["line", "headers", "body"],
)
def test_clients_that_stop_in_a_request_keep_nobody_out(
    cleanup: ExitStack, folder: Path, beginning: bytes
) -> None:
    replica = listen(cleanup, Replica)
    port = start(
        cleanup,
        Generated(folder, replica=replica.server_port),
        RAY_SERVE_HAPROXY_MAXCONN="10",
        RAY_SERVE_HAPROXY_TIMEOUT_HTTP_REQUEST_S="1",
    )
    until(lambda: get(port, "/liveness")[0] == 200)
    with ExitStack() as silent:
        for _ in range(15):
            client = silent.enter_context(socket.create_connection(("127.0.0.1", port)))
            client.sendall(beginning)
        assert get(port, "/liveness")[0] == 200
    with socket.create_connection(("127.0.0.1", port), timeout=LIMIT_S) as client:
        client.sendall(beginning)
        with client.makefile("rb") as received:
            assert received.read().startswith(b"HTTP/1.1 408 ")


def test_a_long_poll_outlasts_the_limit_for_silent_clients(
    cleanup: ExitStack, folder: Path
) -> None:
    replica = listen(cleanup, Replica)
    port = start(
        cleanup,
        Generated(folder, replica=replica.server_port),
        RAY_SERVE_HAPROXY_TIMEOUT_CLIENT_S="1",
    )
    until(lambda: get(port, "/liveness")[0] == 200)
    threading.Timer(1.5, SLOW.set).start()
    assert get(port, "/slow")[0] == 200


def test_an_unexpected_configuration_is_refused(folder: Path) -> None:
    file = folder / "haproxy.cfg"
    file.write_text("global\n")
    done = subprocess.run(
        [LAUNCHER, "-db", "-f", file],
        env={**os.environ, "EARTH2SERVE_PYTHON": sys.executable},
        capture_output=True,
        text=True,
    )
    assert done.returncode != 0
    assert done.stderr == (
        "earth2serve cannot start HAProxy: UnexpectedConfiguration: there is no frontend "
        "'prometheus'\n"
    )


MANAGER = """\
import subprocess, sys
launcher, file = sys.argv[1:]
for line in sys.stdin:
    print(subprocess.Popen([launcher, "-db", "-f", file, "-dR", *line.split()]).pid, flush=True)
"""


def test_haproxy_ends_with_its_manager(cleanup: ExitStack, folder: Path) -> None:
    replica = listen(cleanup, Replica)
    generated = Generated(folder, replica=replica.server_port)
    manager = subprocess.Popen(
        [sys.executable, "-c", MANAGER, LAUNCHER, generated.file],
        env={**os.environ, "EARTH2SERVE_PYTHON": sys.executable},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    cleanup.callback(manager.wait)
    cleanup.callback(manager.kill)
    assert manager.stdin is not None and manager.stdout is not None

    def spawn(arguments: str) -> int:
        assert manager.stdin is not None and manager.stdout is not None
        manager.stdin.write(f"{arguments}\n")
        manager.stdin.flush()
        return int(manager.stdout.readline())

    old = spawn("")
    until(lambda: accepts(generated.port) and get(generated.port, "/liveness")[0] == 200)
    with socket.create_connection(("127.0.0.1", generated.port)) as waiting:
        waiting.sendall(b"GET /slow HTTP/1.1\r\nHost: a\r\n\r\n")
        new = spawn(f"-sf {old} -x {generated.control}")
        until(lambda: Path(f"/proc/{new}/exe").resolve().name == "haproxy")
        ended = [os.pidfd_open(pid) for pid in (old, new)]
        manager.kill()
        for descriptor in ended:
            assert select.select([descriptor], [], [], LIMIT_S)[0]
            os.close(descriptor)
    assert signal.SIGKILL == -manager.wait()
    with socket.create_server(("127.0.0.1", generated.port)):
        pass
