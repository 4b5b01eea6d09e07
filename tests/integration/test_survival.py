"""What an execution goes through while processes come and go, on a real Ray cluster."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr

from tests.integration.serving import WORKFLOW, Server, deploy, served

pytestmark = pytest.mark.ray

NAME = "survival"
SEEDS = [11, 12]
STEPS = 12
STEP_S = 0.15


class Place:
    """A served application with a slow model, and what it leaves on disk."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.journal = folder / "journal"
        self.refused = folder / "refused"
        grid = {"n_lat": 8, "n_lon": 16}
        self.args: dict[str, Any] = {
            "data_dir": str(folder / "var"),
            "models": {
                "fcn3": {
                    "loader": "tests.integration.standins:slow_fcn3",
                    "options": {
                        "step_s": STEP_S,
                        "journal": str(self.journal),
                        "refused": str(self.refused),
                        **grid,
                    },
                    "num_gpus": 0.0,
                    "grid": grid,
                    "checkpoint_steps": 4,
                }
            },
        }

    def events(self) -> list[tuple[str, int, float]]:
        lines = self.journal.read_text().splitlines() if self.journal.exists() else []
        return [(word, int(pid), float(at)) for word, pid, at in map(str.split, lines)]

    def dataset(self, execution_id: str) -> xr.Dataset:
        path = self.folder / "var" / "results" / WORKFLOW / execution_id / "results.zarr"
        return xr.open_zarr(path, consolidated=True).load()


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    return Place(tmp_path_factory.mktemp(NAME))


@pytest.fixture(scope="module")
def server(http_port: int, place: Place) -> Iterator[Server]:
    with served(place.args, NAME, http_port) as server:
        yield server


@pytest.fixture(scope="module")
def undisturbed(server: Server, place: Place) -> xr.Dataset:
    execution_id = submit(server)
    assert server.finished(execution_id)["status"] == "completed"
    return place.dataset(execution_id)


def submit(server: Server, **parameters: Any) -> str:
    return server.submit(
        **{"n_steps": STEPS, "seeds": SEEDS, "output_format": "zarr", **parameters}
    )


def under_way(server: Server, execution_id: str, steps: int = 3) -> None:
    """Wait until the first member is in the middle."""
    server.until(
        execution_id, lambda s: s["progress"] is not None and s["progress"]["current_step"] >= steps
    )


def assert_same(found: xr.Dataset, wanted: xr.Dataset) -> None:
    for name in wanted.data_vars:
        np.testing.assert_array_equal(found[name].values, wanted[name].values)
        assert np.isfinite(found[name].values).all()


def test_a_killed_conductor_is_succeeded(
    server: Server, place: Place, undisturbed: xr.Dataset
) -> None:
    execution_id = submit(server)
    # In the second member: the first is recorded, and must not be computed again.
    under_way(server, execution_id, steps=STEPS + 3)
    begun = len([event for event in place.events() if event[0] == "begin"])
    [pid] = server.pids("Conductor")
    os.kill(pid, signal.SIGKILL)
    assert server.finished(execution_id)["status"] == "completed"
    assert_same(place.dataset(execution_id), undisturbed)
    again = len([event for event in place.events() if event[0] == "begin"]) - begun
    assert again == 1
    assert server.pids("Conductor") != [pid]


def test_a_killed_model_replica_is_replaced_and_the_member_computed_anew(
    server: Server, place: Place, undisturbed: xr.Dataset
) -> None:
    execution_id = submit(server)
    under_way(server, execution_id)
    [pid] = server.pids("FCN3")
    os.kill(pid, signal.SIGKILL)
    assert server.finished(execution_id, 90)["status"] == "completed"
    assert_same(place.dataset(execution_id), undisturbed)


def test_a_member_goes_on_from_its_checkpoint(
    server: Server, place: Place, undisturbed: xr.Dataset
) -> None:
    execution_id = submit(server)
    checkpoints = place.folder / "var" / "work" / execution_id / "checkpoints"
    server.until(execution_id, lambda _: any(checkpoints.glob("*-8.npz")))
    before = len(place.events())
    [pid] = server.pids("FCN3")
    os.kill(pid, signal.SIGKILL)
    ended = server.finished(execution_id, 90)
    assert ended["status"] == "completed"
    assert_same(place.dataset(execution_id), undisturbed)
    steps = [word for word, _, _ in place.events()[before:] if word == "step"]
    # The state that it begins with is one of them.
    assert len(steps) <= (STEPS - 8 + 1) + (STEPS + 1) + 1, "the first 8 were computed again"
    assert not checkpoints.exists()


def test_a_killed_packager_costs_nothing(
    server: Server, place: Place, undisturbed: xr.Dataset
) -> None:
    execution_id = submit(server)
    under_way(server, execution_id)
    for pid in server.pids("Packager"):
        os.kill(pid, signal.SIGKILL)
    assert server.finished(execution_id, 90)["status"] == "completed"
    assert_same(place.dataset(execution_id), undisturbed)


def test_a_rolling_update_in_the_middle_of_a_member(
    server: Server, place: Place, undisturbed: xr.Dataset
) -> None:
    execution_id = submit(server)
    under_way(server, execution_id)
    [pid] = server.pids("Conductor")
    # Other arguments for Conductor, FCN3 and Ingress: all three are replaced.
    place.args["queue"] = {"max_running": 3, "max_size": 30}
    place.args["packager"] = {"window_steps": 3}
    deploy(place.args, NAME)
    assert server.finished(execution_id, 120)["status"] == "completed"
    assert server.pids("Conductor") != [pid]
    assert_same(place.dataset(execution_id), undisturbed)


def test_a_retry_computes_only_the_member_that_failed(
    server: Server, place: Place, undisturbed: xr.Dataset
) -> None:
    execution_id = submit(server)
    # Which of them begins is nobody's promise.
    told = server.until(
        execution_id, lambda s: s["progress"] and STEPS + 1 in s["progress"]["members"]
    )
    whole = told["progress"]["members"].index(STEPS + 1)
    place.refused.write_text(str(SEEDS[1 - whole]))
    failed = server.finished(execution_id)
    place.refused.unlink()
    assert (failed["status"], failed["stage"]) == ("failed", "inference")
    assert "the core returned NaN" in failed["error_message"]
    assert failed["progress"]["members"][whole] == STEPS + 1
    before = len(place.events())
    answer = server.http.post(f"/v1/infer/{WORKFLOW}/{execution_id}/retry")
    assert answer.status_code == 202, answer.text
    assert server.finished(execution_id)["status"] == "completed"
    assert_same(place.dataset(execution_id), undisturbed)
    assert [word for word, _, _ in place.events()[before:] if word == "begin"] == ["begin"]


def test_a_cancel_stops_the_thread_between_steps_and_frees_the_replica(
    server: Server, place: Place
) -> None:
    steps = 400
    execution_id = submit(server, n_steps=steps)
    under_way(server, execution_id)
    answer = server.http.delete(f"/v1/infer/{WORKFLOW}/{execution_id}")
    assert answer.status_code in (200, 202), answer.text
    asked_at = time.time()
    assert server.finished(execution_id)["status"] == "cancelled"
    following = server.finished(submit(server, n_steps=1))
    assert following["status"] == "completed", following["error_message"]
    events = place.events()
    stopped_at = next(at for word, _, at in events if word == "end" and at > asked_at - STEP_S)
    # Long before the member ends by itself.
    assert stopped_at - asked_at < steps * STEP_S / 2
    # One at a time: no step of the cancelled one after the following one began.
    running = 0
    for word, _, _ in (e for e in events if e[2] > asked_at - STEP_S and e[0] != "step"):
        running += {"begin": 1, "end": -1}[word]
        assert running <= 1
    assert not list((place.folder / "var" / "work").glob(f"{execution_id}/*"))


def test_more_replicas_give_the_same_arrays(
    server: Server, place: Place, undisturbed: xr.Dataset
) -> None:
    place.args["models"]["fcn3"]["replicas"] = 2
    deploy(place.args, NAME)
    before = len(place.events())
    alone, beside = submit(server), submit(server, seeds=[7, 8, 9])
    for execution_id in (alone, beside):
        assert server.finished(execution_id)["status"] == "completed"
    assert len({pid for _, pid, _ in place.events()[before:]}) == 2
    assert_same(place.dataset(alone), undisturbed)
