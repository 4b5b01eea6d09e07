"""Measure the server: ``make bench``, or ``python -m benchmarks [--quick] [--only NAME ...]``.

Servers are started one after another: one with a grid of 8 x 16 points, for the cost of serving
itself, one with config/local.yaml, and some with models on stand-in GPUs. With --base and --against
two running servers are compared instead. docs/benchmarks.md explains each figure.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import uvloop

from benchmarks import machine
from benchmarks.client import Client
from benchmarks.comparison import COMPARED, compare
from benchmarks.crowd import measure_crowd
from benchmarks.downloads import measure_downloads
from benchmarks.durability import measure_durability
from benchmarks.fan_out import measure_fairness, measure_fan_out
from benchmarks.forecasts import measure_forecasts
from benchmarks.gpu_overlap import measure_gpu_overlap
from benchmarks.hostile import measure_hostile
from benchmarks.overlap import measure_overlap
from benchmarks.pipeline import measure_pipeline
from benchmarks.report import Report
from benchmarks.server import Server
from benchmarks.stand_in_gpus import SMALL_GRID
from benchmarks.submit_and_status import measure_requests
from benchmarks.tiny_jobs import measure_tiny_jobs
from benchmarks.upload_ahead import measure_upload_ahead
from benchmarks.uploads import measure_uploads
from benchmarks.workloads import BENCH_PERSISTENCE, FCN3, Workload, workload_of

SMALL = ("tiny", "requests")
LARGE = ("memory", "forecast", "downloads")
STANDALONE = {
    "pipeline": measure_pipeline,
    "uploads": measure_uploads,
    "ahead": measure_upload_ahead,
    "fanout": measure_fan_out,
    "fairness": measure_fairness,
    "overlap": measure_overlap,
    "gpu": measure_gpu_overlap,
    "durability": measure_durability,
    "crowd": measure_crowd,
    "hostile": measure_hostile,
}
"""Benchmarks that start their own servers."""
NAMES = (*SMALL, *LARGE, *STANDALONE)
TINY = {**FCN3.tiny, "output_format": "zarr"}
BARE = {
    "name": "bare",
    "import_path": "benchmarks.baselines:bare_application",
    "route_prefix": "/bare",
    "logging_config": {"enable_access_log": False},
    "args": {},
}
SETTLE_S = 5.0
"""From the start until idle memory is measured."""
RUNNING = 4
"""Executions that a server with one model replica runs concurrently."""
LISTED_BYTES = 20_000_000
"""Processes with less memory are summed up."""


def main() -> None:
    """Run the requested benchmarks; print and save the figures."""
    options, workload = parse(sys.argv[1:])
    # A shell starts background jobs with SIGINT ignored, and our servers would inherit that.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    # Otherwise servers would be left running.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    print(f"load average {machine.load_average():.1f}, {os.cpu_count()} cores")
    if workload is not None:
        wanted = set(options.only or COMPARED)
        completed = uvloop.run(
            compare(options.base, options.against, workload, wanted, quick=options.quick)
        )
        if not completed:
            sys.exit(1)
        return
    wanted = set(options.only or NAMES)
    if "downloads" in wanted:
        wanted.add("forecast")  # its result is downloaded
    report = Report(owns_server=options.base is None)
    if options.base:
        uvloop.run(_on_running(report, options.base, wanted, quick=options.quick))
    else:
        if wanted & set(SMALL):
            _small(report, wanted, quick=options.quick)
        if wanted & set(LARGE):
            _large(report, wanted, quick=options.quick)
        for name, measure in STANDALONE.items():
            if name in wanted:
                measure(report, quick=options.quick)
    report.close()


def parse(arguments: list[str]) -> tuple[argparse.Namespace, Workload | None]:
    """Parse the command line; return the workload if two servers are to be compared, else None."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument(
        "--only",
        nargs="+",
        metavar="NAME",
        help=f"of {' '.join(NAMES)}; of {' '.join(COMPARED)} with --against",
    )
    parser.add_argument("--quick", action="store_true", help="fewer runs, 10 steps instead of 40")
    parser.add_argument(
        "--base",
        type=_url,
        metavar="URL",
        help=f"measure a running server; memory, {', '.join(STANDALONE)} are left out",
    )
    comparison = parser.add_argument_group("comparison of two running servers")
    comparison.add_argument(
        "--against", type=_url, metavar="URL", help="server to compare --base with"
    )
    comparison.add_argument(
        "--workflow", metavar="NAME", help=f"served by both; default {BENCH_PERSISTENCE.workflow}"
    )
    for job in ("tiny", "large"):
        comparison.add_argument(
            f"--{job}", type=_json_object, metavar="JSON", help=f"parameters of a {job} job"
        )
    options = parser.parse_args(arguments)
    names = COMPARED if options.against else NAMES
    for name in options.only or ():
        if name not in names:
            parser.error(f"--only {name}: choose from {' '.join(names)}")
    if options.against is None:
        if (options.workflow, options.tiny, options.large) != (None, None, None):
            parser.error("--workflow, --tiny and --large need --against")
        return options, None
    if options.base is None:
        parser.error("--against needs --base")
    try:
        workflow = options.workflow or BENCH_PERSISTENCE.workflow
        return options, workload_of(workflow, options.tiny, options.large)
    except ValueError as error:
        parser.error(str(error))


def _url(text: str) -> str:
    return text.rstrip("/")


def _json_object(text: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise argparse.ArgumentTypeError(f"{text!r} is not a JSON object")
    return found


def _small(report: Report, wanted: set[str], *, quick: bool) -> None:
    """Run the benchmarks that need a server with a small grid."""
    with tempfile.TemporaryDirectory(prefix="e2s-bench-") as folder:
        hold = Path(folder, "hold")
        settings = {
            "queue": {"max_size": 100_000},
            "workflows": {"exposed": [FCN3.workflow]},
            "models": {"fcn3": {"loader": "synthetic", "grid": SMALL_GRID}},
            "data_sources": {
                "ifs": {
                    "loader": "benchmarks.held_source:load_ifs",
                    "options": {**SMALL_GRID, "hold": str(hold)},
                }
            },
        }
        report.start("start, with a small grid")
        with Server("small grid", settings, [BARE] if "requests" in wanted else []) as server:
            report.add("start to ready", server.start_s, "s")
            if "tiny" in wanted:
                uvloop.run(measure_tiny_jobs(report, server.base, quick=quick))
            if "requests" in wanted:
                # Waiting jobs keep the queue from moving: submits compete with nothing else.
                hold.touch()
                uvloop.run(_on_held(report, server.base, quick=quick))


async def _on_held(report: Report, base: str, *, quick: bool) -> None:
    async with Client.connected(base, FCN3.path) as client:
        waiting = [await client.submit(TINY) for _ in range(RUNNING)]
    await measure_requests(report, base, waiting[0], bare=True, quick=quick)


def _large(report: Report, wanted: set[str], *, quick: bool) -> None:
    """Run the benchmarks that need a server with config/local.yaml."""
    report.start("start")
    with Server("full grid", {"workflows": {"exposed": [FCN3.workflow]}}) as server:
        report.add("start to ready", server.start_s, "s")
        if "memory" in wanted:
            _measure_memory(report, server)
        uvloop.run(_on_large(report, server.base, wanted, quick=quick))


async def _on_large(report: Report, base: str, wanted: set[str], *, quick: bool) -> None:
    if "forecast" in wanted:
        kept = await measure_forecasts(report, base, quick=quick)
        if "downloads" in wanted:
            await measure_downloads(report, base, kept, quick=quick)


async def _on_running(report: Report, base: str, wanted: set[str], *, quick: bool) -> None:
    """Measure a running server that we have not started."""
    if "tiny" in wanted:
        await measure_tiny_jobs(report, base, quick=quick)
    if "requests" in wanted:
        async with Client.connected(base, FCN3.path) as client:
            job = await client.run_job(TINY)
        await measure_requests(report, base, job.execution_id, bare=False, quick=quick)
    await _on_large(report, base, wanted, quick=quick)


def _measure_memory(report: Report, server: Server) -> None:
    report.start("memory of the idle server (PSS)")
    time.sleep(SETTLE_S)
    sizes = machine.pss_by_name(server.processes())
    for name, (count, size) in sizes.items():
        if size >= LISTED_BYTES:
            report.add(f"{name}{f' x {count}' if count > 1 else ''}", size / 1e6, "MB")
    small = sum(size for _, size in sizes.values() if size < LISTED_BYTES)
    report.add(f"others, each below {LISTED_BYTES / 1e6:.0f} MB", small / 1e6, "MB")
    report.add("all", sum(size for _, size in sizes.values()) / 1e6, "MB")


if __name__ == "__main__":
    main()
