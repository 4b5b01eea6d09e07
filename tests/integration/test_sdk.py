"""Earth2Studio's own client, unmodified, as a client of the server."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr

from tests.integration.serving import LIMIT_S, WORKFLOW, Server

pytestmark = [pytest.mark.ray, pytest.mark.models]

PARAMETERS = {
    "start_time": datetime(2025, 1, 1, 6),
    "n_steps": 2,
    "seeds": np.array([3, 9]),
    "variables": ["t2m", "z500"],
}
HOURS = np.timedelta64(6, "h")


@pytest.fixture(scope="module")
def client(shared_server: Server) -> Iterator[Any]:
    from earth2studio.serve.client.client import Earth2StudioClient

    with Earth2StudioClient(shared_server.base_url, workflow_name=WORKFLOW) as client:
        yield client


@pytest.fixture(scope="module")
def workflow(shared_server: Server) -> Any:
    from earth2studio.serve.client.e2client import RemoteEarth2Workflow

    return RemoteEarth2Workflow(shared_server.base_url, WORKFLOW, device="cpu")


@pytest.fixture(scope="module")
def remote(workflow: Any) -> Any:
    return workflow(**PARAMETERS, output_format="zarr")


@pytest.fixture(scope="module")
def with_lead_time(workflow: Any) -> Any:
    return workflow(**PARAMETERS, output_format="zarr", time_layout="lead_time")


def on_disk(data_dir: Path, execution_id: str) -> xr.Dataset:
    return xr.open_zarr(data_dir / "results" / WORKFLOW / execution_id / "results.zarr").load()


def test_health(client: Any) -> None:
    before = datetime.now(UTC)
    health = client.health_check()

    assert health.status == "healthy"
    assert abs((health.timestamp - before).total_seconds()) < 60


def test_submit_wait_and_download_netcdf(client: Any, remote: Any, tmp_path: Path) -> None:
    from earth2studio.serve.client.models import InferenceRequest, RequestStatus

    request = InferenceRequest(parameters={**PARAMETERS, "output_format": "netcdf4"})
    submitted = client.submit_inference_request(request)
    assert submitted.status is RequestStatus.QUEUED
    assert client.get_request_status(submitted.execution_id).status in set(RequestStatus)

    results = client.wait_for_completion(submitted.execution_id, poll_interval=0.2, timeout=LIMIT_S)
    assert results.status is RequestStatus.COMPLETED
    assert results.request_id == submitted.execution_id
    assert results.completion_time is not None
    assert results.execution_time_seconds > 0
    ended = client.get_request_status(submitted.execution_id)
    assert (ended.progress.current_step, ended.progress.total_steps) == (6, 6)

    assert client.get_request_results(submitted.execution_id) == results
    (path,) = results.result_paths()
    assert path.endswith("results.nc")
    downloaded = tmp_path / "results.nc"
    downloaded.write_bytes(client.download_result(results, path).getvalue())
    # Not `as_dataset`: it passes bytes to xarray's netCDF4 engine, which refuses them.
    with xr.open_dataset(downloaded, engine="netcdf4") as dataset:
        as_zarr = remote.as_dataset()
        for name in ("t2m", "z500", "time", "ensemble", "seed", "lat", "lon"):
            assert np.array_equal(dataset[name], as_zarr[name])


def test_every_file_of_the_results_can_be_downloaded(client: Any, remote: Any) -> None:
    results = remote._get_result()
    for file in results.output_files:
        assert len(client.download_result(results, file.path).getvalue()) == file.size


def test_refusals_raise_the_clients_own_errors(client: Any) -> None:
    from earth2studio.serve.client.exceptions import (
        Earth2StudioAPIError,
        InferenceRequestNotFoundError,
    )
    from earth2studio.serve.client.models import InferenceRequest

    with pytest.raises(InferenceRequestNotFoundError):
        client.get_request_status("exec_1_00000000")
    with pytest.raises(Earth2StudioAPIError) as refused:
        client.submit_inference_request(InferenceRequest(parameters={"n_steps": 0}))
    assert refused.value.status_code == 422


def test_as_dataset(remote: Any, data_dir: Path) -> None:
    dataset = remote.as_dataset().load()

    assert dict(dataset.sizes) == {"ensemble": 2, "time": 3, "lat": 8, "lon": 16}
    xr.testing.assert_identical(dataset, on_disk(data_dir, remote.execution_id))
    start = np.datetime64("2025-01-01T06")
    assert list(dataset["time"].values) == [start, start + HOURS, start + 2 * HOURS]
    assert list(dataset["seed"].values) == [3, 9]
    assert np.isfinite(dataset["t2m"]).all()


def test_as_data_source(with_lead_time: Any, data_dir: Path) -> None:
    source = with_lead_time.as_data_source()
    start = np.datetime64("2025-01-01T06", "ns")
    fields = source(np.array([start + HOURS]), np.array(["z500"]))

    written = on_disk(data_dir, with_lead_time.execution_id)["z500"]
    assert fields.sizes["time"] == fields.sizes["variable"] == 1
    field = fields.isel(time=0, variable=0).transpose("ensemble", "lat", "lon")
    assert np.array_equal(field, written.isel(time=0, lead_time=1))


def test_as_model(with_lead_time: Any, data_dir: Path) -> None:
    model = with_lead_time.as_model()
    steps = list(model.create_iterator())

    written = on_disk(data_dir, with_lead_time.execution_id)
    assert len(steps) == 3
    for step, (state, coords) in enumerate(steps):
        assert coords["time"] == [np.datetime64("2025-01-01T06")]
        assert coords["lead_time"] == [step * HOURS]
        for index, name in enumerate(coords["variable"]):
            fields = state.select(list(coords).index("variable"), index).squeeze()
            expected = written[str(name)].isel(time=0, lead_time=step)
            assert np.array_equal(fields.numpy(), expected.values)


def test_both_time_layouts_contain_the_same_values(
    remote: Any, with_lead_time: Any, data_dir: Path
) -> None:
    by_time = on_disk(data_dir, remote.execution_id)
    by_lead_time = on_disk(data_dir, with_lead_time.execution_id)

    assert np.array_equal(by_time["t2m"], by_lead_time["t2m"].isel(time=0))
