"""Tiny jobs: what the serving itself costs, from submit to completed."""

from __future__ import annotations

from functools import partial
from statistics import median

from benchmarks.client import POLL_S, Client
from benchmarks.report import Aim, Report
from benchmarks.sides import Side, Sides, in_turns, report_ratio
from benchmarks.workloads import FCN3

AIM = Aim(0.15)
QUEUED = 20

FIRST_AIM = Aim(1.0)
RATIO_AIMS = {"zarr": Aim(1.0), "netcdf4": Aim(1.5)}
QUEUE_RATIO_AIM = Aim(1.0)


async def measure_tiny_jobs(report: Report, base: str, *, quick: bool) -> None:
    """Measure single tiny jobs and a queue of them."""
    async with Client.connected(base, FCN3.path) as client:
        report.begin("tiny job (1 member, 1 step, 1 variable), submit to completed")
        for output_format in ("zarr", "netcdf4"):
            parameters = {**FCN3.tiny, "output_format": output_format}
            for _ in range(3):
                await client.run_job(parameters)
            for how, poll_s in (("polled every 10 ms", POLL_S), ("?wait=", 0.0)):
                report.measuring()
                jobs = [
                    await client.run_job(parameters, poll_s=poll_s)
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
        parameters = {**FCN3.tiny, "output_format": "zarr"}
        report.measuring()
        makespans = [await client.run_queue(parameters, QUEUED) for _ in range(1 if quick else 3)]
        report.add(f"{QUEUED} queued at once, all completed", median(makespans), "s")


async def measure_first_jobs(report: Report, sides: Sides) -> None:
    """Measure the first tiny job of each side: before all else, or it is not the first."""
    report.begin("first job after the server was found ready")
    for side in sides:
        report.add(
            f"first job, {side.name}",
            await _tiny(side, "zarr"),
            "s",
            aim=FIRST_AIM if side is sides.ours else None,
            note="tells something only of a server that has just been started",
        )


async def compare_tiny_jobs(report: Report, sides: Sides, *, quick: bool) -> None:
    """Compare single tiny jobs, by plain polls: Earth2Studio's serve module has no others."""
    report.begin("tiny job, submit to completed, polled every 10 ms: ours / theirs")
    for output_format, aim in RATIO_AIMS.items():
        run = partial(_tiny, output_format=output_format)
        await in_turns(sides, 1, run)
        turns = await in_turns(sides, 5 if quick else 15, run)
        report_ratio(report, f"tiny job, {output_format}", turns, "s", aim=aim)


async def compare_queues(report: Report, sides: Sides, *, quick: bool) -> None:
    """Compare the makespan of a queue of tiny jobs."""
    report.begin("a queue of tiny jobs: ours / theirs")
    turns = await in_turns(sides, 1 if quick else 3, _queue)
    report_ratio(report, f"{QUEUED} queued, until all completed", turns, "s", aim=QUEUE_RATIO_AIM)


async def _tiny(side: Side, output_format: str) -> float:
    async with side.connected() as client:
        parameters = {**side.workload.tiny, "output_format": output_format}
        return (await client.run_job(parameters, poll_s=POLL_S)).seconds


async def _queue(side: Side) -> float:
    async with side.connected() as client:
        return await client.run_queue({**side.workload.tiny, "output_format": "zarr"}, QUEUED)
