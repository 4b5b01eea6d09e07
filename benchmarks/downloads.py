"""Downloads of a large NetCDF4 file: whole, and pieces of it."""

from __future__ import annotations

import asyncio
import os
import time
from contextlib import AsyncExitStack
from dataclasses import dataclass
from functools import partial
from statistics import median

from benchmarks.client import Client
from benchmarks.http_client import Connection
from benchmarks.report import Report, Target, ratio_of_neighbours
from benchmarks.sides import Runs, Side, Sides, alternate, report_ratio
from benchmarks.workloads import FCN3

PIECE = 1 << 20
PARALLEL = 4

WHOLE_RATIO_TARGETS = {1: Target(0.8, at_least=True), PARALLEL: Target(1.0, at_least=True)}
PIECE_RATIO_TARGET = Target(0.1)
"""At the end of the file: ours / theirs."""
FAR_PIECE_TARGET = Target(1.2)
"""Ours: at the end of the file / at its beginning."""


@dataclass(frozen=True)
class ResultFile:
    """A file of a finished job."""

    path: str
    """Path of the URL."""
    size: int
    """Bytes."""


async def find_netcdf(client: Client, execution_id: str) -> ResultFile:
    """Return the NetCDF4 file of a finished job."""
    path = f"{client.path}/{execution_id}/results"
    manifest = (await client.connection.get(path)).json()
    file = next(file for file in manifest["output_files"] if file["path"].endswith(".nc"))
    return ResultFile(f"{path}/{file['path']}", int(file["size"]))


async def download_whole(connections: list[Connection], file: ResultFile) -> float:
    """Download a file over several connections at once; return the seconds it took."""

    async def whole(connection: Connection) -> None:
        answer = await connection.send(connection.prepare("GET", file.path), keep_body=False)
        if (answer.status, answer.length) != (200, file.size):
            raise RuntimeError(f"HTTP {answer.status} with {answer.length} of {file.size} bytes")

    started = time.perf_counter()
    await asyncio.gather(*map(whole, connections))
    return time.perf_counter() - started


async def download_piece(connection: Connection, file: ResultFile, percent: int) -> float:
    """Download 1 MiB from a position in a file; return the seconds it took."""
    start = (file.size - PIECE) * percent // 100
    request = connection.prepare("GET", file.path, Range=f"bytes={start}-{start + PIECE - 1}")
    started = time.perf_counter()
    answer = await connection.send(request, keep_body=False)
    seconds = time.perf_counter() - started
    if (answer.status, answer.length) != (206, PIECE):
        raise RuntimeError(f"HTTP {answer.status} with {answer.length} bytes")
    return seconds


async def measure_downloads(report: Report, base: str, execution_id: str, *, quick: bool) -> None:
    """Measure downloads of an execution's NetCDF4 file."""
    async with AsyncExitStack() as stack:
        clients = [
            await stack.enter_async_context(Client.connected(base, FCN3.path))
            for _ in range(PARALLEL)
        ]
        connections = [client.connection for client in clients]
        file = await find_netcdf(clients[0], execution_id)
        report.start(f"downloads of a NetCDF4 file of {file.size / 1e6:.0f} MB")
        for count in (1, PARALLEL):
            report.restart_watch()
            seconds = [
                await download_whole(connections[:count], file) for _ in range(1 if quick else 3)
            ]
            report.add(_whole_by(count), count * file.size / median(seconds) / 1e6, "MB/s")
        for percent in (0, 50, 99):
            report.restart_watch()
            seconds = [
                await download_piece(connections[0], file, percent)
                for _ in range(5 if quick else 15)
            ]
            report.add(f"1 MiB at {percent} %", 1e3 * median(seconds), "ms")


async def compare_downloads(
    report: Report, sides: Sides, kept: dict[str, str], *, quick: bool
) -> None:
    """Compare downloads of the NetCDF4 file of a finished job of each side.

    Parameters
    ----------
    kept : dict
        Ids of the jobs, by name of the side.
    """
    files = await sides.ask(lambda side, client: find_netcdf(client, kept[side.name]))
    sizes = ", ".join(f"{name} {file.size / 1e6:.0f} MB" for name, file in files.items())
    report.start(f"downloads of a NetCDF4 file ({sizes}): ours / theirs")
    os.sync()
    for count, target in WHOLE_RATIO_TARGETS.items():
        rate = partial(_whole_rate, files=files, clients=count)
        runs = await alternate(sides, 2 if quick else 7, rate)
        report_ratio(report, _whole_by(count), runs, "MB/s", target=target)
    pieces = partial(_pieces, files=files)
    _report_pieces(report, await alternate(sides, 5 if quick else 15, pieces))


async def _whole_rate(side: Side, files: dict[str, ResultFile], clients: int) -> float:
    """Return the rate of all clients together, MB/s."""
    file = files[side.name]
    async with AsyncExitStack() as stack:
        connected = [await stack.enter_async_context(side.connected()) for _ in range(clients)]
        seconds = await download_whole([client.connection for client in connected], file)
    return clients * file.size / seconds / 1e6


async def _pieces(side: Side, files: dict[str, ResultFile]) -> tuple[float, float]:
    """Return the latencies of a piece from the beginning and of one from the end, ms."""
    file = files[side.name]
    async with side.connected() as client:
        # The first request of a connection is slower, whatever it requests.
        await download_piece(client.connection, file, 50)
        near = await download_piece(client.connection, file, 0)
        far = await download_piece(client.connection, file, 99)
    return 1e3 * near, 1e3 * far


def _report_pieces(report: Report, runs: Runs[tuple[float, float]]) -> None:
    near, far = runs.map(lambda run: run[0]), runs.map(lambda run: run[1])
    report_ratio(report, "1 MiB at 0 %", near, "ms")
    report_ratio(report, "1 MiB at 99 %", far, "ms", target=PIECE_RATIO_TARGET)
    for name, these, those, target in (
        ("ours", far.ours, near.ours, FAR_PIECE_TARGET),
        ("theirs", far.theirs, near.theirs, None),
    ):
        ratio, spread = ratio_of_neighbours(these, those)
        report.add(f"{name}: 1 MiB at 99 % / at 0 %", ratio, "x", target=target, note=spread)


def _whole_by(clients: int) -> str:
    return f"whole file, {clients} client{'s' if clients > 1 else ''}"
