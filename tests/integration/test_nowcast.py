"""Nowcasts conditioned by another model: synthetic models on small grids, on a real cluster."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr

from tests.integration.serving import LIMIT_S, Server, served, steps_written
from tests.integration.serving import WORKFLOW as FORECAST
from workflows.stormscope import StormScopeWorkflow

pytestmark = [pytest.mark.ray, pytest.mark.slow]

NAME = "nowcast"
WORKFLOW = StormScopeWorkflow.name
GRID = {"n_lat": 19, "n_lon": 36}
REGION = {"n_y": 16, "n_x": 24, "spacing_m": 2e5, "first_y_m": -1.5e6, "first_x_m": -2.3e6}
STEP_S = 0.1
STEPS = 6
PARAMETERS = {
    "start_time_fcn3": "2025-06-01T12:00:00Z",
    "start_time_stormscope": "2025-06-01T14:00:00Z",
    "n_steps": STEPS,
    "seeds_fcn3": [1, 2],
    "seeds_stormscope": [3, 4, 5, 6],
    "variables": ["abi13c"],
}


class Setup:
    """The settings of a server with slow models, and the files that it writes."""

    def __init__(self, folder: Path, **models: Any) -> None:
        self.data_dir = folder / "var"
        self.journal = folder / "journal"
        self.weights = folder / "weights"
        self.complete = folder / "complete"
        slow = {"step_s": STEP_S, "journal": str(self.journal)}
        self.args: dict[str, Any] = {
            "data_dir": str(self.data_dir),
            "workflows": {"exposed": [FORECAST, WORKFLOW]},
            "models": {
                "fcn3": {"grid": GRID},
                "interpolation": {
                    "loader": "benchmarks.sleeping_models:load_interpolation",
                    "options": slow,
                },
                "stormscope": {
                    "loader": "benchmarks.sleeping_models:load_stormscope",
                    "options": {**slow, "grid": REGION},
                    "num_gpus": 0.0,
                    "grid": REGION,
                },
                **models,
            },
        }

    def steps(self) -> list[tuple[str, float, float]]:
        """Return model, start and end of each time step, by start."""
        text = self.journal.read_text() if self.journal.exists() else ""
        lines = [line.split() for line in text.splitlines()]
        steps = [(model, float(start), float(end)) for model, _, start, end in lines]
        return sorted(steps, key=lambda step: step[1])

    def results(self, execution_id: str) -> Path:
        return self.data_dir / "results" / WORKFLOW / execution_id

    def image(self, execution_id: str) -> xr.DataArray:
        with xr.open_zarr(self.results(execution_id) / "results.zarr") as dataset:
            return dataset["abi13c"].load()


@pytest.fixture(scope="module")
def setup(tmp_path_factory: pytest.TempPathFactory) -> Setup:
    return Setup(tmp_path_factory.mktemp(NAME))


@pytest.fixture(scope="module")
def server(http_port: int, setup: Setup) -> Iterator[Server]:
    with served(setup.args, NAME, http_port) as server:
        yield server.client_of(WORKFLOW)


@pytest.fixture(scope="module")
def undisturbed(server: Server, setup: Setup) -> xr.DataArray:
    """The result of PARAMETERS."""
    execution_id = server.submit(**PARAMETERS, output_format="zarr")
    ended = server.completed(execution_id)
    assert ended["progress"]["progress"] == (
        "4 of 4 members, 28 of 28 time steps written; fcn3: 12 of 12 hours"
    )
    return setup.image(execution_id)


def test_both_models_compute_concurrently(undisturbed: xr.DataArray, setup: Setup) -> None:
    steps = setup.steps()
    first_nowcast = next(start for model, start, _ in steps if model == "StormScope")
    last_hour = max(end for model, _, end in steps if model == "FCN3")
    assert first_nowcast < last_hour


def test_members_differ_and_both_formats_contain_the_same_arrays(
    server: Server, setup: Setup, undisturbed: xr.DataArray
) -> None:
    values = undisturbed.values
    assert values.shape == (4, STEPS + 1, 16, 24)
    # All start from one image, and members with the same conditioning differ, too.
    assert (values[0, 0] == values[1:, 0])[:, ~np.isnan(values[0, 0])].all()
    assert len({values[member, -1].tobytes() for member in range(4)}) == 4
    execution_id = server.submit(**PARAMETERS, output_format="netcdf4")
    server.completed(execution_id)
    with xr.open_dataset(setup.results(execution_id) / "results.nc") as dataset:
        xr.testing.assert_equal(dataset["abi13c"].load(), undisturbed)
    assert sorted(path.name for path in setup.results(execution_id).iterdir()) == [
        "checksums.sha256",
        "collection.json",
        "item.json",
        "metadata.json",
        "preview.png",
        "results.nc",
    ]
    # Working files are removed after the end is recorded.
    deadline = time.monotonic() + LIMIT_S
    while list((setup.data_dir / "work").iterdir()):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_nowcast_survives_the_kill_of_all_packagers(
    server: Server, setup: Setup, undisturbed: xr.DataArray
) -> None:
    execution_id = server.submit(**PARAMETERS, output_format="zarr")
    server.until(execution_id, lambda s: steps_written(s) >= 3)
    server.kill("Packager")
    server.completed(execution_id)
    xr.testing.assert_equal(setup.image(execution_id), undisturbed)


def test_a_cancel_stops_both_models(
    server: Server, setup: Setup, undisturbed: xr.DataArray
) -> None:
    execution_id = server.submit(**{**PARAMETERS, "n_steps": 32}, output_format="zarr")
    server.until(execution_id, lambda s: steps_written(s) >= 2)
    server.cancel(execution_id)
    assert server.finished(execution_id)["status"] == "cancelled"
    next_id = server.submit(**PARAMETERS, output_format="zarr")
    server.completed(next_id)
    xr.testing.assert_equal(setup.image(next_id), undisturbed)


@pytest.fixture(scope="module")
def one_gpu_setup(tmp_path_factory: pytest.TempPathFactory) -> Setup:
    """Both models take turns on one GPU; interpolation and images can be taken away."""
    setup = Setup(tmp_path_factory.mktemp("one-gpu"), in_turn=True)
    interpolation = setup.args["models"]["interpolation"]
    interpolation["loader"] = "tests.integration.standins:load_sleeping_interpolation_if_allowed"
    interpolation["options"] = {**interpolation["options"], "allowed": str(setup.weights)}
    setup.args["data_sources"] = {
        "goes": {
            "loader": "tests.integration.standins:load_gappy_goes",
            "options": {**REGION, "complete": str(setup.complete)},
        }
    }
    return setup


@pytest.fixture(scope="module")
def one_gpu(http_port: int, one_gpu_setup: Setup) -> Iterator[Server]:
    with served(one_gpu_setup.args, "one-gpu", http_port, ready=FORECAST) as server:
        yield server


def test_forecasts_run_without_the_interpolation_that_nowcasts_need(
    one_gpu: Server, one_gpu_setup: Setup
) -> None:
    nowcasts = one_gpu.client_of(WORKFLOW)
    weights = one_gpu_setup.weights
    state = one_gpu.http.get("/readiness").json()["detail"]["workflows"][WORKFLOW]
    assert not state["ready"]
    reason = f"interpolation could not be loaded: FileNotFoundError: no weights at {weights}"
    assert reason in state["reason"]
    one_gpu.completed(one_gpu.submit(n_steps=1, n_samples=1, output_format="zarr"))
    failed = nowcasts.finished(nowcasts.submit(**PARAMETERS))
    assert failed["status"] == "failed"
    assert "no weights at" in failed["error_message"]
    weights.touch()
    nowcasts.until_ready(WORKFLOW)


def test_images_with_gaps_are_refused(one_gpu: Server, one_gpu_setup: Setup) -> None:
    one_gpu_setup.weights.touch()
    nowcasts = one_gpu.client_of(WORKFLOW)
    nowcasts.until_ready(WORKFLOW)
    failed = nowcasts.finished(nowcasts.submit(**PARAMETERS))
    assert failed["status"] == "failed"
    assert "goes19 has gaps at 2025-06-01T14:00:00: abi03c at 4 of" in failed["error_message"]


def test_models_that_share_a_gpu_compute_one_at_a_time(
    one_gpu: Server, one_gpu_setup: Setup
) -> None:
    one_gpu_setup.weights.touch()
    one_gpu_setup.complete.touch()
    nowcasts = one_gpu.client_of(WORKFLOW)
    nowcasts.until_ready(WORKFLOW)
    before = len(one_gpu_setup.steps())
    executions = [nowcasts.submit(**PARAMETERS, output_format="zarr") for _ in range(2)]
    forecast = one_gpu.submit(n_steps=1, n_samples=1, output_format="zarr")
    for execution_id in executions:
        nowcasts.completed(execution_id)
    one_gpu.completed(forecast)
    steps = one_gpu_setup.steps()[before:]
    assert len(steps) == 2 * (2 * (2 + STEPS) + 4 * STEPS)
    for (_, _, end), (_, next_start, _) in zip(steps, steps[1:], strict=False):
        assert next_start >= end
