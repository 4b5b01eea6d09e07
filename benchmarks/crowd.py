"""A thousand queued executions, two hundred polling clients, and large downloads."""

from __future__ import annotations

import asyncio
import itertools
import os
import signal
import statistics
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import uvloop

from benchmarks.report import Report, Target
from benchmarks.server import INGRESS, Server
from benchmarks.workloads import FCN3

GRID = {"n_lat": 181, "n_lon": 360}
QUEUED, POLLERS, DOWNLOADERS = 1000, 200, 4
POLL_S = 1.0
PHASE_S = 20.0
SMALL = {"n_steps": 1, "n_samples": 1, "variables": ["t2m"], "output_format": "zarr"}
LARGE = {
    "n_steps": 40,
    "n_samples": 1,
    "variables": ["t2m", "u10m", "v10m", "msl", "tcwv", "z500", "t850", "q700"],
    "output_format": "netcdf4",
}


@dataclass
class Observed:
    """What the clients observed during one phase."""

    latencies: list[float] = field(default_factory=list)
    """Latencies of statuses, seconds."""
    bytes: int = 0
    errors: Counter[str] = field(default_factory=Counter)
    last_error_at: float = 0.0

    def fail(self, kind: str) -> None:
        """Count a missing or wrong answer."""
        self.errors[kind] += 1
        self.last_error_at = time.monotonic()


def measure_crowd(report: Report, *, quick: bool) -> None:
    """Measure statuses and memory under load, then after killing one of two ingress replicas."""
    queued, pollers = (100, 40) if quick else (QUEUED, POLLERS)
    report.start(f"{queued} executions queued, {pollers} clients poll, {DOWNLOADERS} download")
    settings = {
        "queue": {"max_size": queued},
        "workflows": {"exposed": [FCN3.workflow]},
        "models": {"fcn3": {"loader": "synthetic", "grid": GRID}},
        "ingress": {"replicas": 2},
    }
    with Server("crowd", settings) as server:
        crowd = _Crowd(server, queued, pollers)
        uvloop.run(crowd.run(report, PHASE_S / 4 if quick else PHASE_S))


class _Crowd:
    def __init__(self, server: Server, queued: int, pollers: int) -> None:
        self._server = server
        self._queued = queued
        self._pollers = pollers
        self._url = f"{server.base}{FCN3.path}"
        self._observed = Observed()
        self._ids: list[str] = []
        self._refused = 0

    async def run(self, report: Report, phase_s: float) -> None:
        """Fill the queue, start the clients, kill an ingress, wait for the queue to empty."""
        connector = aiohttp.TCPConnector(limit=0)
        async with aiohttp.ClientSession(connector=connector) as http:
            large = await self._make_large(http)
            before = self._server.ingress_bytes()
            started = time.monotonic()
            await self._fill(http)
            report.add("accepted", len(self._ids), "", target=Target(self._queued, at_least=True))
            report.add("refused with 429 when it is full", self._refused, "")
            report.add("submits", len(self._ids) / (time.monotonic() - started), "/s")

            crowd = [asyncio.create_task(self._poll(http, n)) for n in range(self._pollers)]
            crowd += [asyncio.create_task(self._download(http, large)) for _ in range(DOWNLOADERS)]
            largest = 0
            for _ in range(10):
                await asyncio.sleep(phase_s / 10)
                largest = max(largest, await asyncio.to_thread(self._server.ingress_bytes))
            _report_statuses(report, self._observed, phase_s)
            errors = sum(self._observed.errors.values())
            report.add("errors", errors, "", target=Target(0), note=_describe(self._observed))
            report.add(
                "ingress replicas grow by", (largest - before) / 1e6, "MB", target=Target(300)
            )

            self._observed = Observed()
            ingress = [pid for pid in self._server.processes() if _is_ingress(pid)]
            os.kill(ingress[0], signal.SIGKILL)
            killed_at = time.monotonic()
            await asyncio.sleep(phase_s)
            for task in crowd:
                task.cancel()
            await asyncio.gather(*crowd, return_exceptions=True)
            lasted = max(self._observed.last_error_at - killed_at, 0.0)
            errors = sum(self._observed.errors.values())
            report.add(
                "one of two ingresses killed: errors", errors, "", note=_describe(self._observed)
            )
            requests = len(self._observed.latencies) + errors
            report.add("share of requests", errors / max(requests, 1) * 100, "%")
            report.add("last error after", lasted, "s")

            ended = await self._wait_for_all(http)
            report.add(
                "completed", ended["completed"], "", target=Target(self._queued, at_least=True)
            )
            report.add("executions", len(self._ids) / (time.monotonic() - started), "/s")

    async def _make_large(self, http: aiohttp.ClientSession) -> str:
        execution_id = await self._submit(http, LARGE)
        await self._ended(http, execution_id)
        async with http.get(f"{self._url}/{execution_id}/results") as answer:
            files = (await answer.json())["output_files"]
        largest = max(files, key=lambda file: int(file["size"]))
        return f"{self._url}/{execution_id}/results/{largest['path']}"

    async def _submit(self, http: aiohttp.ClientSession, parameters: dict[str, Any]) -> str:
        async with http.post(self._url, json={"parameters": parameters}) as answer:
            answer.raise_for_status()
            return str((await answer.json())["execution_id"])

    async def _status(self, http: aiohttp.ClientSession, execution_id: str) -> dict[str, Any]:
        async with http.get(f"{self._url}/{execution_id}/status") as answer:
            answer.raise_for_status()
            found: dict[str, Any] = await answer.json()
            return found

    async def _fill(self, http: aiohttp.ClientSession) -> None:
        async def submit() -> None:
            while len(self._ids) < self._queued:
                async with http.post(self._url, json={"parameters": SMALL}) as answer:
                    if answer.status == 429:
                        self._refused += 1
                        await asyncio.sleep(0.2)
                        continue
                    answer.raise_for_status()
                    self._ids.append((await answer.json())["execution_id"])

        await asyncio.gather(*(submit() for _ in range(20)))

    async def _poll(self, http: aiohttp.ClientSession, number: int) -> None:
        await asyncio.sleep(POLL_S * number / self._pollers)
        for execution_id in itertools.cycle(self._ids[number :: self._pollers]):
            started = time.monotonic()
            try:
                await self._status(http, execution_id)
                self._observed.latencies.append(time.monotonic() - started)
            except (aiohttp.ClientError, TimeoutError) as error:
                self._observed.fail(_kind(error))
            await asyncio.sleep(max(POLL_S - (time.monotonic() - started), 0))

    async def _download(self, http: aiohttp.ClientSession, url: str) -> None:
        while True:
            try:
                async with http.get(url) as answer:
                    answer.raise_for_status()
                    async for piece in answer.content.iter_chunked(1 << 20):
                        self._observed.bytes += len(piece)
            except (aiohttp.ClientError, TimeoutError) as error:
                self._observed.fail(f"download: {_kind(error)}")
                await asyncio.sleep(0.2)

    async def _wait_for_all(self, http: aiohttp.ClientSession) -> Counter[str]:
        ended: Counter[str] = Counter()
        for execution_id in self._ids:
            ended[await self._ended(http, execution_id)] += 1
        return ended

    async def _ended(self, http: aiohttp.ClientSession, execution_id: str) -> str:
        while True:
            async with http.get(f"{self._url}/{execution_id}/status?wait=30") as answer:
                answer.raise_for_status()
                status = await answer.json()
            if status["end_time"] is not None:
                return str(status["status"])


def _report_statuses(report: Report, observed: Observed, phase_s: float) -> None:
    percentiles = statistics.quantiles(observed.latencies, n=100)
    report.add("statuses", len(observed.latencies) / phase_s, "/s")
    report.add("status: median", percentiles[49] * 1e3, "ms")
    report.add("95th percentile", percentiles[94] * 1e3, "ms")
    report.add("99th percentile", percentiles[98] * 1e3, "ms")
    report.add("downloaded", observed.bytes / phase_s / 1e6, "MB/s")


def _is_ingress(process: int) -> bool:
    try:
        with open(f"/proc/{process}/cmdline", "rb") as file:
            return file.read().decode(errors="replace").startswith(INGRESS)
    except (FileNotFoundError, ProcessLookupError):
        return False


def _kind(error: BaseException) -> str:
    if isinstance(error, aiohttp.ClientResponseError):
        return str(error.status)
    return type(error).__name__


def _describe(observed: Observed) -> str:
    return ", ".join(f"{count} {kind}" for kind, count in observed.errors.most_common())
