"""Time saved, from the last step to completed, by uploading chunks during the computation."""

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
MODES = {"at the end": False, "ahead": True}
"""Values of ``azure.blob.upload_ahead``."""


def measure_upload_ahead(report: Report, *, quick: bool) -> None:
    """Measure a forecast that is delivered to an Azurite on the same cores, in both modes."""
    executable = find_azurite()
    if executable is None:
        print("\nuploads ahead are skipped: Azurite is not installed, see `make test`")
        return
    steps = QUICK_STEPS if quick else STEPS
    what = f"{steps} steps of {STEP_S:g} s, {size_on_full_grid(steps)}"
    report.start(f"{what}, Zarr, uploaded to Azurite")
    waits = {mode: _measure(report, executable, mode, steps) for mode in MODES}
    report.add("ahead / at the end", waits["ahead"] / waits["at the end"], "x")


def _measure(report: Report, executable: str, mode: str, steps: int) -> float:
    with Azurite(executable, on_disk=True) as azurite:
        container = azurite.new_container()
        azure = {
            "credential": {"loader": "tests.emulators.tokens:EmulatorCredential"},
            "ca_file": str(azurite.ca_file),
            "blob": {
                "emulator": azurite.endpoint,
                "allowed_containers": [container.url],
                "default_container": container.url,
                "upload_ahead": MODES[mode],
            },
        }
        with sleeping_server("ahead", step_s=STEP_S, grid=FULL_GRID, azure=azure) as server:
            return uvloop.run(_forecast(report, server, mode, steps))


async def _forecast(report: Report, server: SleepingServer, mode: str, steps: int) -> float:
    async with Client.connected(server.base, FCN3.path) as client:
        os.sync()
        report.restart_watch()
        job = await client.run_job(forecast(steps, "zarr"))
    computing = makespan(server.steps())
    report.add(f"{mode}: submit to completed", job.seconds, "s")
    report.add(f"{mode}: first step to last", computing, "s")
    remainder = job.seconds - computing
    report.add(f"{mode}: outside the steps", remainder, "s")
    return remainder
