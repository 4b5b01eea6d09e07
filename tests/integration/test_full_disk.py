"""A disk that fills up while results are written: nothing is lost, and a retry finishes it."""

from __future__ import annotations

import subprocess
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


@pytest.mark.parametrize("output_format", ["zarr", "netcdf4"])
def test_a_disk_that_fills_up_fails_the_execution_and_a_retry_finishes_it(
    server: Server, disk: Path, output_format: str
) -> None:
    asked = {"n_steps": 30, "seeds": [1], "variables": ["t2m", "z500"]}
    execution_id = server.submit(**asked, output_format=output_format)
    server.until(execution_id, lambda s: (s["progress"] or {}).get("current_step", 0) >= 3)
    ballast = disk / "ballast"
    with ballast.open("wb") as file:
        try:
            while True:
                file.write(bytes(4096))
                file.flush()
        except OSError:
            pass  # full
    failed = server.finished(execution_id)
    assert failed["status"] == "failed"
    assert "No space left on device" in failed["error_message"]

    ballast.unlink()
    url = f"/v1/infer/{WORKFLOW}/{execution_id}"
    # What half a result took is free again.
    assert not list((disk / "results").rglob(f"*{execution_id}*/**/c/*"))
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
    ballast = disk / "ballast"
    free = DISK_MB * 2**20
    ballast.write_bytes(bytes(free // 2))
    try:
        answer = server.http.post(
            f"/v1/infer/{WORKFLOW}",
            json={"parameters": {"n_steps": 100, "seeds": [1], "variables": ["t2m", "z500"]}},
        )
        assert answer.status_code in (422, 503), answer.text
    finally:
        ballast.unlink()
