"""A Zarr result read over HTTP with xarray."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from typing import Any

import aiohttp
import xarray as xr

from benchmarks.client import Client
from benchmarks.report import Report, Target
from benchmarks.sides import Side, Sides, alternate, report_ratio

TIMEOUT_S = 300.0

OPEN_TARGET = Target(1.0)
FIELD_TARGET = Target(1.0)
VARIABLE_TARGET = Target(1.0, at_least=True)


@dataclass(frozen=True)
class Read:
    """Times of one run."""

    open_s: float
    field_s: float
    variable_s: float
    shape: tuple[int, ...]
    """Shape of the variable."""
    nbytes: int
    """Size of the variable."""

    @property
    def mb_per_s(self) -> float:
        """Rate at which the variable was read."""
        return self.nbytes / self.variable_s / 1e6


async def find_zarr(client: Client, base: str, execution_id: str) -> str:
    """Return the URL of the Zarr store of a finished job."""
    path = f"{client.path}/{execution_id}/results"
    manifest = (await client.connection.get(path)).json()
    files = (file["path"].partition(".zarr/") for file in manifest["output_files"])
    store = next(before for before, found, _ in files if found)
    return f"{base}{path}/{store}.zarr"


def read_zarr(url: str, field: str, variable: str) -> Read:
    """Open a store, read one field of a variable and then all of another.

    Parameters
    ----------
    field : str
        Variable of which the middle field is read.
    variable : str
        Variable that is read whole.
    """
    sessions = []

    async def get_client(**_options: Any) -> aiohttp.ClientSession:
        session = aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=TIMEOUT_S))
        sessions.append((session, asyncio.get_running_loop()))
        return session

    # Every run has its own file system, and closes its connections, which fsspec leaves open.
    options = {"get_client": get_client, "skip_instance_cache": True}
    started = time.perf_counter()
    with xr.open_zarr(url, consolidated=True, storage_options=options) as dataset:
        opened = time.perf_counter()
        outer = dataset[field].dims[:-2]
        dataset[field].isel({name: dataset.sizes[name] // 2 for name in outer}).to_numpy()
        one = time.perf_counter()
        values = dataset[variable].to_numpy()
        ended = time.perf_counter()
    for session, loop in sessions:
        asyncio.run_coroutine_threadsafe(session.close(), loop).result()
    return Read(opened - started, one - opened, ended - one, values.shape, values.nbytes)


async def compare_zarr_reads(
    report: Report, sides: Sides, kept: dict[str, str], *, quick: bool
) -> None:
    """Compare reads of the Zarr store of a finished job of each side.

    Parameters
    ----------
    kept : dict
        Ids of the jobs, by name of the side.
    """
    urls = await sides.ask(lambda side, client: find_zarr(client, side.base, kept[side.name]))
    field, variable = _variables(sides.ours, urls["ours"])

    async def run(side: Side) -> Read:
        return await asyncio.to_thread(read_zarr, urls[side.name], field, variable)

    report.start("Zarr over HTTP, by xarray: ours / theirs")
    first = await alternate(sides, 1, run)
    fields = [run.nbytes for run in (*first.ours, *first.theirs)]
    if fields[0] != fields[1]:
        raise RuntimeError(f"{variable} is {first.ours[0].shape} and {first.theirs[0].shape}")
    runs = await alternate(sides, 2 if quick else 5, run)
    open_ms = runs.map(lambda run: 1e3 * run.open_s)
    report_ratio(report, "open", open_ms, "ms", target=OPEN_TARGET)
    field_ms = runs.map(lambda run: 1e3 * run.field_s)
    report_ratio(report, f"one field of {field}", field_ms, "ms", target=FIELD_TARGET)
    rates = runs.map(lambda run: run.mb_per_s)
    name = f"all fields of {variable} ({fields[0] / 1e6:.0f} MB)"
    report_ratio(report, name, rates, "MB/s", target=VARIABLE_TARGET)


def _variables(side: Side, url: str) -> tuple[str, str]:
    """Return the variable of which one field is read, and the one that is read whole."""
    names = side.workload.large.get("variables")
    if not names:
        with xr.open_zarr(url, consolidated=True) as dataset:
            names = [str(name) for name in dataset.data_vars]
    return names[0], names[-1]
