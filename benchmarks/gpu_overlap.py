"""The overlap of computing and writing on a real GPU, by NVML and by our own metric."""

from __future__ import annotations

import asyncio
import os
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import uvloop

from benchmarks.client import Client
from benchmarks.overlap import EXCESS_TARGETS, FACTOR
from benchmarks.report import Report
from benchmarks.stand_in_gpus import (
    FULL_GRID,
    SleepingServer,
    forecast,
    size_on_full_grid,
    sleeping_server,
)
from benchmarks.timeline import makespan
from benchmarks.workloads import FCN3

STEP_S = 0.3
STEPS, QUICK_STEPS = 150, 40
REPORTED_S = 12.0
"""Ray gathers metrics every 10 s."""
SAMPLE_MS = 200


def measure_gpu_overlap(report: Report, *, quick: bool) -> None:
    """Measure single forecasts whose steps are matrix products on the GPU."""
    if not _has_gpu():
        print("\noverlap on a GPU is skipped: nvidia-smi finds none")
        return
    steps = QUICK_STEPS if quick else STEPS
    report.start(
        f"on a GPU: {steps} steps of about {STEP_S:g} s of matrix products, "
        f"{size_on_full_grid(steps)}, 1 member"
    )
    loader = "benchmarks.computing_model:load_fcn3"
    with sleeping_server("gpu", step_s=STEP_S, grid=FULL_GRID, loader=loader) as server:
        uvloop.run(measure_on(report, server, steps))


async def measure_on(report: Report, server: SleepingServer, steps: int) -> None:
    """Measure forecasts on a server whose model uses the GPU."""
    async with Client.connected(server.base, FCN3.path) as client:
        await client.remove((await client.run_job(forecast(1, "netcdf4"))).execution_id)
        for output_format, target in EXCESS_TARGETS.items():
            os.sync()
            server.clear_journal()
            await asyncio.sleep(REPORTED_S)
            before_s, started = server.busy_s(), time.time()
            report.restart_watch()
            with _utilisation() as samples:
                job = await client.run_job(forecast(steps, output_format))
                await asyncio.sleep(REPORTED_S)
                window_s, busy_s = time.time() - started, server.busy_s() - before_s
            computed = server.steps()
            # The time of the products varies; the measure is the time in excess of it.
            stepping = sum(step.ended - step.started for step in computed)
            of_steps = 100 * stepping / makespan(computed)
            report.add(f"{output_format}, submit to completed", job.seconds, "s")
            excess = job.seconds - FACTOR * stepping
            note = f"of {FACTOR} x {stepping:.1f} s in {len(computed)} steps"
            report.add(f"{output_format}, in excess", excess, "s", target=target, note=note)
            report.add(f"{output_format}, in steps, from the first to the last", of_steps, "%")
            report.add(f"{output_format}, busy by our metric", busy_s, "s", note="with copies")
            if samples:
                by_nvml = window_s * sum(samples) / len(samples) / 100
                note = f"{len(samples)} samples"
                report.add(f"{output_format}, busy by NVML", by_nvml, "s", note=note)
            await client.remove(job.execution_id)


def _has_gpu() -> bool:
    try:
        found = subprocess.run(["nvidia-smi", "--list-gpus"], capture_output=True, check=False)
    except FileNotFoundError:
        return False
    return found.returncode == 0 and b"GPU" in found.stdout


@contextmanager
def _utilisation() -> Iterator[list[float]]:
    """Collect the utilization of the first GPU by NVML, percent, during the context."""
    samples: list[float] = []
    command = ["nvidia-smi", "--id=0", "--query-gpu=utilization.gpu"]
    command += ["--format=csv,noheader,nounits", f"--loop-ms={SAMPLE_MS}"]
    try:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    except FileNotFoundError:
        yield samples
        return

    reader = threading.Thread(target=lambda: samples.extend(map(float, process.stdout or ())))
    reader.start()
    try:
        yield samples
    finally:
        process.terminate()
        process.wait()
        reader.join()
