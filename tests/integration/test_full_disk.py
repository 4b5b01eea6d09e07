"""A disk that fills up while results are written: nothing is lost, and a retry finishes it."""

from __future__ import annotations

import errno
import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import xarray as xr

from tests.integration.serving import WORKFLOW, Server, served

pytestmark = pytest.mark.ray

DISK_MB = 24
GRID = {"n_lat": 91, "n_lon": 180}


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Give a small file system of its own."""
    folder = tmp_path_factory.mktemp("full-disk")
    command = ["mount", "-t", "tmpfs", "-o", f"size={DISK_MB}m", "earth2serve", str(folder)]
    if subprocess.run(command, capture_output=True).returncode:
        pytest.skip("mounting takes root")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.fixture(scope="module")
def server(
    http_port: int, disk: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    """Serve with results on the small disk; the store has another."""
    slow = {"step_s": 0.1, "journal": str(tmp_path_factory.mktemp("journal") / "journal"), **GRID}
    args = {
        "data_dir": str(tmp_path_factory.mktemp("var")),
        "results_url": f"file://{disk}/results",
        "results": {"min_free_gb": 0.0},
        "models": {
            "fcn3": {
                "loader": "tests.integration.standins:slow_fcn3",
                "options": slow,
                "num_gpus": 0.0,
                "grid": GRID,
            }
        },
    }
    with served(args, "full-disk", http_port) as server:
        yield server


def fill(ballast: Path) -> None:
    """Take all that is left of a disk."""
    file = os.open(ballast, os.O_WRONLY | os.O_CREAT)
    try:
        while True:
            os.write(file, bytes(4096))
    except OSError as error:
        assert error.errno == errno.ENOSPC
    finally:
        os.close(file)


@pytest.mark.parametrize("output_format", ["zarr", "netcdf4"])
def test_a_disk_that_fills_up_fails_the_execution_and_a_retry_finishes_it(
    server: Server, disk: Path, output_format: str
) -> None:
    asked = {"n_steps": 30, "seeds": [1], "variables": ["t2m", "z500"]}
    execution_id = server.submit(**asked, output_format=output_format)
    server.until(execution_id, lambda s: (s["progress"] or {}).get("current_step", 0) >= 3)
    ballast = disk / "ballast"
    fill(ballast)
    failed = server.finished(execution_id)
    assert failed["status"] == "failed"
    assert "No space left on device" in failed["error_message"]

    ballast.unlink()
    # Removed behind the record of the failure.
    deadline = time.monotonic() + 30
    while any(execution_id in str(path) for path in disk.rglob("c.*")):
        assert time.monotonic() < deadline, "half a result still takes the disk"
        time.sleep(0.05)
    url = f"/v1/infer/{WORKFLOW}/{execution_id}"
    answer = server.http.post(f"{url}/retry")
    assert answer.status_code == 202, answer.text
    ended = server.finished(execution_id)
    assert ended["status"] == "completed", ended["error_message"]
    folder = disk / "results" / WORKFLOW / execution_id
    dataset = (
        xr.open_zarr(folder / "results.zarr").load()
        if output_format == "zarr"
        else xr.open_dataset(folder / "results.nc").load()
    )
    assert dataset["t2m"].notnull().all() and dataset["z500"].notnull().all()


def test_what_does_not_fit_now_is_refused_with_503(server: Server, disk: Path) -> None:
    """Results of others are in the way; without them there would be room."""
    url = f"/v1/infer/{WORKFLOW}"
    asked = {"n_steps": 40, "seeds": [1], "variables": ["t2m", "z500"], "output_format": "zarr"}
    first = server.submit(**asked)
    assert server.finished(first)["status"] == "completed"
    left = os.statvfs(disk).f_bavail * os.statvfs(disk).f_frsize
    n_steps = left // (2 * 4 * GRID["n_lat"] * GRID["n_lon"]) + 2
    answer = server.http.post(url, json={"parameters": {**asked, "n_steps": n_steps}})
    assert answer.status_code == 503, answer.text
    assert "Retry-After" in answer.headers
