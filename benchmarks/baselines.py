"""Minimal servers to compare the ingress with.

Their answer is as long as a status, so that they send as many bytes.
"""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from serve_app.ports import free_port

BODY = {"execution_id": "exec_0_00000000", "metadata": "x" * 850}
"""About as long as a status."""
CONTENT = json.dumps(BODY).encode()


async def plain(scope: dict[str, Any], receive: Any, send: Any) -> None:
    """Answer every request as plain ASGI: the upper limit of a uvicorn process."""
    if scope["type"] != "http":
        return
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(CONTENT))]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": CONTENT})


def bare_application(args: dict[str, Any]) -> Any:
    """Build a Serve application with one FastAPI route that does nothing.

    Deployed beside ours, behind the same HAProxy: the upper limit of any application there.
    """
    from fastapi import FastAPI
    from ray import serve

    app = FastAPI()

    @app.get("/{workflow}/{execution_id}/status")
    async def status(workflow: str, execution_id: str) -> dict[str, Any]:
        return BODY

    @serve.ingress(app)
    class Bare:
        """Serves `app`."""

    resources = {"num_cpus": 0.1, "num_gpus": 0}
    deployment = serve.deployment(max_ongoing_requests=1000, ray_actor_options=resources)
    return deployment(Bare).bind()


@contextmanager
def plain_uvicorn() -> Iterator[str]:
    """Run `plain` in a process of its own; yield its URL."""
    port = free_port()
    command = [sys.executable, "-m", "uvicorn", f"{__name__}:plain", "--port", str(port)]
    process = subprocess.Popen([*command, "--log-level", "error", "--no-access-log"])
    try:
        for _ in range(600):
            try:
                socket.create_connection(("127.0.0.1", port), timeout=1.0).close()
                break
            except OSError:
                time.sleep(0.1)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait()
