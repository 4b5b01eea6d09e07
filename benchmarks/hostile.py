"""Silent connections, held polls, readers that read nothing and endless bodies, all at once."""

from __future__ import annotations

import asyncio
import json
import time
from collections import defaultdict
from typing import Any

import aiohttp
import uvloop

from benchmarks.crowd import GRID, SMALL
from benchmarks.hostile_clients import Clients, command
from benchmarks.report import Report, Target
from benchmarks.server import Server
from benchmarks.workloads import FCN3

SILENT, POLLS, READERS, BODIES = 5000, 1200, 500, 10
RAMP_S, HOLD_S, AFTER_S = 20.0, 60.0, 20.0
PROBE_S = 0.5
LIMIT_S = 1.0
"""Within which a short call is to be answered."""
LARGE = {
    "n_steps": 80,
    "n_samples": 1,
    "variables": ["t2m", "u10m", "v10m"],
    "output_format": "netcdf4",
}


def measure_hostile(report: Report, *, quick: bool) -> None:
    """Measure short calls and the memory of the ingress while such clients are connected."""
    share = 0.1 if quick else 1.0
    silent, polls, readers = (int(n * share) for n in (SILENT, POLLS, READERS))
    report.start(
        f"{silent} silent connections, {polls} held polls, {readers} readers that read nothing, "
        f"{BODIES} endless bodies"
    )
    settings = {
        "workflows": {"exposed": [FCN3.workflow]},
        "models": {"fcn3": {"loader": "synthetic", "grid": GRID}},
    }
    with Server("hostile", settings) as server:
        crowd = {"silent": silent, "polls": polls, "readers": readers, "bodies": BODIES}
        uvloop.run(_measure(report, server, crowd))


async def _measure(report: Report, server: Server, crowd: dict[str, int]) -> None:
    url = f"{server.base}{FCN3.path}"
    async with aiohttp.ClientSession() as http:
        large = await _finished(http, url, LARGE)
        ended = await _finished(http, url, SMALL)
        async with http.get(f"{url}/{large}/results") as answer:
            files = (await answer.json())["output_files"]
        path = max(files, key=lambda file: int(file["size"]))["path"]
        # A poll of an execution that has not ended is held: this one waits for its turn.
        held = await _submit(http, url, {**LARGE, "n_steps": 400, "n_samples": 32})
        before = server.ingress_bytes()
        clients = Clients(
            port=server.port,
            status_path=f"{FCN3.path}/{held}/status",
            file_path=f"{FCN3.path}/{large}/results/{path}",
            submit_path=FCN3.path,
            ramp_s=RAMP_S,
            hold_s=HOLD_S,
            **crowd,
        )
        process = await asyncio.create_subprocess_exec(
            *command(clients), stdout=asyncio.subprocess.PIPE
        )
        assert process.stdout is not None  # noqa: S101 - it was asked for
        connecting, connected = _Probes(http, url, ended), _Probes(http, url, ended)
        largest = 0
        lines = asyncio.ensure_future(process.stdout.readline())
        while not lines.done():
            await connecting.probe()
        await lines
        deadline = time.monotonic() + HOLD_S - PROBE_S
        while time.monotonic() < deadline:
            await connected.probe()
            largest = max(largest, server.ingress_bytes())
        answers = json.loads(await process.stdout.readline())
        await process.wait()
        await asyncio.sleep(AFTER_S)
        after = server.ingress_bytes()
        await http.delete(f"{url}/{held}")
    connecting.report(report, "while they connect")
    connected.report(report, "while they are connected")
    report.add("ingress grows by", (largest - before) / 1e6, "MB", target=Target(500))
    report.add(f"{AFTER_S:.0f} s after they left it has grown by", (after - before) / 1e6, "MB")
    note = ", ".join(f"{count} {kind}" for kind, count in sorted(answers.items()))
    report.add("answers to them", sum(answers.values()), "", note=note)


class _Probes:
    """Short calls of a client that behaves, and how long each took."""

    def __init__(self, http: aiohttp.ClientSession, url: str, ended: str) -> None:
        self._http = http
        root = url.split("/v1/")[0]
        body = {"parameters": {**SMALL, "n_steps": 0}}
        self._calls: dict[str, tuple[str, str, Any, int]] = {
            "liveness": ("GET", f"{root}/liveness", None, 200),
            "status": ("GET", f"{url}/{ended}/status", None, 200),
            "submit": ("POST", url, {"parameters": SMALL}, 200),
            "refused submit": ("POST", url, body, 422),
        }
        self._seconds: dict[str, list[float]] = defaultdict(list)
        self._failed: dict[str, list[str]] = defaultdict(list)

    async def probe(self) -> None:
        """Make each call once, each over a new connection."""
        for name, (method, url, body, expected) in self._calls.items():
            started = time.monotonic()
            try:
                async with self._http.request(
                    method, url, json=body, headers={"Connection": "close"}
                ) as answer:
                    await answer.read()
                    if answer.status != expected:
                        self._failed[name].append(str(answer.status))
            except aiohttp.ClientError as error:
                self._failed[name].append(type(error).__name__)
            self._seconds[name].append(time.monotonic() - started)
        await asyncio.sleep(PROBE_S)

    def report(self, report: Report, when: str) -> None:
        """Add the slowest of each call, and how many failed."""
        for name, seconds in self._seconds.items():
            failed = ", ".join(sorted(set(self._failed[name])))
            note = f"of {len(seconds)}; {len(self._failed[name])} failed {failed}".rstrip()
            report.add(
                f"{name}, slowest {when}", max(seconds), "s", target=Target(LIMIT_S), note=note
            )


async def _submit(http: aiohttp.ClientSession, url: str, parameters: dict[str, Any]) -> str:
    async with http.post(url, json={"parameters": parameters}) as answer:
        answer.raise_for_status()
        return str((await answer.json())["execution_id"])


async def _finished(http: aiohttp.ClientSession, url: str, parameters: dict[str, Any]) -> str:
    execution_id = await _submit(http, url, parameters)
    while True:
        async with http.get(f"{url}/{execution_id}/status?wait=30") as answer:
            answer.raise_for_status()
            status = await answer.json()
        if status["status"] == "completed":
            return execution_id
        if status["end_time"] is not None:
            raise RuntimeError(f"the forecast ended as {status}")
