"""A server with the HTTP API of Earth2Studio's serve module: no stages, no DELETE."""

import asyncio
import socket
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import uvicorn
from fastapi import FastAPI, HTTPException

WORKFLOW = "bench_persistence"
JOB_S = 0.02


class Peer:
    """Completes each job `JOB_S` after its submit.

    Parameters
    ----------
    max_jobs : int
        Jobs that are accepted; further ones are refused.
    """

    def __init__(self, max_jobs: int = 10_000) -> None:
        self.submitted: list[dict[str, Any]] = []
        self.seen_completed: set[str] = set()
        self.app = FastAPI()
        self._max_jobs = max_jobs
        self._done_at: dict[str, float] = {}
        self.app.get("/readiness")(self.readiness)
        self.app.get(f"/v1/infer/workflows/{WORKFLOW}/schema")(self.schema)
        self.app.post(f"/v1/infer/{WORKFLOW}")(self.submit)
        self.app.get(f"/v1/infer/{WORKFLOW}/{{execution_id}}/status")(self.status)

    async def readiness(self) -> None:
        raise HTTPException(503, {"status": "unhealthy"})

    async def schema(self) -> dict[str, Any]:
        return {}

    async def submit(self, body: dict[str, Any]) -> dict[str, Any]:
        if len(self.submitted) == self._max_jobs:
            raise HTTPException(429, "full")
        self.submitted.append(body["parameters"])
        execution_id = f"exec_{len(self.submitted)}"
        self._done_at[execution_id] = time.monotonic() + JOB_S
        return {"execution_id": execution_id, "status": "queued"}

    async def status(self, execution_id: str) -> dict[str, Any]:
        if time.monotonic() < self._done_at[execution_id]:
            return {"execution_id": execution_id, "status": "running", "error_message": None}
        self.seen_completed.add(execution_id)
        return {"execution_id": execution_id, "status": "completed", "error_message": None}


@asynccontextmanager
async def serving(peer: Peer) -> AsyncIterator[str]:
    """Serve it on a free loopback port; yield its URL."""
    # Declared as TCP: otherwise asyncio leaves Nagle's algorithm on, and every call waits 40 ms.
    with socket.socket(proto=socket.IPPROTO_TCP) as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        server = uvicorn.Server(uvicorn.Config(peer.app, log_level="error"))
        task = asyncio.create_task(server.serve(sockets=[listening]))
        try:
            yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        finally:
            server.should_exit = True
            await task
