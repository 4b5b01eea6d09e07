"""The overlap of reading, computing, writing and packaging, so that no GPU waits."""

from __future__ import annotations

import asyncio
import os

import uvloop

from benchmarks.client import Client
from benchmarks.report import Report, Target
from benchmarks.stand_in_gpus import (
    FULL_GRID,
    SleepingServer,
    forecast,
    size_on_full_grid,
    sleeping_server,
)
from benchmarks.timeline import busy, makespan, pauses
from benchmarks.workloads import FCN3

STEP_S = 0.25
STEPS, QUICK_STEPS = 150, 40
QUEUED = 5
DELAY_S = 5.0
"""Time to fetch initial conditions."""
FACTOR = 1.03
EXCESS_TARGETS = {"zarr": Target(1.0), "netcdf4": Target(4.0)}
BUSY_TARGET = Target(97.0, at_least=True)


def measure_overlap(report: Report, *, quick: bool) -> None:
    """Measure single forecasts whose results are large, and a queue of them."""
    steps = QUICK_STEPS if quick else STEPS
    what = f"{steps} steps of {STEP_S:g} s, {size_on_full_grid(steps)}"
    report.start(f"{what}, 1 member")
    with sleeping_server("overlap", step_s=STEP_S, grid=FULL_GRID) as server:
        uvloop.run(_measure_single(report, server, steps))
    report.start(f"{QUEUED} queued of {what}; initial conditions take {DELAY_S:g} s each")
    with sleeping_server("queue", step_s=STEP_S, grid=FULL_GRID, delay_s=DELAY_S) as server:
        uvloop.run(_measure_queue(report, server, steps))


async def _measure_single(report: Report, server: SleepingServer, steps: int) -> None:
    async with Client.connected(server.base, FCN3.path) as client:
        await client.remove((await client.run_job(forecast(1, "netcdf4"))).execution_id)
        for output_format, target in EXCESS_TARGETS.items():
            os.sync()
            server.clear_journal()
            report.restart_watch()
            job = await client.run_job(forecast(steps, output_format))
            computed = server.steps()
            report.add(f"{output_format}, submit to completed", job.seconds, "s")
            report.add(f"{output_format}, first step to last", makespan(computed), "s")
            excess = job.seconds - FACTOR * steps * STEP_S
            note = f"of {FACTOR} x {steps * STEP_S:g} s"
            report.add(f"{output_format}, in excess", excess, "s", target=target, note=note)
            await client.remove(job.execution_id)


async def _measure_queue(report: Report, server: SleepingServer, steps: int) -> None:
    async with Client.connected(server.base, FCN3.path) as client:
        os.sync()
        queued = [await client.submit(forecast(steps, "zarr")) for _ in range(QUEUED)]
        for execution_id in queued:
            await client.wait_for([execution_id], poll_s=0.25)
            # Five of them would need 25 GB.
            await client.remove(execution_id)
            await asyncio.sleep(0)
    computed = server.steps()
    pauses_s = pauses(computed, steps)
    note = f"pauses between two: {', '.join(f'{pause:.2f}' for pause in pauses_s)} s"
    report.add("first step to last", makespan(computed), "s", note=note)
    report.add("GPU busy", 100 * busy(computed), "%", target=BUSY_TARGET)
