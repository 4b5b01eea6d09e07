"""Serve without a GPU, run a 4-member forecast, leave dataset, map and catalogue: ``make demo``.

Results, execution store, configuration and the server's log are left in ``var/demo``. The next
demo empties that folder first.
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

import yaml

from deployments.conductor.lease import FileLease
from examples.display import Display, bar
from examples.forecast_client import ForecastFailed, call, follow, submit, wait_until_ready
from examples.server_process import ServerEnded, ServerProcess
from serve_app.ports import free_port

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


class DemoFailed(Exception):
    """The demo failed; text for the user."""


def main() -> int:
    """Run the demo; return 0 if it left a dataset and a map."""
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


def run(display: Display) -> None:
    """Start a server, run the forecast on it and stop it.

    Raises
    ------
    DemoFailed
        With the reason and the end of the server's log.
    """
    config = prepare()
    # Ray's sockets are below its folder, and the path of a socket has at most 107 bytes.
    temporary = tempfile.mkdtemp(prefix="e2s-", dir="/tmp" if Path("/tmp").is_dir() else None)  # noqa: S108
    environment = {
        # A separate cluster, whatever else runs on this machine.
        "RAY_ADDRESS": "local",
        "RAY_TMPDIR": temporary,
        # Without HAProxy: one client does not need its speed, and its two further ports (9101 and
        # 8404, on all interfaces) may be taken, or not wanted.
        "RAY_SERVE_ENABLE_HA_PROXY": "0",
    }
    port = free_port()
    command = [sys.executable, "-m", "serve_app", str(config), "--port", str(port)]
    server = ServerProcess(command, environment, FOLDER / "server.log")
    try:
        results = forecast(server, f"http://127.0.0.1:{port}", display)
    except (DemoFailed, ForecastFailed, ServerEnded, OSError) as error:
        raise DemoFailed(f"{error}\n\nThe end of {server.log}:\n{server.log_tail()}") from None
    finally:
        display.update("stopping the server", mark="stopping")
        server.stop()
        shutil.rmtree(temporary, ignore_errors=True)
    display.print(instructions(results, *result_paths(results, FOLDER / "results" / WORKFLOW)))


def prepare() -> Path:
    """Empty the demo's folder and write its configuration; return the path of that file.

    Raises
    ------
    DemoFailed
        If a server is using the folder.
    """
    if FOLDER.exists():
        lease = FileLease(FOLDER / "executions.sqlite.lease")
        if not lease.try_acquire():
            raise DemoFailed(f"a server is using {FOLDER}: stop it first")
        lease.release()
        shutil.rmtree(FOLDER)
    FOLDER.mkdir(parents=True)
    config = FOLDER / CONFIG.name
    config.write_text(with_data_dir(CONFIG.read_text("utf-8"), FOLDER), "utf-8")
    return config


def with_data_dir(config: str, data_dir: Path) -> str:
    """Return a configuration with another ``data_dir``."""
    values = yaml.safe_load(config)
    values["applications"][0]["args"]["data_dir"] = str(data_dir)
    dumped: str = yaml.safe_dump(values, sort_keys=False)
    return f"# Written by the demo: {CONFIG.name} with another data_dir.\n{dumped}"


def forecast(server: ServerProcess, base: str, display: Display) -> Mapping[str, Any]:
    """Run the forecast once the server is ready; return the manifest of its results."""
    seconds = wait_until_ready(server, base, display)
    log = os.path.relpath(server.log)
    display.print(f"the server is ready after {seconds:.0f} s: {base}, log in {log}")
    url = f"{base}/v1/infer/{WORKFLOW}"
    execution_id = submit(url, PARAMETERS)
    display.print(f"submitted {execution_id}: {json.dumps(dict(PARAMETERS))}")
    status = follow(f"{url}/{execution_id}", display)
    display.print(f"{bar(100)}  completed in {status['execution_time_seconds']:.1f} s")
    manifest: Mapping[str, Any] = call(f"{url}/{execution_id}/results")
    _wait_for_catalog(FOLDER / "results" / WORKFLOW / "collection.json", execution_id)
    return manifest


def _wait_for_catalog(collection: Path, execution_id: str, limit_s: float = 20.0) -> None:
    """Wait until the catalogue, which is written in the background, has the execution.

    Raises
    ------
    DemoFailed
    """
    deadline = time.monotonic() + limit_s
    while not (collection.exists() and execution_id in collection.read_text("utf-8")):
        if time.monotonic() > deadline:
            raise DemoFailed(f"{collection} does not name {execution_id}")
        time.sleep(0.1)


def result_paths(results: Mapping[str, Any], folder: Path) -> tuple[Path, Path]:
    """Return the paths of the dataset and the map that a manifest names.

    Parameters
    ----------
    results : mapping
        The manifest.
    folder : Path
        The server's folder with the results of the workflow.
    """
    paths = [entry["path"] for entry in results["output_files"]]
    dataset = next(path for path in paths if ".zarr/" in path).partition(".zarr/")[0] + ".zarr"
    preview = next(path for path in paths if path.endswith(".png"))
    return folder / dataset, folder / preview


def instructions(results: Mapping[str, Any], dataset: Path, preview: Path) -> str:
    """Return where the results are and how to open them."""
    zarr, png, item, catalog, config, python = (
        os.path.relpath(path)
        for path in (
            dataset,
            preview,
            dataset.with_name("item.json"),
            FOLDER / "results" / "catalog.json",
            FOLDER / CONFIG.name,
            sys.executable,
        )
    )
    megabytes = results["totals"]["bytes"] / 1e6
    viewer = "open" if sys.platform == "darwin" else "xdg-open"
    route = f"http://127.0.0.1:8000/v1/infer/{WORKFLOW}/{results['request_id']}/results"
    return f"""
dataset  {zarr}  ({megabytes:.0f} MB; synthetic weather, no forecast)
map      {png}
item     {item}
catalog  {catalog}

Open the dataset, here with xarray:

    {python} -c 'import xarray; print(xarray.open_zarr("{zarr}"))'

Look at the map:

    {viewer} {png}

Read its STAC item (pystac and STAC browsers open {catalog}):

    {python} -m json.tool {item}

Start the demo's server again and, in another terminal, download from it:

    make serve CONFIG={config}
    curl -O {route}/preview.png
    curl {route}
"""


def _terminate(_number: int, _frame: object) -> NoReturn:
    raise SystemExit(143)


if __name__ == "__main__":
    sys.exit(main())
