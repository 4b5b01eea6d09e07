"""Tiny jobs: what the serving itself costs, from submit to completed."""

from __future__ import annotations

import asyncio
import time
from statistics import median

from benchmarks.client import ENDED, TINY, WORKFLOW, run_job, submit
from benchmarks.http_client import Connection
from benchmarks.report import Aim, Report

AIM = Aim(0.15)
POLL_S = 0.01
QUEUED = 20


async def measure_tiny_jobs(report: Report, base: str, *, quick: bool) -> str:
    """Measure single tiny jobs and a queue of them; gives the id of a completed one."""
    connection = await Connection.open(base)
    report.begin("tiny job (1 member, 1 step, 1 variable), submit to completed")
    last = ""
    for output_format in ("zarr", "netcdf4"):
        parameters = {**TINY, "output_format": output_format}
        for _ in range(3):
            await run_job(connection, parameters)
        for how, poll_s in (("polled every 10 ms", POLL_S), ("?wait=", 0.0)):
            report.measuring()
            jobs = [
                await run_job(connection, parameters, poll_s=poll_s)
                for _ in range(5 if quick else 15)
            ]
            seconds = sorted(job.seconds for job in jobs)
            report.add(
                f"{output_format}, {how}",
                median(seconds),
                "s",
                aim=AIM,
                note=f"{seconds[0]:.3f} to {seconds[-1]:.3f}",
            )
            last = jobs[-1].execution_id
    report.measuring()
    makespans = [await _queue(connection) for _ in range(1 if quick else 3)]
    report.add(f"{QUEUED} queued at once, all completed", median(makespans), "s")
    connection.close()
    return last


async def _queue(connection: Connection) -> float:
    """Submit several jobs and wait for all, in seconds."""
    began = time.perf_counter()
    waiting = [await submit(connection, TINY) for _ in range(QUEUED)]
    while waiting:
        status = (await connection.get(f"{WORKFLOW}/{waiting[0]}/status")).json()["status"]
        if status not in ENDED:
            await asyncio.sleep(POLL_S)
            continue
        if status != "completed":
            raise RuntimeError(f"{waiting[0]} {status}")
        del waiting[0]
    return time.perf_counter() - began
