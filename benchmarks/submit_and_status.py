"""Latency and rate of submits and statuses, beside minimal servers."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from statistics import median
from typing import Any

from benchmarks.baselines import plain_uvicorn
from benchmarks.client import POLL_S, QueueFull, accepted
from benchmarks.http_client import Answer, Connection, Load, load
from benchmarks.report import Report, Target, short
from benchmarks.sides import Runs, Side, Sides, alternate, report_ratio
from benchmarks.workloads import FCN3, Workload

CLIENTS = (1, 8, 32)
BARE_PATH = "/bare/x/exec_0_00000000/status"
"""Route of `benchmarks.baselines.bare_application`."""

STATUS_TARGETS = {1: Target(2.0)}
STATUS_RATE_TARGETS = {32: Target(900, at_least=True)}
SUBMIT_TARGETS = {1: Target(5.0)}

COMPARED_CLIENTS = (1, 32)
COMPARED_REQUESTS = 200
RATE_RATIO_TARGET = Target(1.0, at_least=True)


async def measure_requests(
    report: Report, base: str, execution_id: str, *, bare: bool, quick: bool
) -> None:
    """Measure statuses of one execution, and submits.

    Parameters
    ----------
    execution_id : str
        Execution whose status is requested.
    bare : bool
        Whether `benchmarks.baselines.bare_application` is served as well.
    """
    runs = 1 if quick else 3
    floors: dict[str, dict[int, Load]] = {}
    with plain_uvicorn() as plain:
        report.start("upper limits: the same client against servers that do nothing")
        floors["plain uvicorn"] = await _many(
            report, "plain uvicorn", plain, _get("/"), 1000, runs=runs
        )
    if bare:
        floors["Serve+FastAPI+HAProxy"] = await _many(
            report, "Serve+FastAPI+HAProxy", base, _get(BARE_PATH), 300, runs=runs
        )

    report.start("status")
    await _many(
        report,
        "status",
        base,
        _get(f"{FCN3.path}/{execution_id}/status"),
        300,
        runs=runs,
        floors=floors,
        targets=(STATUS_TARGETS, STATUS_RATE_TARGETS),
    )
    report.start("submit")
    await _many(
        report,
        "submit",
        base,
        _post(FCN3),
        100,
        runs=runs,
        floors=floors,
        targets=(SUBMIT_TARGETS, {}),
    )


async def compare_requests(report: Report, sides: Sides, *, quick: bool) -> None:
    """Compare the rates of submits and of statuses.

    Raises
    ------
    QueueFull
        If a server refuses submits.
    """
    rounds = 1 if quick else 3
    report.start(f"{COMPARED_REQUESTS} submits, and as many statuses: ours / theirs")
    jobs = await sides.ask(lambda side, client: client.run_job(_tiny(side.workload), poll_s=POLL_S))
    finished = {name: job.execution_id for name, job in jobs.items()}
    for clients in COMPARED_CLIENTS:
        submits = await alternate(sides, rounds, partial(_submits, clients=clients))
        _report_rates(report, f"submit, {_by(clients)}", submits)
        statuses = partial(_statuses, finished=finished, clients=clients)
        _report_rates(report, f"status, {_by(clients)}", await alternate(sides, rounds, statuses))


async def _submits(side: Side, clients: int) -> Load:
    """Submit tiny jobs and wait until all have completed, so that the queue is empty again."""
    answers: list[Answer] = []
    submit = _post(side.workload)
    measured = await load(
        side.base, submit, clients=clients, requests=COMPARED_REQUESTS, answers=answers
    )
    ids = [accepted(answer) for answer in answers if answer.status != 429]
    async with side.connected() as client:
        await client.wait_for(ids)
    if len(ids) < len(answers):
        raise QueueFull(
            f"{side.base} refused {len(answers) - len(ids)} of {len(answers)} submits with "
            "HTTP 429: its queue is too short"
        )
    return measured


async def _statuses(side: Side, finished: dict[str, str], clients: int) -> Load:
    path = f"{side.workload.path}/{finished[side.name]}/status"
    measured = await load(side.base, _get(path), clients=clients, requests=COMPARED_REQUESTS)
    if set(measured.statuses) != {200}:
        raise RuntimeError(f"{side.base} answers {measured.statuses} to statuses")
    return measured


def _report_rates(report: Report, name: str, runs: Runs[Load]) -> None:
    ours, theirs = (
        short(median([run.p50_ms for run in side])) for side in (runs.ours, runs.theirs)
    )
    report_ratio(
        report,
        name,
        runs.map(lambda run: run.per_s),
        "/s",
        target=RATE_RATIO_TARGET,
        note=f"p50 ours {ours}, theirs {theirs} ms",
    )


def _tiny(workload: Workload) -> dict[str, Any]:
    return {**workload.tiny, "output_format": "zarr"}


def _post(workload: Workload) -> Callable[[Connection], bytes]:
    body = {"parameters": _tiny(workload)}
    return lambda connection: connection.prepare("POST", workload.path, body)


def _by(clients: int) -> str:
    return f"{clients} client{'s' if clients > 1 else ''}"


def _get(path: str) -> Callable[[Connection], bytes]:
    return lambda connection: connection.prepare("GET", path)


async def _many(
    report: Report,
    name: str,
    base: str,
    prepare: Callable[[Connection], bytes],
    requests: int,
    *,
    runs: int,
    floors: dict[str, dict[int, Load]] | None = None,
    targets: tuple[dict[int, Target], dict[int, Target]] = ({}, {}),
) -> dict[int, Load]:
    """Measure with increasing numbers of clients; the run with the median rate counts.

    Parameters
    ----------
    requests : int
        Number with one client; three times as many with 8, six times with 32.
    aims : tuple
        For the median latency and the rate, by number of clients.
    """
    found = {}
    for clients in CLIENTS:
        count = requests * {1: 1, 8: 3, 32: 6}[clients]
        report.restart_watch()
        loads = [await load(base, prepare, clients=clients, requests=count) for _ in range(runs)]
        rate = median([each.per_s for each in loads])
        chosen = min(loads, key=lambda each: abs(each.per_s - rate))
        found[clients] = chosen
        refused = {code: n for code, n in chosen.statuses.items() if code != 200}
        who = f"{name}, {_by(clients)}"
        note = f"p99 {chosen.p99_ms:.1f} ms"
        if refused:
            note += f"; NOT 200: {refused}"
        report.add(f"{who}: p50", chosen.p50_ms, "ms", target=targets[0].get(clients), note=note)
        against = [
            f"{chosen.per_s / floor[clients].per_s:.2f} of {what}"
            for what, floor in (floors or {}).items()
        ]
        report.add(
            f"{who}: rate",
            chosen.per_s,
            "/s",
            target=targets[1].get(clients),
            note="; ".join(against),
        )
    return found
