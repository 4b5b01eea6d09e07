"""A Zarr result read over HTTP in place, as a user of xarray does."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from typing import Any

import aiohttp
import xarray as xr

from benchmarks.client import Client
from benchmarks.report import Aim, Report
from benchmarks.sides import Side, Sides, in_turns, report_ratio

TIMEOUT_S = 300.0

OPEN_AIM = Aim(1.0)
FIELD_AIM = Aim(1.0)
VARIABLE_AIM = Aim(1.0, at_least=True)


@dataclass(frozen=True)
class Read:
    """What one run took."""

    open_s: float
    field_s: float
    variable_s: float
    shape: tuple[int, ...]
    """Of the variable."""
    nbytes: int
    """Of the variable."""

    @property
    def mb_per_s(self) -> float:
        """Rate at which the variable came."""
        return self.nbytes / self.variable_s / 1e6


async def find_zarr(client: Client, base: str, execution_id: str) -> str:
    """Give the URL of the Zarr store of a finished job."""
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
        The variable of which one field, in the middle, is read.
    variable : str
        The variable that is read whole.
    """
    sessions = []

    async def get_client(**_options: Any) -> aiohttp.ClientSession:
        session = aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=TIMEOUT_S))
        sessions.append((session, asyncio.get_running_loop()))
        return session

    # A file system of its own for every run, whose connections are ours to close: fsspec leaves
    # them open.
    options = {"get_client": get_client, "skip_instance_cache": True}
    began = time.perf_counter()
    with xr.open_zarr(url, consolidated=True, storage_options=options) as dataset:
        opened = time.perf_counter()
        outer = dataset[field].dims[:-2]
        dataset[field].isel({name: dataset.sizes[name] // 2 for name in outer}).to_numpy()
        one = time.perf_counter()
        values = dataset[variable].to_numpy()
        ended = time.perf_counter()
    for session, loop in sessions:
        asyncio.run_coroutine_threadsafe(session.close(), loop).result()
    return Read(opened - began, one - opened, ended - one, values.shape, values.nbytes)


async def compare_zarr_reads(
    report: Report, sides: Sides, kept: dict[str, str], *, quick: bool
) -> None:
    """Compare reads of the Zarr store of a job of each side.

    Parameters
    ----------
    kept : dict
        Id of a finished job, by name of the side.
    """
    urls = {}
    for side in sides:
        async with side.connected() as client:
            urls[side.name] = await find_zarr(client, side.base, kept[side.name])
    field, variable = _variables(sides.ours, urls["ours"])

    async def run(side: Side) -> Read:
        return await asyncio.to_thread(read_zarr, urls[side.name], field, variable)

    report.begin("Zarr over HTTP, by xarray: ours / theirs")
    first = await in_turns(sides, 1, run)
    fields = [run.nbytes for run in (*first.ours, *first.theirs)]
    if fields[0] != fields[1]:
        raise RuntimeError(f"{variable} is {first.ours[0].shape} and {first.theirs[0].shape}")
    turns = await in_turns(sides, 2 if quick else 5, run)
    open_ms = turns.each(lambda run: 1e3 * run.open_s)
    report_ratio(report, "open", open_ms, "ms", aim=OPEN_AIM)
    field_ms = turns.each(lambda run: 1e3 * run.field_s)
    report_ratio(report, f"one field of {field}", field_ms, "ms", aim=FIELD_AIM)
    rates = turns.each(lambda run: run.mb_per_s)
    name = f"all fields of {variable} ({fields[0] / 1e6:.0f} MB)"
    report_ratio(report, name, rates, "MB/s", aim=VARIABLE_AIM)


def _variables(side: Side, url: str) -> tuple[str, str]:
    """Choose the variable of which one field is read, and the one that is read whole."""
    names = side.workload.large.get("variables")
    if not names:
        with xr.open_zarr(url, consolidated=True) as dataset:
            names = [str(name) for name in dataset.data_vars]
    return names[0], names[-1]
