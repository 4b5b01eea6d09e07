"""Submit and status: how long they take, and how many a second, beside the least possible."""

from __future__ import annotations

from collections.abc import Callable
from statistics import median

from benchmarks.baselines import plain_uvicorn
from benchmarks.client import TINY, WORKFLOW
from benchmarks.http_client import Connection, Load, load
from benchmarks.report import Aim, Report

CLIENTS = (1, 8, 32)
BARE_PATH = "/bare/x/exec_0_00000000/status"
"""Of `benchmarks.baselines.bare_application`."""

STATUS_AIMS = {1: Aim(2.0)}
STATUS_RATE_AIMS = {32: Aim(900, at_least=True)}
SUBMIT_AIMS = {1: Aim(5.0)}


async def measure_requests(
    report: Report, base: str, execution_id: str, *, bare: bool, quick: bool
) -> None:
    """Measure status of one execution, and submits.

    Parameters
    ----------
    execution_id : str
        Whose status is asked for.
    bare : bool
        Whether `benchmarks.baselines.bare_application` is served as well.
    """
    runs = 1 if quick else 3
    floors: dict[str, dict[int, Load]] = {}
    with plain_uvicorn() as plain:
        report.begin("floors: the same client, against what does nothing")
        floors["plain uvicorn"] = await _many(
            report, "plain uvicorn", plain, _get("/"), 1000, runs=runs
        )
    if bare:
        floors["Serve+FastAPI+HAProxy"] = await _many(
            report, "Serve+FastAPI+HAProxy", base, _get(BARE_PATH), 300, runs=runs
        )

    report.begin("status")
    await _many(
        report,
        "status",
        base,
        _get(f"{WORKFLOW}/{execution_id}/status"),
        300,
        runs=runs,
        floors=floors,
        aims=(STATUS_AIMS, STATUS_RATE_AIMS),
    )
    report.begin("submit")
    await _many(
        report,
        "submit",
        base,
        lambda connection: connection.prepare("POST", WORKFLOW, {"parameters": TINY}),
        100,
        runs=runs,
        floors=floors,
        aims=(SUBMIT_AIMS, {}),
    )


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
    aims: tuple[dict[int, Aim], dict[int, Aim]] = ({}, {}),
) -> dict[int, Load]:
    """Measure with growing numbers of clients; of several runs the one of median rate counts.

    Parameters
    ----------
    requests : int
        With one client; with 8 three times, with 32 six times as many.
    aims : tuple
        For the median latency and for the rate, by clients.
    """
    found = {}
    for clients in CLIENTS:
        count = requests * {1: 1, 8: 3, 32: 6}[clients]
        report.measuring()
        loads = [await load(base, prepare, clients=clients, requests=count) for _ in range(runs)]
        rate = median([each.per_s for each in loads])
        chosen = min(loads, key=lambda each: abs(each.per_s - rate))
        found[clients] = chosen
        refused = {code: n for code, n in chosen.statuses.items() if code != 200}
        who = f"{name}, {clients} client{'s' if clients > 1 else ''}"
        note = f"p99 {chosen.p99_ms:.1f} ms"
        if refused:
            note += f"; NOT 200: {refused}"
        report.add(f"{who}: p50", chosen.p50_ms, "ms", aim=aims[0].get(clients), note=note)
        against = [
            f"{chosen.per_s / floor[clients].per_s:.2f} of {what}"
            for what, floor in (floors or {}).items()
        ]
        report.add(
            f"{who}: rate", chosen.per_s, "/s", aim=aims[1].get(clients), note="; ".join(against)
        )
    return found
