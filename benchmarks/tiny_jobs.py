"""Tiny jobs: the cost of serving itself, from submit to completed."""

from __future__ import annotations

from functools import partial
from statistics import median

from benchmarks.client import POLL_S, Client
from benchmarks.report import Report, Target
from benchmarks.sides import Side, Sides, alternate, report_ratio
from benchmarks.workloads import FCN3

TARGET = Target(0.15)
QUEUED = 20

FIRST_TARGET = Target(1.0)
RATIO_TARGETS = {"zarr": Target(1.0), "netcdf4": Target(1.5)}
QUEUE_RATIO_TARGET = Target(1.0)


async def measure_tiny_jobs(report: Report, base: str, *, quick: bool) -> None:
    """Measure single tiny jobs and a queue of them."""
    async with Client.connected(base, FCN3.path) as client:
        report.start("tiny job (1 member, 1 step, 1 variable), submit to completed")
        for output_format in ("zarr", "netcdf4"):
            parameters = {**FCN3.tiny, "output_format": output_format}
            for _ in range(3):
                await client.run_job(parameters)
            for how, poll_s in (("polled every 10 ms", POLL_S), ("?wait=", 0.0)):
                report.restart_watch()
                jobs = [
                    await client.run_job(parameters, poll_s=poll_s)
                    for _ in range(5 if quick else 15)
                ]
                seconds = sorted(job.seconds for job in jobs)
                report.add(
                    f"{output_format}, {how}",
                    median(seconds),
                    "s",
                    target=TARGET,
                    note=f"{seconds[0]:.3f} to {seconds[-1]:.3f}",
                )
        parameters = {**FCN3.tiny, "output_format": "zarr"}
        report.restart_watch()
        makespans = [await client.run_queue(parameters, QUEUED) for _ in range(1 if quick else 3)]
        report.add(f"{QUEUED} queued at once, all completed", median(makespans), "s")


async def measure_first_jobs(report: Report, sides: Sides) -> None:
    """Measure the first tiny job of each side; must be called first."""
    report.start("first job after the server was found ready")
    for side in sides:
        report.add(
            f"first job, {side.name}",
            await _tiny(side, "zarr"),
            "s",
            target=FIRST_TARGET if side is sides.ours else None,
            note="only meaningful on a server that has just been started",
        )


async def compare_tiny_jobs(report: Report, sides: Sides, *, quick: bool) -> None:
    """Compare single tiny jobs with plain polls: Earth2Studio's serve module has no long polls."""
    report.start("tiny job, submit to completed, polled every 10 ms: ours / theirs")
    for output_format, target in RATIO_TARGETS.items():
        run = partial(_tiny, output_format=output_format)
        await alternate(sides, 1, run)
        runs = await alternate(sides, 5 if quick else 15, run)
        report_ratio(report, f"tiny job, {output_format}", runs, "s", target=target)


async def compare_queues(report: Report, sides: Sides, *, quick: bool) -> None:
    """Compare the time to complete a queue of tiny jobs."""
    report.start("a queue of tiny jobs: ours / theirs")
    runs = await alternate(sides, 1 if quick else 3, _queue)
    report_ratio(
        report, f"{QUEUED} queued, until all completed", runs, "s", target=QUEUE_RATIO_TARGET
    )


async def _tiny(side: Side, output_format: str) -> float:
    async with side.connected() as client:
        parameters = {**side.workload.tiny, "output_format": output_format}
        return (await client.run_job(parameters, poll_s=POLL_S)).seconds


async def _queue(side: Side) -> float:
    async with side.connected() as client:
        return await client.run_queue({**side.workload.tiny, "output_format": "zarr"}, QUEUED)
