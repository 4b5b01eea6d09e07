"""A client of one workflow: submit, follow and remove jobs."""

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
    """The server refuses submits because its queue is full."""


@dataclass(frozen=True)
class FinishedJob:
    """A job that was followed until it completed."""

    execution_id: str
    seconds: float
    """From before the submit until its end was seen."""
    stages: dict[str, float]
    """Seconds after the submit at which each stage was first seen, and ``queued`` and ``end``."""


class Client:
    """Calls one workflow over its own connection.

    Parameters
    ----------
    connection : Connection
    path : str
        Path of the workflow, as in `benchmarks.workloads.Workload`.
    """

    def __init__(self, connection: Connection, path: str) -> None:
        self.connection = connection
        self.path = path

    @classmethod
    @asynccontextmanager
    async def connected(cls, base: str, path: str) -> AsyncIterator[Client]:
        """Connect to a server for the duration of the context."""
        connection = await Connection.open(base)
        try:
            yield cls(connection, path)
        finally:
            connection.close()

    async def submit(self, parameters: dict[str, Any]) -> str:
        """Submit a job; return its id.

        Raises
        ------
        QueueFull
            If the server refuses it with 429.
        """
        return accepted(await self.connection.post(self.path, {"parameters": parameters}))

    async def run_job(self, parameters: dict[str, Any], *, poll_s: float = 0.0) -> FinishedJob:
        """Submit a job and follow it until it completes.

        Parameters
        ----------
        poll_s : float
            Pause between two status requests; 0 uses long polls instead.

        Raises
        ------
        RuntimeError
            If it does not complete.
        """
        started = time.perf_counter()
        execution_id = await self.submit(parameters)
        stages: dict[str, float] = {}
        path = f"{self.path}/{execution_id}/status"
        while True:
            status = (await self.connection.get(path if poll_s else f"{path}?wait=30")).json()
            elapsed = time.perf_counter() - started
            stages.setdefault(status.get("stage") or "queued", elapsed)
            if status["status"] in ENDED:
                break
            await asyncio.sleep(poll_s)
        _check_completed(execution_id, status)
        return FinishedJob(execution_id, elapsed, stages | {"end": elapsed})

    async def wait_for(self, execution_ids: Iterable[str], *, poll_s: float = POLL_S) -> None:
        """Wait until all jobs have completed, following one after another.

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
        """Submit several jobs and wait for all; return the seconds it took."""
        started = time.perf_counter()
        await self.wait_for([await self.submit(parameters) for _ in range(jobs)])
        return time.perf_counter() - started

    async def remove(self, execution_id: str) -> bool:
        """Remove a finished job and its results; return False if the server cannot do that."""
        answer = await self.connection.delete(f"{self.path}/{execution_id}?purge=true")
        if answer.status in (404, 405):
            return False
        if answer.status != 204:
            answer.json()
        return True


def accepted(answer: Answer) -> str:
    """Return the id of a job from the answer to its submit.

    Raises
    ------
    QueueFull
        If the answer is 429.
    """
    if answer.status == 429:
        raise QueueFull("HTTP 429, the queue is full")
    return str(answer.json()["execution_id"])


def _check_completed(execution_id: str, status: dict[str, Any]) -> None:
    if status["status"] != "completed":
        message = status.get("error_message")
        raise RuntimeError(f"{execution_id} {status['status']}: {message}")
