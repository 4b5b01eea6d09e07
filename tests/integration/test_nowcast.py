"""Nowcasts that another model conditions, by synthetic models on small grids, on a real cluster."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr

from tests.integration.serving import WORKFLOW as FORECAST
from tests.integration.serving import Server, served
from workflows.stormscope import StormScopeWorkflow

pytestmark = pytest.mark.ray

NAME = "nowcast"
WORKFLOW = StormScopeWorkflow.name
GRID = {"n_lat": 19, "n_lon": 36}
REGION = {"n_y": 16, "n_x": 24, "spacing_m": 2e5, "first_y_m": -1.5e6, "first_x_m": -2.3e6}
STEP_S = 0.1
STEPS = 6
ASKED = {
    "start_time_fcn3": "2025-06-01T12:00:00Z",
    "start_time_stormscope": "2025-06-01T14:00:00Z",
    "n_steps": STEPS,
    "seeds_fcn3": [1, 2],
    "seeds_stormscope": [3, 4, 5, 6],
    "variables": ["abi13c"],
}


class Place:
    """What is served, and what it leaves on disk."""

    def __init__(self, folder: Path, **models: Any) -> None:
        self.data_dir = folder / "var"
        self.journal = folder / "journal"
        self.allowed = folder / "weights"
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
        """Read which model computed when."""
        lines = [line.split() for line in self.journal.read_text().splitlines()]
        return sorted(((m, float(b), float(e)) for m, _, b, e in lines), key=lambda step: step[1])

    def results(self, execution_id: str) -> Path:
        return self.data_dir / "results" / WORKFLOW / execution_id


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    return Place(tmp_path_factory.mktemp(NAME))


@pytest.fixture(scope="module")
def server(http_port: int, place: Place) -> Iterator[Server]:
    with served(place.args, NAME, http_port) as server:
        yield server.calling(WORKFLOW)


@pytest.fixture(scope="module")
def undisturbed(server: Server, place: Place) -> xr.Dataset:
    execution_id = server.submit(**ASKED, output_format="zarr")
    ended = server.finished(execution_id)
    assert ended["status"] == "completed", ended
    assert ended["progress"]["progress"] == (
        "4 of 4 members, 28 of 28 time steps written; fcn3: 12 of 12 hours"
    )
    return xr.open_zarr(place.results(execution_id) / "results.zarr").load()


def test_both_models_compute_at_once(undisturbed: xr.Dataset, place: Place) -> None:
    steps = place.steps()
    first_nowcast = next(began for model, began, _ in steps if model == "StormScope")
    last_hour = max(ended for model, _, ended in steps if model == "FCN3")
    assert first_nowcast < last_hour


def test_members_differ_and_netcdf_says_the_same(
    server: Server, place: Place, undisturbed: xr.Dataset
) -> None:
    values = undisturbed["abi13c"].values
    assert values.shape == (4, STEPS + 1, 16, 24)
    # All start from one image; the same member of FCN3 does not make them the same.
    assert (values[0, 0] == values[1:, 0])[:, ~np.isnan(values[0, 0])].all()
    assert len({values[member, -1].tobytes() for member in range(4)}) == 4
    execution_id = server.submit(**ASKED, output_format="netcdf4")
    assert server.finished(execution_id)["status"] == "completed"
    with xr.open_dataset(place.results(execution_id) / "results.nc") as dataset:
        xr.testing.assert_equal(dataset["abi13c"].load(), undisturbed["abi13c"])
    assert sorted(path.name for path in place.results(execution_id).iterdir()) == [
        "checksums.sha256",
        "item.json",
        "metadata.json",
        "preview.png",
        "results.nc",
    ]
    assert list((place.data_dir / "work").iterdir()) == []


def test_a_killed_packager_costs_nothing(
    server: Server, place: Place, undisturbed: xr.Dataset
) -> None:
    execution_id = server.submit(**ASKED, output_format="zarr")
    server.until(execution_id, lambda s: (s["progress"] or {}).get("current_step", 0) >= 3)
    for pid in server.pids("Packager"):
        os.kill(pid, signal.SIGKILL)
    assert server.finished(execution_id, 120)["status"] == "completed"
    with xr.open_zarr(place.results(execution_id) / "results.zarr") as dataset:
        xr.testing.assert_equal(dataset["abi13c"].load(), undisturbed["abi13c"])


def test_a_cancel_stops_both_models(server: Server, place: Place, undisturbed: xr.Dataset) -> None:
    execution_id = server.submit(**{**ASKED, "n_steps": 32}, output_format="zarr")
    server.until(execution_id, lambda s: (s["progress"] or {}).get("current_step", 0) >= 2)
    server.http.delete(f"/v1/infer/{WORKFLOW}/{execution_id}")
    assert server.finished(execution_id)["status"] == "cancelled"
    # Whatever is submitted next gets both models at once.
    again = server.submit(**ASKED, output_format="zarr")
    assert server.finished(again)["status"] == "completed"
    with xr.open_zarr(place.results(again) / "results.zarr") as dataset:
        xr.testing.assert_equal(dataset["abi13c"].load(), undisturbed["abi13c"])


def test_without_its_interpolation_fcn3_forecasts_all_the_same(
    http_port: int, tmp_path: Path
) -> None:
    place = Place(tmp_path)
    place.args["models"]["interpolation"] = {
        "loader": "tests.integration.standins:hourly_once_allowed",
        "options": {"allowed": str(place.allowed)},
    }
    place.args["data_sources"] = {
        "goes": {"loader": "tests.integration.standins:gappy_goes", "options": REGION}
    }
    name = "hourly"
    with served(place.args, name, http_port, ready=FORECAST) as server:
        nowcasts = server.calling(WORKFLOW)
        state = server.http.get("/readiness").json()["detail"]["workflows"][WORKFLOW]
        assert not state["ready"]
        reason = f"interpolation could not be loaded: FileNotFoundError: no weights at {tmp_path}"
        assert reason in state["reason"]
        forecast = server.submit(n_steps=1, n_samples=1, output_format="zarr")
        assert server.finished(forecast)["status"] == "completed"
        failed = nowcasts.finished(nowcasts.submit(**ASKED))
        assert failed["status"] == "failed"
        assert "no weights at" in failed["error_message"]

        place.allowed.touch()
        nowcasts.until_ready(WORKFLOW)
        # What was wrong with the image is told as soon as somebody could compute with it.
        failed = nowcasts.finished(nowcasts.submit(**ASKED))
        assert failed["status"] == "failed"
        assert "goes19 has gaps at 2025-06-01T14:00:00: abi03c at 4 of" in failed["error_message"]


def test_in_turn_no_model_computes_while_the_other_does(http_port: int, tmp_path: Path) -> None:
    place = Place(tmp_path, in_turn=True)
    with served(place.args, "turns", http_port) as server:
        nowcasts = server.calling(WORKFLOW)
        executions = [nowcasts.submit(**ASKED, output_format="zarr") for _ in range(2)]
        forecast = server.submit(n_steps=1, n_samples=1, output_format="zarr")
        for execution_id in executions:
            assert nowcasts.finished(execution_id)["status"] == "completed"
        assert server.finished(forecast)["status"] == "completed"
    steps = place.steps()
    assert len(steps) == 2 * (2 * (2 + STEPS) + 4 * STEPS)
    for (_, _, ended), (_, began, _) in zip(steps, steps[1:], strict=False):
        assert began >= ended
