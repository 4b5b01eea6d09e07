"""Downloads of a large NetCDF4 file: whole, and a piece from anywhere."""

from __future__ import annotations

import asyncio
import time
from statistics import median

from benchmarks.client import WORKFLOW
from benchmarks.http_client import Connection
from benchmarks.report import Report

PIECE = 1 << 20
PARALLEL = 4


async def measure_downloads(report: Report, base: str, execution_id: str, *, quick: bool) -> None:
    """Measure downloads of an execution's NetCDF4 file."""
    connections = await asyncio.gather(*(Connection.open(base) for _ in range(PARALLEL)))
    first = connections[0]
    path = f"{WORKFLOW}/{execution_id}/results"
    manifest = (await first.get(path)).json()
    file = next(file for file in manifest["output_files"] if file["path"].endswith(".nc"))
    path, size = f"{path}/{file['path']}", int(file["size"])
    report.begin(f"downloads of a NetCDF4 file of {size / 1e6:.0f} MB")

    async def whole(connection: Connection) -> None:
        answer = await connection.send(connection.prepare("GET", path), keep_body=False)
        if (answer.status, answer.length) != (200, size):
            raise RuntimeError(f"HTTP {answer.status} with {answer.length} of {size} bytes")

    runs = 1 if quick else 3
    for clients in (1, PARALLEL):
        report.measuring()
        seconds = []
        for _ in range(runs):
            began = time.perf_counter()
            await asyncio.gather(*map(whole, connections[:clients]))
            seconds.append(time.perf_counter() - began)
        name = f"whole file, {clients} client{'s' if clients > 1 else ''}"
        report.add(name, clients * size / median(seconds) / 1e6, "MB/s")
    for percent in (0, 50, 99):
        start = (size - PIECE) * percent // 100
        request = first.prepare("GET", path, Range=f"bytes={start}-{start + PIECE - 1}")
        report.measuring()
        seconds = []
        for _ in range(5 if quick else 15):
            began = time.perf_counter()
            answer = await first.send(request, keep_body=False)
            seconds.append(time.perf_counter() - began)
            if (answer.status, answer.length) != (206, PIECE):
                raise RuntimeError(f"HTTP {answer.status} with {answer.length} bytes")
        report.add(f"1 MiB at {percent} %", 1e3 * median(seconds), "ms")
    for connection in connections:
        connection.close()
