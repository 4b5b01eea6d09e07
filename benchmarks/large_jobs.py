"""A comparison of large jobs on two servers, in both formats."""

from __future__ import annotations

import os
from functools import partial

from benchmarks.client import FinishedJob
from benchmarks.report import Report, Target
from benchmarks.sides import Side, Sides, alternate, report_ratio

POLL_S = 0.05
ROUNDS = 3
"""Few, since a server that cannot remove results keeps all of them."""
RATIO_TARGETS = {"zarr": Target(0.6), "netcdf4": Target(0.8)}

KeptJobs = dict[str, dict[str, str]]
"""Ids of finished jobs whose results exist, by format and name of the side."""


async def compare_large_jobs(report: Report, sides: Sides, kept: KeptJobs, *, quick: bool) -> None:
    """Compare large jobs, from submit to completed; the last of each side is kept.

    Dirty pages are flushed before each, so that none pays for another's.
    """
    report.start("large job, submit to completed, polled every 50 ms: ours / theirs")
    for output_format, target in RATIO_TARGETS.items():
        await alternate(sides, 1, partial(_warm_up, output_format=output_format))
        run = partial(run_large_job, kept=kept, output_format=output_format)
        runs = await alternate(sides, 1 if quick else ROUNDS, run)
        seconds = runs.map(lambda job: job.seconds)
        report_ratio(report, f"large job, {output_format}", seconds, "s", target=target)


async def run_large_job(side: Side, kept: KeptJobs, output_format: str) -> FinishedJob:
    """Run a large job and keep its result; the previous one is removed."""
    os.sync()
    async with side.connected() as client:
        parameters = {**side.workload.large, "output_format": output_format}
        job = await client.run_job(parameters, poll_s=POLL_S)
        results = kept.setdefault(output_format, {})
        if side.name in results:
            await client.remove(results[side.name])
        results[side.name] = job.execution_id
    return job


async def remove_results(sides: Sides, kept: KeptJobs) -> list[str]:
    """Remove the kept results; return the names of the sides that cannot do that."""
    unable = []
    for side in sides:
        async with side.connected() as client:
            removed = [
                await client.remove(results[side.name])
                for results in kept.values()
                if side.name in results
            ]
        if not all(removed):
            unable.append(side.name)
    return unable


async def _warm_up(side: Side, output_format: str) -> None:
    async with side.connected() as client:
        parameters = side.workload.with_steps(1).large
        done = await client.run_job({**parameters, "output_format": output_format}, poll_s=POLL_S)
        await client.remove(done.execution_id)
