"""What a client of the server does: submit, follow, remove."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from typing import Any

from benchmarks.http_client import Connection

WORKFLOW = "/v1/infer/foundry_fcn3_workflow"
TINY = {"n_steps": 1, "n_samples": 1, "variables": ["t2m"], "output_format": "zarr"}
"""Parameters of the smallest job; tiny only on a server with a small grid."""
ENDED = {"completed", "failed", "cancelled", "expired"}


@dataclass(frozen=True)
class Followed:
    """A job that was followed to its end."""

    execution_id: str
    seconds: float
    """From before it was submitted until its end was seen."""
    stages: dict[str, float]
    """When each stage was first seen, in seconds after the submit; ``queued`` and ``end`` too."""


async def submit(connection: Connection, parameters: dict[str, Any]) -> str:
    """Submit a job; gives its id."""
    answer = (await connection.post(WORKFLOW, {"parameters": parameters})).json()
    return str(answer["execution_id"])


async def run_job(
    connection: Connection, parameters: dict[str, Any], *, poll_s: float = 0.0
) -> Followed:
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
    execution_id = await submit(connection, parameters)
    stages: dict[str, float] = {}
    path = f"{WORKFLOW}/{execution_id}/status"
    while True:
        status = (await connection.get(path if poll_s else f"{path}?wait=30")).json()
        passed = time.perf_counter() - began
        stages.setdefault(status["stage"] or "queued", passed)
        if status["status"] in ENDED:
            break
        await asyncio.sleep(poll_s)
    if status["status"] != "completed":
        raise RuntimeError(f"{execution_id} {status['status']}: {status['error_message']}")
    return Followed(execution_id, passed, stages | {"end": passed})


async def remove(connection: Connection, execution_id: str) -> None:
    """Remove a finished job with its results."""
    answer = await connection.delete(f"{WORKFLOW}/{execution_id}?purge=true")
    if answer.status != 204:
        answer.json()
