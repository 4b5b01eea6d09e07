"""Two servers of the same workflow, measured in turns: ours and theirs."""

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
from benchmarks.report import Aim, Report, ratio_of_neighbours, short
from benchmarks.workloads import Workload

T = TypeVar("T")
U = TypeVar("U")

READY_LIMIT_S = 600.0
READY_POLL_S = 0.5
RUN_LIMIT_S = 900.0
"""A run that takes longer is given up: Earth2Studio's serve module loses jobs with their worker."""


@dataclass(frozen=True)
class Side:
    """One of the two servers."""

    name: str
    base: str
    workload: Workload

    def connected(self) -> AbstractAsyncContextManager[Client]:
        """Connect to it.

        Every run does, before its clock starts: a server may close a connection that has been
        idle during the other's turn, and one with several processes answers by another each time.
        """
        return Client.connected(self.base, self.workload.path)


@dataclass(frozen=True)
class Sides:
    """The two servers."""

    ours: Side
    theirs: Side

    def __iter__(self) -> Iterator[Side]:
        return iter((self.ours, self.theirs))


@dataclass(frozen=True)
class Turns(Generic[T]):
    """What the runs of both gave, in order: those of one round are neighbours."""

    ours: list[T]
    theirs: list[T]

    def each(self, pick: Callable[[T], U]) -> Turns[U]:
        """Pick something from every run."""
        return Turns([pick(run) for run in self.ours], [pick(run) for run in self.theirs])


async def in_turns(sides: Sides, rounds: int, run: Callable[[Side], Awaitable[T]]) -> Turns[T]:
    """Run the same on both, round by round; who begins changes with every round."""
    turns: Turns[T] = Turns([], [])
    for number in range(rounds):
        order = [(sides.ours, turns.ours), (sides.theirs, turns.theirs)]
        for side, runs in order if number % 2 == 0 else reversed(order):
            async with asyncio.timeout(RUN_LIMIT_S):
                runs.append(await run(side))
    return turns


def report_ratio(
    report: Report,
    name: str,
    turns: Turns[float],
    unit: str,
    *,
    aim: Aim | None = None,
    note: str = "",
) -> None:
    """Report ours / theirs: the median ratio of neighbours, its spread and both medians."""
    ratio, spread = ratio_of_neighbours(turns.ours, turns.theirs)
    both = f"ours {short(median(turns.ours))}, theirs {short(median(turns.theirs))} {unit}"
    report.add(
        name,
        ratio,
        "x",
        aim=aim,
        note="; ".join(filter(None, (spread, both, note))),
        runs={f"ours, {unit}": turns.ours, f"theirs, {unit}": turns.theirs},
    )


async def wait_ready(side: Side) -> None:
    """Wait until a server can run its workflow.

    It must know the workflow, and say that it is ready if ``/readiness`` tells of workflows. That
    of Earth2Studio's serve module does not, and is 503 also where only its cleanup daemon is
    missing, so that it is not asked for more.

    Raises
    ------
    RuntimeError
        If it cannot for a long time.
    """
    deadline = time.monotonic() + READY_LIMIT_S
    told = False
    while problem := await _problem(side):
        if time.monotonic() > deadline:
            raise RuntimeError(f"{side.base} is not ready: {problem}")
        if not told:
            print(f"waiting for {side.name}, {side.base}: {problem}", flush=True)
            told = True
        await asyncio.sleep(READY_POLL_S)


async def _problem(side: Side) -> str:
    """Say why a server cannot run its workflow; empty if it can."""
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
    told = body.get("detail", body).get("workflows", {}).get(workflow, {"ready": True})
    return "" if told["ready"] else str(told["reason"])
