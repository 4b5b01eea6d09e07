"""The cost of surviving a power cut."""

from __future__ import annotations

import tempfile
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from typing import Any

import uvloop

from benchmarks.client import POLL_S, Client
from benchmarks.report import Report, ratio_of_neighbours
from benchmarks.server import Server
from benchmarks.stand_in_gpus import SMALL_GRID
from benchmarks.workloads import FCN3

MEMORY = Path("/dev/shm")
"""A file system in memory, on Linux."""
TINY = {**FCN3.tiny, "output_format": "zarr"}


def measure_durability(report: Report, *, quick: bool) -> None:
    """Compare tiny jobs of a server whose store is on disk and of one whose store is in memory.

    Only the store differs, including DBOS's tables and the lease; working files and results of
    both are on disk.
    """
    report.start("tiny job, submit to completed: the store on disk / in memory")
    if not MEMORY.is_dir():
        print(f"  skipped: {MEMORY} does not exist")
        return
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="e2s-bench-", dir=MEMORY))
        disk = stack.enter_context(Server("store on disk", _settings()))
        in_memory = _settings(f"sqlite:///{folder}/executions.sqlite")
        memory = stack.enter_context(Server("store in memory", in_memory))
        report.restart_watch()
        rounds = 5 if quick else 25
        disk_s, memory_s = uvloop.run(_alternate([disk.base, memory.base], rounds))
    report.add("store on disk", median(disk_s), "s")
    report.add("store in memory", median(memory_s), "s")
    ratio, spread = ratio_of_neighbours(disk_s, memory_s)
    report.add(
        "on disk / in memory", ratio, "x", note=spread, runs={"disk": disk_s, "memory": memory_s}
    )


def _settings(store_url: str | None = None) -> dict[str, Any]:
    settings: dict[str, Any] = {
        "workflows": {"exposed": [FCN3.workflow]},
        "models": {"fcn3": {"loader": "synthetic", "grid": SMALL_GRID}},
    }
    return settings if store_url is None else {**settings, "store_url": store_url}


async def _alternate(bases: list[str], rounds: int) -> list[list[float]]:
    """Run a job on each server, round by round; the first server changes with every round."""
    seconds: list[list[float]] = [[] for _ in bases]
    for number in range(-2, rounds):
        order = list(zip(bases, seconds, strict=True))
        for base, runs in order if number % 2 == 0 else reversed(order):
            async with Client.connected(base, FCN3.path) as client:
                job = await client.run_job(TINY, poll_s=POLL_S)
            if number >= 0:  # the first two rounds warm up
                runs.append(job.seconds)
    return seconds
