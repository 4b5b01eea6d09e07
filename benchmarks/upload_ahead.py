"""What uploading chunks while others are computed saves: from the last step to completed."""

from __future__ import annotations

import os

import uvloop

from benchmarks.client import Client
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
from tests.emulators.azurite import Azurite, find_azurite

STEP_S = 0.25
STEPS, QUICK_STEPS = 40, 10
WAYS = {"in the end": False, "ahead": True}


def measure_upload_ahead(report: Report, *, quick: bool) -> None:
    """Measure a forecast that is delivered to Azurite, on the same cores, both ways."""
    executable = find_azurite()
    if executable is None:
        print("\nuploads ahead are left out: Azurite is missing, see `make test`")
        return
    steps = QUICK_STEPS if quick else STEPS
    what = f"{steps} steps of {STEP_S:g} s, {size_on_full_grid(steps)}"
    report.begin(f"{what}, Zarr, uploaded to Azurite")
    waits = {way: _measure(report, executable, way, steps) for way in WAYS}
    report.add("ahead / in the end", waits["ahead"] / waits["in the end"], "x")


def _measure(report: Report, executable: str, way: str, steps: int) -> float:
    with Azurite(executable, on_disk=True) as azurite:
        container = azurite.new_container()
        azure = {
            "credential": {"loader": "tests.emulators.tokens:EmulatorCredential"},
            "ca_file": str(azurite.ca_file),
            "blob": {
                "emulator": azurite.endpoint,
                "allowed_containers": [container.url],
                "default_container": container.url,
                "upload_ahead": WAYS[way],
            },
        }
        with sleeping_server("ahead", step_s=STEP_S, grid=FULL_GRID, azure=azure) as server:
            return uvloop.run(_forecast(report, server, way, steps))


async def _forecast(report: Report, server: SleepingServer, way: str, steps: int) -> float:
    async with Client.connected(server.base, FCN3.path) as client:
        os.sync()
        report.measuring()
        job = await client.run_job(forecast(steps, "zarr"))
    computing = makespan(server.steps())
    report.add(f"{way}: submit to completed", job.seconds, "s")
    report.add(f"{way}: first step to last", computing, "s")
    beyond = job.seconds - computing
    report.add(f"{way}: beyond the steps", beyond, "s")
    return beyond
