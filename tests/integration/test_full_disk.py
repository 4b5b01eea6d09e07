"""A disk that fills up while results are written fails an execution, which can be retried."""

from __future__ import annotations

import errno
import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import xarray as xr

from tests.integration.serving import LIMIT_S, WORKFLOW, Server, served, steps_written

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.privileged]

DISK_MB = 24
GRID = {"n_lat": 91, "n_lon": 180}


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder that is a small file system of its own."""
    folder = tmp_path_factory.mktemp("full-disk")
    command = ["mount", "-t", "tmpfs", "-o", f"size={DISK_MB}m", "earth2serve", str(folder)]
    if subprocess.run(command, capture_output=True).returncode:
        pytest.skip("mounting needs root")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.fixture(scope="module")
def server(
    http_port: int, disk: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    """A server with results on the small disk and its store on another one."""
    slow = {"step_s": 0.1, "journal": str(tmp_path_factory.mktemp("journal") / "journal"), **GRID}
    args = {
        "data_dir": str(tmp_path_factory.mktemp("var")),
        "results_url": f"file://{disk}/results",
        "results": {"min_free_gb": 0.0},
        "models": {
            "fcn3": {
                "loader": "tests.integration.standins:load_slow_fcn3",
                "options": slow,
                "num_gpus": 0.0,
                "grid": GRID,
            }
        },
    }
    with served(args, "full-disk", http_port) as server:
        yield server


def fill(ballast: Path) -> None:
    """Write until the disk is full."""
    file = os.open(ballast, os.O_WRONLY | os.O_CREAT)
    try:
        while True:
            os.write(file, bytes(4096))
    except OSError as error:
        assert error.errno == errno.ENOSPC
    finally:
        os.close(file)


@pytest.mark.parametrize("output_format", ["zarr", "netcdf4"])
def test_an_execution_that_fills_the_disk_fails_and_is_completed_by_a_retry(
    server: Server, disk: Path, output_format: str
) -> None:
    parameters = {"n_steps": 30, "seeds": [1], "variables": ["t2m", "z500"]}
    execution_id = server.submit(**parameters, output_format=output_format)
    server.until(execution_id, lambda s: steps_written(s) >= 3)
    ballast = disk / "ballast"
    fill(ballast)
    failed = server.finished(execution_id)
    assert failed["status"] == "failed"
    assert "No space left on device" in failed["error_message"]

    ballast.unlink()
    # The partial result is removed after the failure is recorded.
    deadline = time.monotonic() + LIMIT_S
    while any(execution_id in folder and "0" in files for folder, _, files in os.walk(disk)):
        assert time.monotonic() < deadline, "a partial result remains on the disk"
        time.sleep(0.05)
    server.retry(execution_id)
    server.completed(execution_id)
    folder = disk / "results" / WORKFLOW / execution_id
    dataset = (
        xr.open_zarr(folder / "results.zarr").load()
        if output_format == "zarr"
        else xr.open_dataset(folder / "results.nc").load()
    )
    assert dataset["t2m"].notnull().all() and dataset["z500"].notnull().all()


def test_a_request_that_does_not_fit_at_the_moment_is_refused_with_503(
    server: Server, disk: Path
) -> None:
    """Without the results of other executions there would be enough space."""
    parameters = {"n_steps": 40, "seeds": [1], "variables": ["t2m", "z500"]}
    parameters["output_format"] = "zarr"
    server.completed(server.submit(**parameters))
    free = os.statvfs(disk).f_bavail * os.statvfs(disk).f_frsize
    parameters["n_steps"] = free // (2 * 4 * GRID["n_lat"] * GRID["n_lon"]) + 2
    response = server.http.post(f"/v1/infer/{WORKFLOW}", json={"parameters": parameters})
    assert response.status_code == 503, response.text
    assert "Retry-After" in response.headers
