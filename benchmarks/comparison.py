"""A comparison of two servers of the same workflow in one run: ours / theirs."""

from __future__ import annotations

from pathlib import Path

from benchmarks.client import QueueFull
from benchmarks.downloads import compare_downloads
from benchmarks.large_jobs import KeptJobs, compare_large_jobs, remove_results, run_large_job
from benchmarks.report import RESULTS, Report
from benchmarks.sides import Side, Sides, wait_ready
from benchmarks.submit_and_status import compare_requests
from benchmarks.tiny_jobs import compare_queues, compare_tiny_jobs, measure_first_jobs
from benchmarks.workloads import QUICK_STEPS, Workload
from benchmarks.zarr_reads import compare_zarr_reads

COMPARED = ("tiny", "queue", "requests", "forecast", "downloads", "zarr")
COMPARISON_RESULTS = RESULTS.with_name("comparison.json")


async def compare(
    base: str,
    against: str,
    workload: Workload,
    wanted: set[str],
    *,
    quick: bool,
    results: Path = COMPARISON_RESULTS,
) -> bool:
    """Compare two servers; print and save the figures; return False if one refused its jobs.

    Parameters
    ----------
    base, against : str
        URLs of our server and of the other; both serve the workflow.
    wanted : set of str
        Subset of `COMPARED`.
    results : Path
        File for the figures.
    """
    workload = workload.with_steps(QUICK_STEPS) if quick else workload
    sides = Sides(Side("ours", base, workload), Side("theirs", against, workload))
    about = {"ours": base, "theirs": against, "workflow": workload.workflow}
    report = Report(owns_server=False, about={"compared": about})
    print(f"{workload.workflow}: ours {base}, theirs {against}", flush=True)
    for side in sides:
        await wait_ready(side)
    try:
        await measure_first_jobs(report, sides)
        if "tiny" in wanted:
            await compare_tiny_jobs(report, sides, quick=quick)
        if "queue" in wanted:
            await compare_queues(report, sides, quick=quick)
        if "requests" in wanted:
            await compare_requests(report, sides, quick=quick)
        await _compare_results(report, sides, wanted, quick=quick)
    except QueueFull as error:
        print(f"\nSTOPPED, the remaining figures were not measured: {error}", flush=True)
        return False
    finally:
        report.close(results)
    return True


async def _compare_results(report: Report, sides: Sides, wanted: set[str], *, quick: bool) -> None:
    """Run the comparisons that concern results of large jobs."""
    kept: KeptJobs = {}
    try:
        if "forecast" in wanted:
            await compare_large_jobs(report, sides, kept, quick=quick)
        for name, output_format, compare_reads in (
            ("downloads", "netcdf4", compare_downloads),
            ("zarr", "zarr", compare_zarr_reads),
        ):
            if name not in wanted:
                continue
            if output_format not in kept:
                for side in sides:
                    await run_large_job(side, kept, output_format)
            await compare_reads(report, sides, kept[output_format], quick=quick)
    finally:
        for name in await remove_results(sides, kept):
            print(f"{name} cannot remove results: those of all large jobs still exist")
