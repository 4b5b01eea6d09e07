"""Users' own workflow classes through the whole graph: good ones and every kind of bad one."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr

from tests.integration.serving import LIMIT_S, Server, served, steps_written

pytestmark = [pytest.mark.ray, pytest.mark.models, pytest.mark.slow]

CLASSES = "tests.integration.custom_classes"
GRACE_S = 1.0


class Setup:
    """The settings of the server, and the files that it and its classes write."""

    def __init__(self, folder: Path) -> None:
        self.data_dir = folder / "var"
        self.journal = folder / "journal"
        self.weights = folder / "weights"
        custom = [
            {"class": f"{CLASSES}:Scripted", "config": {"gain": 2, "journal": str(self.journal)}},
            {"class": f"{CLASSES}:Reporting"},
            {"class": f"{CLASSES}:Unloadable", "config": {"weights": str(self.weights)}},
            {"class": f"{CLASSES}_without_a_module:Missing", "name": "missing"},
            {"class": f"{CLASSES}:Scripted", "name": "misconfigured", "config": {"gains": 2}},
        ]
        common = {"num_gpus": 0.0, "cancel_grace_s": GRACE_S}
        self.args: dict[str, Any] = {
            "data_dir": str(self.data_dir),
            "workflows": {
                "exposed": ["scripted", "reporting"],
                "warmup": ["unloadable", "missing", "misconfigured"],
                "custom": [each | common for each in custom],
            },
            "limits": {"max_output_gb": 1.0},
        }

    def runs(self) -> list[tuple[str, str]]:
        """Return behaviour and process id of each run of `Scripted`."""
        lines = self.journal.read_text().splitlines() if self.journal.exists() else []
        return [(behaviour, pid) for behaviour, pid in map(str.split, lines)]


@pytest.fixture(scope="module")
def setup(tmp_path_factory: pytest.TempPathFactory) -> Setup:
    return Setup(tmp_path_factory.mktemp("custom"))


@pytest.fixture(scope="module")
def server(http_port: int, setup: Setup) -> Iterator[Server]:
    with served(setup.args, "custom", http_port) as server:
        yield server


@pytest.fixture
def scripted(server: Server) -> Server:
    return server.client_of("scripted")


@pytest.fixture
def reporting(server: Server) -> Server:
    return server.client_of("reporting")


def run(server: Server, **parameters: Any) -> dict[str, Any]:
    return server.completed(server.submit(**parameters))


@pytest.mark.parametrize("output_format", ["zarr", "netcdf4"])
def test_a_class_without_a_base_class_runs(
    scripted: Server, setup: Setup, output_format: str
) -> None:
    ended = run(scripted, n_steps=3, output_format=output_format)
    assert ended["progress"]["current_step"] == ended["progress"]["total_steps"] == 3
    folder = setup.data_dir / "results" / "scripted" / ended["execution_id"]
    if output_format == "zarr":
        dataset = xr.open_zarr(folder / "results.zarr", consolidated=True)
    else:
        dataset = xr.open_dataset(folder / "results.nc")
    with dataset:
        assert dataset["u10m"].dims == ("time", "lead_time", "lat", "lon")
        assert np.array_equal(dataset["t2m"][0, :, 0, 0], [0, 2, 4])
    manifest = scripted.manifest(ended["execution_id"])
    assert (manifest["status"], manifest["warnings"]) == ("completed", [])
    for file in manifest["output_files"]:
        path = f"/v1/infer/scripted/{ended['execution_id']}/results/{file['path']}"
        assert len(scripted.http.get(path).content) == file["size"]


def test_a_class_on_earth2studios_base_class_runs(reporting: Server, setup: Setup) -> None:
    execution_id = reporting.submit(start_time=["2025-01-01T02:00:00+02:00"], n_steps=4)
    status = reporting.until(execution_id, lambda s: steps_written(s) == 2)
    assert status["progress"]["progress"] == "hour 1"
    reporting.completed(execution_id)
    folder = setup.data_dir / "results" / "reporting" / execution_id
    with xr.open_dataset(folder / "results.nc") as dataset:
        assert dataset["time"].values[0] == np.datetime64("2025-01-01")
        assert dataset["crs"].attrs["grid_mapping_name"] == "latitude_longitude"
        assert dataset["z500"].attrs["grid_mapping"] == "crs"
    manifest = reporting.manifest(execution_id)
    assert f"{execution_id}/notes/tracks.txt" in [f["path"] for f in manifest["output_files"]]
    assert manifest["warnings"] == ["outside: a link that leads out of the results"]
    files = f"/v1/infer/reporting/{execution_id}/results"
    assert reporting.http.get(f"{files}/notes/tracks.txt").text == "none found"
    assert reporting.http.get(f"{files}/outside").status_code == 403


def test_a_class_validates_parameters_before_a_request_is_queued(reporting: Server) -> None:
    response = reporting.http.post("/v1/infer/reporting", json={"parameters": {"n_steps": 3}})
    assert response.status_code == 422
    assert "n_steps must be even, not 3" in response.text
    response = reporting.http.post("/v1/infer/reporting", json={"parameters": {"n_step": 4}})
    assert response.status_code == 422
    assert "start_time, n_steps, output_format" in response.text


def test_a_class_is_asked_what_its_schema_cannot_say(scripted: Server) -> None:
    for parameters in ({"link": "no link"}, {"since": "2025-01-01T00:00:00"}):
        response = scripted.http.post("/v1/infer/scripted", json={"parameters": parameters})
        assert response.status_code == 422, parameters
    run(scripted, link="https://example.org/a", since="2025-01-01T00:00:00+02:00")


@pytest.mark.parametrize(
    ("behaviour", "stage", "reason"),
    [
        ("raises", "inference", "RuntimeError: deliberate failure"),
        ("raises_unprintable", "inference", "RuntimeError: cannot read weights-"),
        ("exits", "inference", "SystemExit: 3"),
        ("oversized", "inference", "this server accepts 1 GB"),
        ("incomplete", "package", "t2m: 25 % of its values were not written"),
    ],
)
def test_a_failed_run_reports_its_reason_and_the_next_one_completes(
    scripted: Server, behaviour: str, stage: str, reason: str
) -> None:
    ended = scripted.finished(scripted.submit(behaviour=behaviour, required=True))
    assert (ended["status"], ended["stage"]) == ("failed", stage), ended
    assert reason in ended["error_message"]
    run(scripted)


def test_an_incomplete_result_is_available(scripted: Server, setup: Setup) -> None:
    ended = scripted.finished(scripted.submit(behaviour="incomplete", n_steps=3, required=True))
    manifest = scripted.manifest(ended["execution_id"])
    assert manifest["status"] == "failed"
    assert manifest["coverage"] == {"t2m": 2 / 3, "u10m": 2 / 3}
    folder = setup.data_dir / "results" / "scripted" / ended["execution_id"]
    with xr.open_zarr(folder / "results.zarr") as dataset:
        assert np.array_equal(dataset["t2m"][0, :, 0, 0], [0, 2, np.nan], equal_nan=True)


@pytest.mark.parametrize(
    ("behaviour", "coverage", "warnings"),
    [
        ("normal", {"t2m": 1.0, "u10m": 1.0}, []),
        ("one_nan", {"t2m": 1.0, "u10m": 1.0}, ["t2m: everything written is NaN"]),
        (
            "region",
            {"t2m": 1 / 8, "u10m": 0.0},
            [
                "t2m: 87.5 % of its values were not written",
                "u10m: 100 % of its values were not written",
            ],
        ),
        ("writes_nothing", {}, ["the workflow wrote no variables"]),
    ],
)
def test_a_completed_run_says_what_is_missing(
    scripted: Server, behaviour: str, coverage: dict[str, float], warnings: list[str]
) -> None:
    manifest = scripted.manifest(run(scripted, behaviour=behaviour)["execution_id"])
    assert manifest["status"] == "completed"
    assert (manifest["coverage"], manifest["warnings"]) == (coverage, warnings)


def test_a_run_that_hangs_is_cancelled_and_the_next_one_completes(
    scripted: Server, setup: Setup
) -> None:
    execution_id = scripted.submit(behaviour="hangs")
    scripted.until(execution_id, lambda _: "hangs" in [behaviour for behaviour, _ in setup.runs()])
    scripted.cancel(execution_id)
    assert scripted.finished(execution_id)["status"] == "cancelled"
    run(scripted)
    (_, hung), (_, next_pid) = setup.runs()[-2:]
    assert hung != next_pid
    assert not (setup.data_dir / "results" / "scripted" / execution_id).exists()


def test_a_run_that_writes_steps_is_cancelled_without_losing_its_process(
    scripted: Server, setup: Setup
) -> None:
    execution_id = scripted.submit(n_steps=1000, step_s=0.05)
    scripted.until(execution_id, lambda s: steps_written(s) > 2)
    scripted.cancel(execution_id)
    assert scripted.finished(execution_id)["status"] == "cancelled"
    run(scripted)
    assert len({pid for _, pid in setup.runs()[-2:]}) == 1


def test_a_run_that_kills_its_process_fails_and_the_next_one_completes(
    scripted: Server, setup: Setup
) -> None:
    ended = scripted.finished(scripted.submit(behaviour="kills_process"))
    assert (ended["status"], ended["stage"]) == ("failed", "inference")
    assert "the process that ran the workflow has ended" in ended["error_message"]
    assert "given up after 3 attempts" in ended["error_message"]
    run(scripted)
    assert not list((setup.data_dir / "results" / ".partial").glob(f"{ended['execution_id']}/*"))


def test_classes_that_cannot_be_loaded_do_not_affect_others(server: Server) -> None:
    missing, misconfigured = server.client_of("missing"), server.client_of("misconfigured")
    response = missing.http.post("/v1/infer/missing", json={})
    assert response.status_code == 503
    assert "Retry-After" in response.headers
    # A class that can be described without an instance accepts requests, which then fail.
    ended = misconfigured.finished(misconfigured.submit())
    assert ended["status"] == "failed"
    assert "config.gains: unknown; there are gain, journal" in ended["error_message"]
    run(server.client_of("scripted"))


def test_loading_a_class_is_retried(server: Server, setup: Setup) -> None:
    unloadable = server.client_of("unloadable")
    ended = unloadable.finished(unloadable.submit())
    assert "could not be loaded: FileNotFoundError: No such file" in ended["error_message"], ended
    assert str(setup.weights) not in ended["error_message"]
    setup.weights.write_text("heavy")
    deadline = time.monotonic() + LIMIT_S
    while unloadable.finished(unloadable.submit())["status"] != "completed":
        assert time.monotonic() < deadline
        time.sleep(0.5)


def test_executions_of_classes_are_replayed_listed_and_purged(
    scripted: Server, setup: Setup
) -> None:
    url = "/v1/infer/scripted"
    key = {"Idempotency-Key": "custom-1"}
    execution_id = scripted.http.post(url, json={}, headers=key).json()["execution_id"]
    replayed = scripted.http.post(url, json={}, headers=key)
    assert replayed.json()["execution_id"] == execution_id
    assert replayed.headers["Idempotency-Replayed"] == "true"
    scripted.completed(execution_id)
    listed = scripted.http.get(url, params={"status": "completed"}).json()["executions"]
    assert listed[0]["execution_id"] == execution_id
    scripted.purge(execution_id)
    assert not (setup.data_dir / "results" / "scripted" / execution_id).exists()


def test_only_exposed_workflows_are_listed(server: Server) -> None:
    listed = server.http.get("/v1/infer/workflows").json()["workflows"]
    assert list(listed) == ["scripted", "reporting"]
    assert listed["reporting"] == "Validates, reports progress and writes further files"
    assert server.http.get("/v1/infer/foundry_fcn3_workflow").status_code == 404
    schema = server.http.get("/v1/infer/workflows/scripted/schema").json()
    assert schema["properties"]["n_steps"] == {"default": 4, "title": "N Steps", "type": "integer"}
