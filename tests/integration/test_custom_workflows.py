"""Users' own workflow classes through the whole graph: good ones, and every way to be bad."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr

from tests.integration.serving import Server, served

pytestmark = [pytest.mark.ray, pytest.mark.models]

CLASSES = "tests.integration.custom"
GRACE_S = 1.0


class Place:
    """Where the server keeps what it has, and what its classes note."""

    def __init__(self, folder: Path) -> None:
        self.data_dir = folder / "var"
        self.journal = folder / "journal"
        self.weights = folder / "weights"
        custom = [
            {"class": f"{CLASSES}:Behaving", "config": {"gain": 2, "journal": str(self.journal)}},
            {"class": f"{CLASSES}:Talking"},
            {"class": f"{CLASSES}:Unloadable", "config": {"weights": str(self.weights)}},
            {"class": f"{CLASSES}_which_is_not_there:Missing", "name": "missing"},
            {"class": f"{CLASSES}:Behaving", "name": "misconfigured", "config": {"gains": 2}},
        ]
        usual = {"num_gpus": 0.0, "cancel_grace_s": GRACE_S}
        self.args: dict[str, Any] = {
            "data_dir": str(self.data_dir),
            "workflows": {
                "exposed": ["behaving", "talking"],
                "warmup": ["unloadable", "missing", "misconfigured"],
                "custom": [each | usual for each in custom],
            },
            "limits": {"max_output_gb": 1.0},
        }

    def pids(self) -> list[str]:
        return [line.split()[1] for line in self.journal.read_text().splitlines()]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    return Place(tmp_path_factory.mktemp("custom"))


@pytest.fixture(scope="module")
def server(http_port: int, place: Place) -> Iterator[Server]:
    with served(place.args, "custom", http_port, seconds=180) as server:
        yield server


@pytest.fixture
def behaving(server: Server) -> Server:
    return server.calling("behaving")


@pytest.fixture
def talking(server: Server) -> Server:
    return server.calling("talking")


def result_of(server: Server, execution_id: str) -> dict[str, Any]:
    answer = server.http.get(f"/v1/infer/{server.workflow}/{execution_id}/results")
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


def completes(server: Server, **parameters: Any) -> dict[str, Any]:
    ended = server.finished(server.submit(**parameters), seconds=120)
    assert ended["status"] == "completed", ended
    return ended


@pytest.mark.parametrize("output_format", ["zarr", "netcdf4"])
def test_a_class_without_a_base_is_served(
    behaving: Server, place: Place, output_format: str
) -> None:
    ended = completes(behaving, n_steps=3, output_format=output_format)
    assert ended["progress"]["current_step"] == ended["progress"]["total_steps"] == 3
    folder = place.data_dir / "results" / "behaving" / ended["execution_id"]
    if output_format == "zarr":
        dataset = xr.open_zarr(folder / "results.zarr", consolidated=True)
    else:
        dataset = xr.open_dataset(folder / "results.nc")
    with dataset:
        assert dataset["u10m"].dims == ("time", "lead_time", "lat", "lon")
        assert np.array_equal(dataset["t2m"][0, :, 0, 0], [0, 2, 4])
    manifest = result_of(behaving, ended["execution_id"])
    assert (manifest["status"], manifest["warnings"]) == ("completed", [])
    for file in manifest["output_files"]:
        path = f"/v1/infer/behaving/{ended['execution_id']}/results/{file['path']}"
        assert len(behaving.http.get(path).content) == file["size"]


def test_a_class_on_earth2studios_base_is_served(talking: Server, place: Place) -> None:
    execution_id = talking.submit(start_time=["2025-01-01T02:00:00+02:00"], n_steps=4)
    seen = talking.until(execution_id, lambda s: (s["progress"] or {}).get("current_step") == 2)
    assert seen["progress"]["progress"] == "hour 1"
    ended = talking.finished(execution_id)
    assert ended["status"] == "completed", ended
    folder = place.data_dir / "results" / "talking" / execution_id
    with xr.open_dataset(folder / "results.nc") as dataset:
        assert dataset["time"].values[0] == np.datetime64("2025-01-01")
        assert dataset["crs"].attrs["grid_mapping_name"] == "latitude_longitude"
        assert dataset["z500"].attrs["grid_mapping"] == "crs"
    manifest = result_of(talking, execution_id)
    assert f"{execution_id}/notes/tracks.txt" in [f["path"] for f in manifest["output_files"]]
    assert manifest["warnings"] == ["outside: a link that leads out of the results"]
    files = f"/v1/infer/talking/{execution_id}/results"
    assert talking.http.get(f"{files}/notes/tracks.txt").text == "none found"
    assert talking.http.get(f"{files}/outside").status_code == 403


def test_a_class_checks_parameters_before_anything_is_queued(talking: Server) -> None:
    answer = talking.http.post("/v1/infer/talking", json={"parameters": {"n_steps": 3}})
    assert answer.status_code == 422
    assert "n_steps must be even, not 3" in answer.text
    answer = talking.http.post("/v1/infer/talking", json={"parameters": {"n_step": 4}})
    assert answer.status_code == 422
    assert "start_time, n_steps, output_format" in answer.text


@pytest.mark.parametrize(
    ("how", "stage", "reason"),
    [
        ("raises", "inference", "RuntimeError: deliberate failure"),
        ("mumbles", "inference", "RuntimeError: cannot read weights-"),
        ("exits", "inference", "SystemExit: 3"),
        ("nothing", "inference", "the workflow wrote no results"),
        ("greedy", "inference", "this server accepts 1 GB"),
        ("nan", "package", "the workflow wrote no values: everything is NaN"),
        ("early", "package", "1 of 4 parts of t2m were not written"),
    ],
)
def test_what_goes_wrong_is_said_and_the_next_runs(
    behaving: Server, how: str, stage: str, reason: str
) -> None:
    ended = behaving.finished(behaving.submit(how=how))
    assert (ended["status"], ended["stage"]) == ("failed", stage), ended
    assert reason in ended["error_message"]
    completes(behaving)


def test_what_falls_short_can_be_had_all_the_same(behaving: Server, place: Place) -> None:
    ended = behaving.finished(behaving.submit(how="early", n_steps=3))
    manifest = result_of(behaving, ended["execution_id"])
    assert manifest["status"] == "failed"
    folder = place.data_dir / "results" / "behaving" / ended["execution_id"]
    with xr.open_zarr(folder / "results.zarr") as dataset:
        assert np.array_equal(dataset["t2m"][0, :, 0, 0], [0, 2, np.nan], equal_nan=True)


def test_arrays_without_values_are_told(behaving: Server) -> None:
    ended = completes(behaving, how="some_nan")
    manifest = result_of(behaving, ended["execution_id"])
    assert manifest["warnings"] == ["t2m: everything written is NaN"]


def test_a_run_that_hangs_can_be_cancelled_and_the_next_runs(
    behaving: Server, place: Place
) -> None:
    execution_id = behaving.submit(how="hangs")
    behaving.until(
        execution_id,
        lambda _: (
            place.journal.read_text().endswith("\n")
            and place.journal.read_text().splitlines()[-1].startswith("hangs")
        ),
    )
    answer = behaving.http.delete(f"/v1/infer/behaving/{execution_id}")
    assert answer.status_code in (200, 202), answer.text
    assert behaving.finished(execution_id)["status"] == "cancelled"
    completes(behaving)
    hung, after = place.pids()[-2:]
    assert hung != after
    assert not list((place.data_dir / "results" / "behaving").glob(execution_id))


def test_a_run_that_listens_ends_at_its_next_step_in_its_process(
    behaving: Server, place: Place
) -> None:
    execution_id = behaving.submit(n_steps=1000, step_s=0.05)
    behaving.until(execution_id, lambda s: (s["progress"] or {}).get("current_step", 0) > 2)
    behaving.http.delete(f"/v1/infer/behaving/{execution_id}")
    assert behaving.finished(execution_id)["status"] == "cancelled"
    completes(behaving)
    assert len(set(place.pids()[-2:])) == 1


def test_a_class_that_ends_its_process_fails_and_the_next_runs(
    behaving: Server, place: Place
) -> None:
    ended = behaving.finished(behaving.submit(how="dies"), seconds=180)
    assert (ended["status"], ended["stage"]) == ("failed", "inference")
    assert "the process that ran the workflow has ended" in ended["error_message"]
    assert "given up after 3 attempts" in ended["error_message"]
    completes(behaving)
    assert not list((place.data_dir / "results" / ".partial").glob(f"{ended['execution_id']}/*"))


def test_classes_that_cannot_be_loaded_leave_the_others_serving(
    server: Server, place: Place
) -> None:
    missing, misconfigured = server.calling("missing"), server.calling("misconfigured")
    answer = missing.http.post("/v1/infer/missing", json={})
    assert answer.status_code == 503
    assert "Retry-After" in answer.headers
    # What is known of a class without an instance can be queued, and fails with the reason.
    ended = misconfigured.finished(misconfigured.submit(), seconds=120)
    assert ended["status"] == "failed"
    assert "config.gains: unknown; there are gain, journal" in ended["error_message"]
    completes(server.calling("behaving"))


def test_a_class_is_tried_again(server: Server, place: Place) -> None:
    unloadable = server.calling("unloadable")
    ended = unloadable.finished(unloadable.submit(), seconds=120)
    assert "could not be loaded: FileNotFoundError: No such file" in ended["error_message"], ended
    assert str(place.weights) not in ended["error_message"]
    place.weights.write_text("heavy")
    deadline = time.monotonic() + 120
    while unloadable.finished(unloadable.submit())["status"] != "completed":
        assert time.monotonic() < deadline
        time.sleep(0.5)


def test_custom_executions_are_listed_replayed_and_purged(behaving: Server, place: Place) -> None:
    url = "/v1/infer/behaving"
    key = {"Idempotency-Key": "custom-1"}
    first = behaving.http.post(url, json={}, headers=key).json()["execution_id"]
    again = behaving.http.post(url, json={}, headers=key)
    assert again.json()["execution_id"] == first
    assert again.headers["Idempotency-Replayed"] == "true"
    assert behaving.finished(first)["status"] == "completed"
    listed = behaving.http.get(url, params={"status": "completed"}).json()["executions"]
    assert listed[0]["execution_id"] == first
    assert behaving.http.delete(f"{url}/{first}?purge=true").status_code in (202, 204)
    deadline = time.monotonic() + 30
    while behaving.http.get(f"{url}/{first}/status").status_code != 404:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert not (place.data_dir / "results" / "behaving" / first).exists()


def test_only_what_is_exposed_is_listed(server: Server) -> None:
    listed = server.http.get("/v1/infer/workflows").json()["workflows"]
    assert list(listed) == ["behaving", "talking"]
    assert listed["talking"] == "Checks, tells its progress and leaves further files"
    assert server.http.get("/v1/infer/foundry_fcn3_workflow").status_code == 404
    schema = server.http.get("/v1/infer/workflows/behaving/schema").json()
    assert schema["properties"]["n_steps"] == {"default": 4, "title": "N Steps", "type": "integer"}
