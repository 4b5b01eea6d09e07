"""A forecast of 681 MB, served and in-process, in both formats."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median

from benchmarks.client import Client, FinishedJob
from benchmarks.report import Report, Target, ratio_of_neighbours
from benchmarks.workloads import CHOSEN, FCN3, QUICK_STEPS, STEPS

FIELD_MB = 721 * 1440 * 4 / 1e6
POLL_S = 0.02
RATIO_TARGET = Target(1.3)


async def measure_forecasts(report: Report, base: str, *, quick: bool) -> str:
    """Measure forecasts; return the id of a completed one in NetCDF4, which is kept.

    Served and in-process forecasts alternate. Dirty pages are flushed before each, so that none
    pays for another's.
    """
    steps = QUICK_STEPS if quick else STEPS
    megabytes = (steps + 1) * len(CHOSEN) * FIELD_MB
    report.start(
        f"{steps} steps x {len(CHOSEN)} variables x 721 x 1440 ({megabytes:.0f} MB), 1 member"
    )
    served: dict[str, list[FinishedJob]] = {"zarr": [], "netcdf4": []}
    alone: dict[str, list[dict[str, float]]] = {"none": [], "zarr": [], "netcdf4": []}
    kept = ""
    async with Client.connected(base, FCN3.path) as client:
        await _served(client, "netcdf4", 1)
        report.restart_watch()
        for _ in range(1 if quick else 3):
            alone["none"].append(_in_process("none", steps))
            for output_format, jobs in served.items():
                jobs.append(await _served(client, output_format, steps))
                alone[output_format].append(_in_process(output_format, steps))
                done = jobs[-1].execution_id
                if output_format == "netcdf4":
                    done, kept = kept, done
                if done:
                    await client.remove(done)
    _report(report, served, alone)
    return kept


def _report(
    report: Report,
    served: dict[str, list[FinishedJob]],
    alone: dict[str, list[dict[str, float]]],
) -> None:
    totals = {name: median([run["total"] for run in runs]) for name, runs in alone.items()}
    fetch = median([run["initial_conditions"] for runs in alone.values() for run in runs])
    report.add(
        "in-process, nothing written",
        totals["none"],
        "s",
        note=f"initial conditions {fetch:.2f}, model {totals['none'] - fetch:.2f}",
    )
    seconds = {name: [job.seconds for job in jobs] for name, jobs in served.items()}
    for output_format, jobs in served.items():
        report.add(f"in-process, {output_format}", totals[output_format], "s")
        chosen = sorted(jobs, key=lambda job: job.seconds)[len(jobs) // 2]
        report.add(f"served, {output_format}", chosen.seconds, "s", note=_split(chosen))
    for output_format, target in (("zarr", RATIO_TARGET), ("netcdf4", None)):
        in_process = [run["total"] for run in alone[output_format]]
        ratio, spread = ratio_of_neighbours(seconds[output_format], in_process)
        report.add(f"{output_format}: served / in-process", ratio, "x", target=target, note=spread)
    ratio, spread = ratio_of_neighbours(seconds["netcdf4"], seconds["zarr"])
    report.add("netcdf4 / zarr, served", ratio, "x", target=RATIO_TARGET, note=spread)


def _split(job: FinishedJob) -> str:
    """Return the seconds of each stage; a stage ends when the next is first seen."""
    seen = sorted(job.stages.items(), key=lambda entry: entry[1])
    return ", ".join(
        f"{stage} {ended - started:.2f}"
        for (stage, started), (_, ended) in zip(seen, seen[1:], strict=False)
        if stage != "finish"
    )


async def _served(client: Client, output_format: str, steps: int) -> FinishedJob:
    os.sync()
    parameters = {**FCN3.with_steps(steps).large, "output_format": output_format}
    return await client.run_job(parameters, poll_s=POLL_S)


def _in_process(output_format: str, steps: int) -> dict[str, float]:
    os.sync()
    folder = Path(tempfile.mkdtemp(prefix="e2s-bench-"))
    command = [sys.executable, "-m", "benchmarks.in_process", "--format", output_format]
    try:
        done = subprocess.run(
            [*command, "--steps", str(steps), "--output", str(folder / "result")],
            check=True,
            stdout=subprocess.PIPE,
        )
    finally:
        shutil.rmtree(folder)
    times: dict[str, float] = json.loads(done.stdout)
    return times
