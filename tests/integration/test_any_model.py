"""Forecasts by models that only the configuration names, through the server."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr

from deployments.models.buffer_pool import BufferPool
from deployments.models.forecast import Forecaster
from deployments.models.messages import MemberJob
from tests.integration.serving import Server, served
from tests.models.earth2studio_models import drawing, persistence, random_source
from workflows.base import Plan

pytestmark = pytest.mark.ray

NAME = "any_model"
MODULE = "tests.models.earth2studio_models"
START = "2025-01-01T00:00:00"
PERTURBATION = {
    "loader": "earth2studio.perturbation:Gaussian",
    "options": {"noise_amplitude": 0.5},
}


class Setup:
    """The settings of a server with three models that it does not know."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.journal = folder / "journal"
        common = {"num_gpus": 0.0, "checkpoint_steps": 3}
        self.args: dict[str, Any] = {
            "data_dir": str(folder / "var"),
            "models": {
                "six_hourly": {"loader": f"{MODULE}:persistence", **common, "replicas": 2},
                "daily": {
                    "loader": f"{MODULE}:persistence",
                    "options": {"history": 2, "step_hours": 24},
                    **common,
                },
                "drawing": {
                    "loader": f"{MODULE}:drawing",
                    "options": {"step_s": 0.1, "journal": str(self.journal)},
                    **common,
                },
            },
            "data_sources": {
                "random": {"loader": f"{MODULE}:random_source"},
                "finer": {"loader": f"{MODULE}:random_source", "options": {"factor": 3}},
            },
            "workflows": {
                "forecasts": {
                    "ensemble": {
                        "model": "six_hourly",
                        "data_sources": ["random", "finer"],
                        "perturbation": PERTURBATION,
                        "diagnostics": [
                            {
                                "loader": "earth2studio.models.dx:DerivedWS",
                                "options": {"levels": [500]},
                            }
                        ],
                    },
                    "from_two_days": {"model": "daily", "data_sources": ["random"]},
                    "drawn": {"model": "drawing", "data_sources": ["random"], "cycle_hours": 12},
                },
                "exposed": ["ensemble", "from_two_days", "drawn"],
            },
        }

    def dataset(self, workflow: str, execution_id: str) -> xr.Dataset:
        path = self.folder / "var" / "results" / workflow / execution_id / "results.zarr"
        return xr.open_zarr(path, consolidated=True).load()


@pytest.fixture(scope="module")
def setup(tmp_path_factory: pytest.TempPathFactory) -> Setup:
    return Setup(tmp_path_factory.mktemp(NAME))


@pytest.fixture(scope="module")
def server(http_port: int, setup: Setup) -> Iterator[Server]:
    with served(setup.args, NAME, http_port) as server:
        yield server


def client(server: Server, workflow: str) -> Server:
    return server.client_of(workflow)


def expected(setup: Setup, workflow: str, execution_id: str, model: Any, **parts: Any) -> Any:
    """Return the members of an execution computed here, from its stored plan."""
    import sqlite3

    with sqlite3.connect(setup.folder / "var" / "executions.sqlite") as store:
        [(text,)] = store.execute(
            "SELECT plan FROM executions WHERE execution_id = ?", [execution_id]
        )
    plan = Plan.model_validate_json(text if isinstance(text, str) else json.dumps(text))
    times = [plan.start() + np.timedelta64(hour, "h") for hour in plan.history_hours]
    state = random_source()(np.array(times), list(plan.input_variables)).values.astype(np.float32)
    members = []
    for member in plan.members:
        job = MemberJob(
            execution_id=execution_id, plan=plan, member=member, initial_conditions="", fence=1
        )
        steps = Forecaster(model, **parts).steps(job, state, BufferPool(), lambda *_: None)
        members.append([step.copy() for step in steps])
    return np.array(members)


def assert_equal(found: xr.Dataset, wanted: Any) -> None:
    for number, name in enumerate(found.data_vars):
        stored = np.roll(wanted[:, :, number], wanted.shape[-1] // 2, axis=-1)
        assert np.array_equal(found[name].values, stored), name


def test_an_ensemble_equals_a_plain_loop(server: Server, setup: Setup) -> None:
    from functools import partial

    from earth2studio.models.dx import DerivedWS
    from earth2studio.perturbation import Gaussian

    ensemble = client(server, "ensemble")
    parameters = {"start_time": START, "n_steps": 4, "output_format": "zarr"}
    wanted = ["t2m", "ws500"]
    ids = [ensemble.submit(seeds=[7, 8, 9], variables=wanted, **parameters) for _ in range(2)]
    for execution_id in ids:
        ensemble.completed(execution_id)
    found = [setup.dataset("ensemble", execution_id) for execution_id in ids]
    assert found[0].sizes == {"ensemble": 3, "time": 5, "lat": 19, "lon": 36}
    assert found[0]["ws500"].attrs["long_name"] == "ws500"
    loop = expected(
        setup,
        "ensemble",
        ids[0],
        persistence(),
        perturbation=partial(Gaussian, 0.5),
        diagnostics=[DerivedWS(levels=[500])],
    )
    for each in found:
        assert_equal(each[wanted], loop)


def test_a_model_that_starts_from_two_days(server: Server, setup: Setup) -> None:
    daily = client(server, "from_two_days")
    execution_id = daily.submit(start_time=START, n_steps=2, output_format="zarr", variables=None)
    daily.completed(execution_id)
    found = setup.dataset("from_two_days", execution_id)
    assert [str(time)[:13] for time in found["time"].values] == [
        f"2025-01-0{day}T00" for day in (1, 2, 3)
    ]
    assert_equal(found, expected(setup, "from_two_days", execution_id, persistence(2, 24)))


def test_a_member_resumes_after_a_kill(server: Server, setup: Setup) -> None:
    drawn = client(server, "drawn")
    execution_id = drawn.submit(
        start_time=START, n_steps=40, seeds=[5], output_format="zarr", variables=["t2m"]
    )
    drawn.until(execution_id, lambda s: (s["progress"] or {}).get("current_step", 0) >= 10)
    for pid in drawn.pids("Model-drawing"):
        os.kill(pid, signal.SIGKILL)
    drawn.completed(execution_id)
    assert_equal(
        setup.dataset("drawn", execution_id), expected(setup, "drawn", execution_id, drawing())
    )
    steps = setup.journal.read_text().split()
    assert len(steps) < 40 + 12, "it started from the beginning"


def test_a_request_may_choose_another_source(server: Server, setup: Setup) -> None:
    ensemble = client(server, "ensemble")
    execution_id = ensemble.submit(
        start_time=START, n_steps=1, n_samples=1, data_source="finer", output_format="zarr"
    )
    ensemble.completed(execution_id)
    assert setup.dataset("ensemble", execution_id).attrs["data_source"] == "finer"


@pytest.mark.parametrize(
    ("workflow", "parameters", "reason"),
    [
        ("ensemble", {"start_time": "2025-01-01T03:00:00"}, "exist at 00, 06, 12 and 18 UTC"),
        ("drawn", {"start_time": "2025-01-01T06:00:00"}, "exist at 00 and 12 UTC only"),
        ("ensemble", {"variables": ["q500"]}, "allowed are t2m, u10m"),
        ("ensemble", {"data_source": "ifs"}, "allowed are random, finer"),
        ("from_two_days", {"n_samples": 2}, "daily is deterministic"),
    ],
)
def test_what_the_model_cannot_do_is_refused(
    server: Server, workflow: str, parameters: dict[str, Any], reason: str
) -> None:
    body = {"parameters": {"start_time": START, **parameters}}
    answer = server.http.post(f"/v1/infer/{workflow}", json=body)
    assert answer.status_code == 422
    assert reason in answer.text


def test_the_api_describes_the_forecasts(server: Server) -> None:
    listed = server.http.get("/v1/infer/workflows").json()["workflows"]
    assert listed["ensemble"] == "Forecast by six_hourly from random or finer"
    schema = server.http.get("/v1/infer/workflows/from_two_days/schema").json()
    assert schema["properties"]["n_steps"]["description"].startswith("Number of steps of 24 hours")
