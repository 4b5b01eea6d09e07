"""A server takes over a data folder of an earlier version: no execution is stranded."""

from __future__ import annotations

import json
import sqlite3
import tarfile
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr

from tests.integration.serving import WORKFLOW, Server, served

pytestmark = [pytest.mark.ray, pytest.mark.slow]

NAME = "upgrade"
CUSTOM = "behaving"
ARCHIVE = Path(__file__).parent / "upgrade" / "data-a087d35.tar.xz"
GRID = {"n_lat": 8, "n_lon": 16}
CONTAINER = "https://127.0.0.1:10999/devstoreaccount1"
"""Nothing listens there."""


class Folder:
    """The data folder of the earlier version, as its server left it."""

    def __init__(self, folder: Path) -> None:
        with tarfile.open(ARCHIVE) as archive:
            archive.extractall(folder, filter="data")
        self.data = folder / "data"
        self.flags = folder / "flags"
        self.flags.mkdir()
        self.ids: dict[str, str] = json.loads((self.data / "ids.json").read_text())
        self.files = self._files("completed", "completed_netcdf", "completed_custom")
        self.members = {name: self._chunks(name) for name in ("running", "failed_in_a_member")}
        options = {"folder": str(self.flags), **GRID}
        self.args: dict[str, Any] = {
            "data_dir": str(self.data),
            "models": {
                "fcn3": {
                    "loader": "tests.integration.upgrade.held_model:load_fcn3",
                    "options": options,
                    "num_gpus": 0,
                    "grid": GRID,
                    "checkpoint_steps": 2,
                    "replicas": 2,
                }
            },
            "data_sources": {
                "ifs": {
                    "loader": "tests.integration.upgrade.held_model:load_ifs",
                    "options": options,
                }
            },
            "workflows": {
                "exposed": [WORKFLOW, CUSTOM],
                "custom": [
                    {
                        "class": "tests.integration.upgrade.behaving:Behaving",
                        "num_gpus": 0,
                        "cancel_grace_s": 0.5,
                        "config": {"journal": str(folder / "journal")},
                    }
                ],
            },
            "azure": {
                "credential": {
                    "loader": "tests.emulators.tokens:EmulatorCredential",
                    "options": {"secret": "planted"},
                },
                "blob": {
                    "emulator": CONTAINER,
                    "allowed_containers": [f"{CONTAINER}/results"],
                    "time_limit_s": 0.5,
                },
            },
        }

    def _files(self, *names: str) -> dict[Path, bytes]:
        ids = {self.ids[name] for name in names}
        paths = (self.data / "results").rglob("*")
        return {p: p.read_bytes() for p in paths if p.is_file() and ids & set(p.parts)}

    def _chunks(self, name: str) -> dict[tuple[int, str], tuple[int, int]]:
        return chunks_of(self.store(name))

    def store(self, name: str) -> Path:
        return self.data / "results" / WORKFLOW / self.ids[name] / "results.zarr"


def chunks_of(store: Path) -> dict[tuple[int, str], tuple[int, int]]:
    """Return inode and modification time of every chunk, by member and key."""
    found = {}
    for variable in ("t2m", "u10m"):
        for path in (store / variable).glob("c.*"):
            stat = path.stat()
            key = int(path.name.split(".")[1]), f"{variable}/{path.name}"
            found[key] = (stat.st_ino, stat.st_mtime_ns)
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Folder:
    return Folder(tmp_path_factory.mktemp(NAME))


@pytest.fixture(scope="module")
def server(http_port: int, folder: Folder) -> Iterator[Server]:
    (folder.flags / "hold-32").touch()
    with served(folder.args, NAME, http_port) as server:
        yield server


@pytest.fixture(scope="module")
def custom(server: Server) -> Server:
    return server.client_of(CUSTOM)


def test_completed_results_stay_as_they_are(server: Server, folder: Folder) -> None:
    assert len(folder.files) > 20
    assert all(path.read_bytes() == content for path, content in folder.files.items())
    answer = server.http.get(f"/v1/infer/{WORKFLOW}/{folder.ids['completed']}/results")
    assert answer.status_code == 200
    assert answer.json()["status"] == "completed"


def test_a_running_execution_can_be_cancelled(server: Server, folder: Folder) -> None:
    execution_id = folder.ids["running_to_cancel"]
    assert server.status(execution_id)["status"] == "running"
    server.cancel(execution_id)
    # A member stops between two steps, and its replica may be given the next one meanwhile.
    (folder.flags / "hold-32").unlink()
    assert server.finished(execution_id)["status"] == "cancelled"


@pytest.mark.parametrize("name", ["queued", "queued_netcdf", "running_alone", "running"])
def test_queued_and_running_executions_complete(server: Server, folder: Folder, name: str) -> None:
    finished = server.finished(folder.ids[name])
    assert finished["status"] == "completed", finished["error_message"]
    assert finished["progress"]["current_step"] == finished["progress"]["total_steps"]


def test_completed_members_are_not_computed_again(server: Server, folder: Folder) -> None:
    before = folder.members["running"]
    assert server.finished(folder.ids["running"])["status"] == "completed"
    after = chunks_of(folder.store("running"))
    kept = {key for key in before if key[0] in (0, 2)}
    assert len(kept) == 2 * 2 * 7
    assert {key: after[key] for key in kept} == {key: before[key] for key in kept}
    with xr.open_zarr(folder.store("running"), consolidated=True) as dataset:
        assert not np.isnan(dataset["t2m"].values).any()
        assert [int(seed) for seed in dataset["seed"].values] == [21, 22, 23]


def test_a_delivery_ends_with_its_reason_and_keeps_the_results(
    server: Server, folder: Folder
) -> None:
    execution_id = folder.ids["delivering"]
    finished = server.finished(execution_id)
    assert (finished["status"], finished["stage"]) == ("failed", "upload"), finished
    answer = server.http.get(f"/v1/infer/{WORKFLOW}/{execution_id}/results")
    assert answer.status_code == 200
    assert answer.json()["output_files"]


def test_failed_executions_can_be_retried(server: Server, folder: Folder) -> None:
    before = folder.members["failed_in_a_member"]
    for name in ("failed_in_a_member", "failed_at_once"):
        server.retry(folder.ids[name])
        assert server.finished(folder.ids[name])["status"] == "completed"
    after = chunks_of(folder.store("failed_in_a_member"))
    kept = {key for key in before if key[0] == 0}
    assert len(kept) == 2 * 7
    assert {key: after[key] for key in kept} == {key: before[key] for key in kept}


def test_a_users_class_runs_again_or_is_cancelled(custom: Server, folder: Folder) -> None:
    sleeping = folder.ids["running_custom"]
    custom.cancel(sleeping)
    assert custom.finished(sleeping)["status"] == "cancelled"
    finished = custom.finished(folder.ids["queued_custom"])
    assert finished["status"] == "completed", finished["error_message"]


def test_everything_can_be_purged_and_nothing_is_left(server: Server, folder: Folder) -> None:
    for name, execution_id in folder.ids.items():
        client = server.client_of(CUSTOM) if "custom" in name else server
        client.finished(execution_id)
        client.purge(execution_id)
    assert list((folder.data / "work").glob("exec_*")) == []
    with closing(sqlite3.connect(folder.data / "executions.sqlite.dbos")) as dbos:
        assert dbos.execute("SELECT workflow_uuid FROM workflow_status").fetchall() == []
