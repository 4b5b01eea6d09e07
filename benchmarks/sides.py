"""Two servers of the same workflow, measured alternately: ours and theirs."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from statistics import median
from typing import Generic, TypeVar

from benchmarks.client import Client
from benchmarks.http_client import Connection
from benchmarks.report import Report, Target, ratio_of_neighbours, short
from benchmarks.workloads import Workload

T = TypeVar("T")
U = TypeVar("U")

READY_LIMIT_S = 600.0
READY_POLL_S = 0.5
RUN_LIMIT_S = 900.0
"""Time limit of a run: Earth2Studio's serve module loses jobs whose worker dies."""


@dataclass(frozen=True)
class Side:
    """One of the two servers."""

    name: str
    base: str
    workload: Workload

    def connected(self) -> AbstractAsyncContextManager[Client]:
        """Connect to the server.

        Every run does so before its clock starts: a server may close a connection that was idle
        during the other's run, and one with several processes may answer from another process.
        """
        return Client.connected(self.base, self.workload.path)


@dataclass(frozen=True)
class Sides:
    """The two servers."""

    ours: Side
    theirs: Side

    def __iter__(self) -> Iterator[Side]:
        return iter((self.ours, self.theirs))

    async def ask(self, question: Callable[[Side, Client], Awaitable[T]]) -> dict[str, T]:
        """Return the answers of a function that is called with each side and a client of it."""
        answers = {}
        for side in self:
            async with side.connected() as client:
                answers[side.name] = await question(side, client)
        return answers


@dataclass(frozen=True)
class Runs(Generic[T]):
    """Results of the runs of both servers, in order; those of one round are neighbours."""

    ours: list[T]
    theirs: list[T]

    def map(self, pick: Callable[[T], U]) -> Runs[U]:
        """Return the runs with a function applied to each result."""
        return Runs([pick(run) for run in self.ours], [pick(run) for run in self.theirs])


async def alternate(sides: Sides, rounds: int, run: Callable[[Side], Awaitable[T]]) -> Runs[T]:
    """Run the same on both servers, round by round; the first changes with every round."""
    found: Runs[T] = Runs([], [])
    for number in range(rounds):
        order = [(sides.ours, found.ours), (sides.theirs, found.theirs)]
        for side, runs in order if number % 2 == 0 else reversed(order):
            async with asyncio.timeout(RUN_LIMIT_S):
                runs.append(await run(side))
    return found


def report_ratio(
    report: Report,
    name: str,
    runs: Runs[float],
    unit: str,
    *,
    target: Target | None = None,
    note: str = "",
) -> None:
    """Report ours / theirs: the median ratio of neighbouring runs, its spread and both medians."""
    ratio, spread = ratio_of_neighbours(runs.ours, runs.theirs)
    both = f"ours {short(median(runs.ours))}, theirs {short(median(runs.theirs))} {unit}"
    report.add(
        name,
        ratio,
        "x",
        target=target,
        note="; ".join(filter(None, (spread, both, note))),
        runs={f"ours, {unit}": runs.ours, f"theirs, {unit}": runs.theirs},
    )


async def wait_ready(side: Side) -> None:
    """Wait until a server can run its workflow.

    It must know the workflow, and report it as ready if ``/readiness`` reports workflows. That of
    Earth2Studio's serve module does not, and answers 503 even if only its cleanup daemon is
    missing, so its status is ignored.

    Raises
    ------
    RuntimeError
        After `READY_LIMIT_S`.
    """
    deadline = time.monotonic() + READY_LIMIT_S
    reported = False
    while problem := await _problem(side):
        if time.monotonic() > deadline:
            raise RuntimeError(f"{side.base} is not ready: {problem}")
        if not reported:
            print(f"waiting for {side.name}, {side.base}: {problem}", flush=True)
            reported = True
        await asyncio.sleep(READY_POLL_S)


async def _problem(side: Side) -> str:
    """Return why a server cannot run its workflow; empty if it can."""
    workflow = side.workload.workflow
    try:
        connection = await Connection.open(side.base)
    except OSError as error:
        return str(error)
    try:
        schema = await connection.get(f"/v1/infer/workflows/{workflow}/schema")
        if schema.status != 200:
            return f"HTTP {schema.status} for the schema of {workflow}"
        body = json.loads((await connection.get("/readiness")).body)
    except (OSError, ValueError) as error:
        return repr(error)
    finally:
        connection.close()
    readiness = body.get("detail", body).get("workflows", {}).get(workflow, {"ready": True})
    return "" if readiness["ready"] else str(readiness["reason"])
