"""Serve without a GPU, run a 4-member forecast, leave dataset, map and catalogue: ``make demo``.

Everything is left in ``var/demo``: results, execution store, configuration and the server's log.
The next demo begins with an empty folder.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn
from urllib.error import HTTPError, URLError
from urllib.parse import urlencode
from urllib.request import ProxyHandler, Request, build_opener

import yaml

from deployments.conductor.lease import FileLease
from examples._display import Display, bar
from examples._server_process import Server, ServerEnded, free_port

ROOT = Path(__file__).resolve().parents[1]
CONFIG = ROOT / "config" / "local.yaml"
FOLDER = ROOT / "var" / "demo"

WORKFLOW = "foundry_fcn3_workflow"
PARAMETERS: Mapping[str, Any] = {
    "start_time": "2025-01-01T00:00:00Z",
    "n_steps": 8,
    "n_samples": 4,
    "variables": ["t2m", "u10m", "v10m", "msl"],
    "output_format": "zarr",
}

READY_LIMIT_S = 240.0
STUCK_LIMIT_S = 120.0
"""How long a forecast may show no progress."""
WAIT_S = 20
"""Length of one long poll."""


_opener = build_opener(ProxyHandler({}))  # the server is here, whatever the environment names


class DemoFailed(Exception):
    """What went wrong, in words."""


def call(url: str, body: Mapping[str, Any] | None = None, timeout_s: float = 30.0) -> Any:
    """Send a request, a POST if there is a body; give the answer's JSON.

    Raises
    ------
    HTTPError
        If the server refuses.
    OSError
        If it cannot be reached.
    """
    request = Request(  # noqa: S310
        url,
        data=None if body is None else json.dumps(body).encode(),
        headers={"Content-Type": "application/json"} if body is not None else {},
    )
    with _opener.open(request, timeout=timeout_s) as response:
        return json.load(response)


def wait_until_ready(
    server: Server, base: str, display: Display, limit_s: float = READY_LIMIT_S
) -> float:
    """Wait until every workflow can run; gives how long that took.

    Raises
    ------
    ServerEnded
    DemoFailed
        If it needs too long.
    """
    began = time.monotonic()
    while True:
        elapsed = time.monotonic() - began
        display.show(f"starting the server: {elapsed:3.0f} s", mark=int(elapsed) // 10)
        server.check()
        try:
            call(f"{base}/readiness", timeout_s=5.0)
            return elapsed
        except HTTPError as error:
            reason = f"/readiness answers {error.code} {_text(error)}"
        except OSError as error:
            reason = str(error.reason if isinstance(error, URLError) else error)
        if elapsed > limit_s:
            raise DemoFailed(f"the server is not ready after {elapsed:.0f} s: {reason}")
        time.sleep(0.5)


def submit(base: str) -> str:
    """Ask for the forecast; gives the execution's id.

    Raises
    ------
    DemoFailed
        If the server refuses, with its reason.
    """
    try:
        answer = call(f"{base}/v1/infer/{WORKFLOW}", {"parameters": PARAMETERS})
    except HTTPError as error:
        raise DemoFailed(f"the request was refused: {error.code} {_text(error)}") from None
    return str(answer["execution_id"])


def follow(base: str, execution_id: str, display: Display) -> Mapping[str, Any]:
    """Show the progress of an execution until it has completed; gives its last status.

    Raises
    ------
    DemoFailed
        If it ends otherwise, or shows no progress for long.
    """
    revision, changed_at, began = 0, time.monotonic(), time.monotonic()
    while True:
        query = urlencode({"wait": WAIT_S, "revision": revision})
        url = f"{base}/v1/infer/{WORKFLOW}/{execution_id}/status?{query}"
        status: Mapping[str, Any] = call(url, timeout_s=WAIT_S + 30.0)
        if status["status"] == "completed":
            return status
        if status["status"] in ("failed", "cancelled", "expired"):
            stage = f" at stage {status['stage']}" if status["stage"] else ""
            raise DemoFailed(
                f"the forecast {status['status']}{stage}: {status['error_message'] or 'no reason'}"
            )
        if status["revision"] != revision:
            revision, changed_at = status["revision"], time.monotonic()
        elif time.monotonic() - changed_at > STUCK_LIMIT_S:
            raise DemoFailed(f"no progress for {STUCK_LIMIT_S:.0f} s, it is {status['status']}")
        percent, text = describe(status)
        elapsed = time.monotonic() - began
        display.show(
            f"{bar(percent)}  {text}  {elapsed:.0f} s", mark=(percent // 5, status["stage"])
        )


def describe(status: Mapping[str, Any]) -> tuple[int, str]:
    """Say how far an execution is: per cent, and in words."""
    progress = status["progress"]
    stage = (status["stage"] or status["status"]).replace("_", " ")
    if not progress or not progress["total_steps"]:
        return 0, stage
    percent = 100 * progress["current_step"] // progress["total_steps"]
    return percent, f"{stage}: {progress['progress']}"


def result_paths(results: Mapping[str, Any], folder: Path) -> tuple[Path, Path]:
    """Find the dataset and the map that a manifest names.

    Parameters
    ----------
    results : mapping
        What the route ``results`` answers.
    folder : Path
        The server's folder with the results of the workflow.
    """
    paths = [entry["path"] for entry in results["output_files"]]
    dataset = next(path for path in paths if ".zarr/" in path).partition(".zarr/")[0] + ".zarr"
    preview = next(path for path in paths if path.endswith(".png"))
    return folder / dataset, folder / preview


def farewell(results: Mapping[str, Any], dataset: Path, preview: Path) -> str:
    """Say where the results are and how to open them."""
    here, map_, config = (
        os.path.relpath(path) for path in (dataset, preview, FOLDER / CONFIG.name)
    )
    python = os.path.relpath(sys.executable)
    catalog = os.path.relpath(FOLDER / "results" / "catalog.json")
    item = os.path.relpath(dataset.with_name("item.json"))
    megabytes = results["totals"]["bytes"] / 1e6
    viewer = "open" if sys.platform == "darwin" else "xdg-open"
    route = f"http://127.0.0.1:8000/v1/infer/{WORKFLOW}/{results['request_id']}/results"
    return f"""
dataset  {here}  ({megabytes:.0f} MB; synthetic weather, no forecast)
map      {map_}
item     {item}
catalog  {catalog}

Open the dataset, here with xarray:

    {python} -c 'import xarray; print(xarray.open_zarr("{here}"))'

Look at the map:

    {viewer} {map_}

Read what a STAC catalogue is told of it (pystac and STAC browsers open {catalog}):

    {python} -m json.tool {item}

Fetch from a server, that of the demo started again, in another terminal:

    make serve CONFIG={config}
    curl -O {route}/preview.png
    curl {route}
"""


def prepare() -> Path:
    """Empty the demo's folder and write its configuration; gives that file's path.

    Raises
    ------
    DemoFailed
        If a server uses the folder.
    """
    if FOLDER.exists():
        lease = FileLease(FOLDER / "executions.sqlite.lease")
        if not lease.try_acquire():
            raise DemoFailed(f"a server is using {FOLDER}: stop it first")
        lease.release()
        shutil.rmtree(FOLDER)
    FOLDER.mkdir(parents=True)
    config = FOLDER / CONFIG.name
    config.write_text(configured(CONFIG.read_text("utf-8"), FOLDER), "utf-8")
    return config


def configured(config: str, data_dir: Path) -> str:
    """Give a configuration with its data in another folder."""
    values = yaml.safe_load(config)
    values["applications"][0]["args"]["data_dir"] = str(data_dir)
    dumped: str = yaml.safe_dump(values, sort_keys=False)
    return f"# Written by the demo: {CONFIG.name} with another data_dir.\n{dumped}"


def run(display: Display) -> None:
    """Do all of it.

    Raises
    ------
    DemoFailed
        With the reason and the end of the server's log.
    """
    config = prepare()
    log = FOLDER / "server.log"
    # Ray's sockets lie below its folder, and the path of a socket has at most 107 bytes.
    temporary = tempfile.mkdtemp(prefix="e2s-", dir="/tmp" if Path("/tmp").is_dir() else None)  # noqa: S108
    environment = {
        # A cluster of its own, whatever else runs on this machine.
        "RAY_ADDRESS": "local",
        "RAY_TMPDIR": temporary,
        # Without HAProxy: one client needs no thousand requests per second, and HAProxy's two
        # further ports (9101 and 8404, on all interfaces) may be taken, or not wanted.
        "RAY_SERVE_ENABLE_HA_PROXY": "0",
    }
    port = free_port()
    base = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "serve_app", str(config), "--port", str(port)]
    server = Server(command, environment, log)
    try:
        results = forecast(server, base, display)
    except (DemoFailed, ServerEnded, OSError) as error:
        raise DemoFailed(f"{error}\n\nThe end of {log}:\n{server.log_tail()}") from None
    finally:
        display.show("stopping the server", mark="stopping")
        server.stop()
        shutil.rmtree(temporary, ignore_errors=True)
    display.say(farewell(results, *result_paths(results, FOLDER / "results" / WORKFLOW)))


def forecast(server: Server, base: str, display: Display) -> Mapping[str, Any]:
    """Run the forecast on a server that starts; gives the results' manifest."""
    took = wait_until_ready(server, base, display)
    log = os.path.relpath(server.log)
    display.say(f"the server is ready after {took:.0f} s: {base}, log in {log}")
    execution_id = submit(base)
    display.say(f"submitted {execution_id}: {json.dumps(dict(PARAMETERS))}")
    status = follow(base, execution_id, display)
    display.say(f"{bar(100)}  completed in {status['execution_time_seconds']:.1f} s")
    manifest: Mapping[str, Any] = call(f"{base}/v1/infer/{WORKFLOW}/{execution_id}/results")
    _wait_for_catalog(FOLDER / "results" / WORKFLOW / "collection.json", execution_id)
    return manifest


def _wait_for_catalog(collection: Path, execution_id: str, limit_s: float = 20.0) -> None:
    """Wait for the execution to be in the catalogue: the server writes that in the background.

    Raises
    ------
    DemoFailed
        If it does not come.
    """
    deadline = time.monotonic() + limit_s
    while not (collection.exists() and execution_id in collection.read_text("utf-8")):
        if time.monotonic() > deadline:
            raise DemoFailed(f"{collection} does not name {execution_id}")
        time.sleep(0.1)


def _text(error: HTTPError) -> str:
    return error.read().decode("utf-8", "replace")[:500]


def _terminate(_number: int, _frame: object) -> NoReturn:
    raise SystemExit(143)


def main() -> int:
    """Run the demo; 0 if it left a dataset and a map."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _terminate)  # so that the server is stopped, too
    display = Display(sys.stdout)
    try:
        run(display)
    except DemoFailed as error:
        print(f"\nthe demo failed: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nstopped", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
