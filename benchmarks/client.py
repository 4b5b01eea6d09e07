"""What a client of one workflow of a server does: submit, follow, remove."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from benchmarks.http_client import Answer, Connection

ENDED = {"completed", "failed", "cancelled", "expired"}
POLL_S = 0.01


class QueueFull(Exception):
    """The server refuses submits, so that nothing can be measured that needs them."""


@dataclass(frozen=True)
class Followed:
    """A job that was followed to its end."""

    execution_id: str
    seconds: float
    """From before it was submitted until its end was seen."""
    stages: dict[str, float]
    """When each stage was first seen, in seconds after the submit; ``queued`` and ``end`` too."""


class Client:
    """Calls one workflow over a connection of its own.

    Parameters
    ----------
    connection : Connection
        To the server.
    path : str
        Of the workflow, as in `benchmarks.workloads.Workload`.
    """

    def __init__(self, connection: Connection, path: str) -> None:
        self.connection = connection
        self.path = path

    @classmethod
    @asynccontextmanager
    async def connected(cls, base: str, path: str) -> AsyncIterator[Client]:
        """Connect to a server, for as long as the context lasts."""
        connection = await Connection.open(base)
        try:
            yield cls(connection, path)
        finally:
            connection.close()

    async def submit(self, parameters: dict[str, Any]) -> str:
        """Submit a job; gives its id.

        Raises
        ------
        QueueFull
            If the server has no room for it.
        """
        return accepted(await self.connection.post(self.path, {"parameters": parameters}))

    async def run_job(self, parameters: dict[str, Any], *, poll_s: float = 0.0) -> Followed:
        """Submit a job and follow it to its end.

        Parameters
        ----------
        poll_s : float
            Pause between two looks at its status; 0 asks the server to wait for a change instead.

        Raises
        ------
        RuntimeError
            If it does not complete.
        """
        began = time.perf_counter()
        execution_id = await self.submit(parameters)
        stages: dict[str, float] = {}
        path = f"{self.path}/{execution_id}/status"
        while True:
            status = (await self.connection.get(path if poll_s else f"{path}?wait=30")).json()
            passed = time.perf_counter() - began
            stages.setdefault(status.get("stage") or "queued", passed)
            if status["status"] in ENDED:
                break
            await asyncio.sleep(poll_s)
        _check_completed(execution_id, status)
        return Followed(execution_id, passed, stages | {"end": passed})

    async def wait_for(self, execution_ids: Iterable[str], *, poll_s: float = POLL_S) -> None:
        """Wait until all of some jobs have completed, looking at one after the other.

        Raises
        ------
        RuntimeError
            If one does not complete.
        """
        for execution_id in execution_ids:
            path = f"{self.path}/{execution_id}/status"
            while True:
                status = (await self.connection.get(path)).json()
                if status["status"] in ENDED:
                    break
                await asyncio.sleep(poll_s)
            _check_completed(execution_id, status)

    async def run_queue(self, parameters: dict[str, Any], jobs: int) -> float:
        """Submit several jobs and wait for all; gives the seconds."""
        began = time.perf_counter()
        await self.wait_for([await self.submit(parameters) for _ in range(jobs)])
        return time.perf_counter() - began

    async def remove(self, execution_id: str) -> bool:
        """Remove a finished job with its results; False if the server cannot do that."""
        answer = await self.connection.delete(f"{self.path}/{execution_id}?purge=true")
        if answer.status in (404, 405):
            return False
        if answer.status != 204:
            answer.json()
        return True


def accepted(answer: Answer) -> str:
    """Give the id of a job from the answer to its submit.

    Raises
    ------
    QueueFull
        If the server had no room for it.
    """
    if answer.status == 429:
        raise QueueFull("HTTP 429, its queue is full")
    return str(answer.json()["execution_id"])


def _check_completed(execution_id: str, status: dict[str, Any]) -> None:
    if status["status"] != "completed":
        message = status.get("error_message")
        raise RuntimeError(f"{execution_id} {status['status']}: {message}")
