"""Executions survive kills, updates, failures and cancels, on a real Ray cluster."""

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

from tests.integration.serving import LIMIT_S, WORKFLOW, Server, deploy, served, steps_written

pytestmark = pytest.mark.ray

NAME = "survival"
SEEDS = [11, 12]
STEPS = 12
STEP_S = 0.15


class Setup:
    """The settings of a server with a slow model, and the files that it writes."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.journal = folder / "journal"
        self.refused = folder / "refused"
        grid = {"n_lat": 8, "n_lon": 16}
        self.args: dict[str, Any] = {
            "data_dir": str(folder / "var"),
            "models": {
                "fcn3": {
                    "loader": "tests.integration.standins:load_slow_fcn3",
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
        """Return kind, process id and time of each event in the model's journal."""
        lines = self.journal.read_text().splitlines() if self.journal.exists() else []
        return [(kind, int(pid), float(at)) for kind, pid, at in map(str.split, lines)]

    def count(self, kind: str, since: int = 0) -> int:
        """Return the number of events of a kind, those before an index excluded."""
        return [each for each, _, _ in self.events()[since:]].count(kind)

    def dataset(self, execution_id: str) -> xr.Dataset:
        path = self.folder / "var" / "results" / WORKFLOW / execution_id / "results.zarr"
        return xr.open_zarr(path, consolidated=True).load()


@pytest.fixture(scope="module")
def setup(tmp_path_factory: pytest.TempPathFactory) -> Setup:
    return Setup(tmp_path_factory.mktemp(NAME))


@pytest.fixture(scope="module")
def server(http_port: int, setup: Setup) -> Iterator[Server]:
    with served(setup.args, NAME, http_port) as server:
        yield server


@pytest.fixture(scope="module")
def undisturbed(server: Server, setup: Setup) -> xr.Dataset:
    """The result of `submit`."""
    execution_id = submit(server)
    server.completed(execution_id)
    return setup.dataset(execution_id)


def submit(server: Server, **parameters: Any) -> str:
    return server.submit(
        **{"n_steps": STEPS, "seeds": SEEDS, "output_format": "zarr", **parameters}
    )


def until_written(server: Server, execution_id: str, steps: int = 3) -> None:
    """Wait for time steps; by default until the first member is under way."""
    server.until(execution_id, lambda s: steps_written(s) >= steps)


def assert_same(dataset: xr.Dataset, expected: xr.Dataset) -> None:
    for name in expected.data_vars:
        np.testing.assert_array_equal(dataset[name].values, expected[name].values)
        assert np.isfinite(dataset[name].values).all()


@pytest.mark.slow
def test_a_conductor_that_hangs_is_replaced(
    server: Server, setup: Setup, undisturbed: xr.Dataset
) -> None:
    execution_id = submit(server)
    until_written(server, execution_id)
    (hanging,) = server.pids("Conductor")
    os.kill(hanging, signal.SIGSTOP)
    try:
        deadline = time.monotonic() + 40
        while len(server.replicas("Conductor")) < 2:
            assert time.monotonic() < deadline
            time.sleep(0.2)
    finally:
        os.kill(hanging, signal.SIGCONT)
    server.completed(execution_id)
    assert_same(setup.dataset(execution_id), undisturbed)
    # It is stopped as soon as it can be: at once, or by force after its grace.
    deadline = time.monotonic() + LIMIT_S
    while Path(f"/proc/{hanging}/exe").exists():
        assert time.monotonic() < deadline
        time.sleep(0.2)


def test_a_killed_conductor_is_replaced_without_repeating_recorded_members(
    server: Server, setup: Setup, undisturbed: xr.Dataset
) -> None:
    execution_id = submit(server)
    # In the second member; the first is recorded.
    until_written(server, execution_id, steps=STEPS + 3)
    before = len(setup.events())
    killed = server.kill("Conductor")
    server.completed(execution_id)
    assert_same(setup.dataset(execution_id), undisturbed)
    assert setup.count("begin", since=before) == 1
    assert server.pids("Conductor") != killed


@pytest.mark.slow
def test_a_killed_model_replica_is_replaced_and_the_member_repeated(
    server: Server, setup: Setup, undisturbed: xr.Dataset
) -> None:
    execution_id = submit(server)
    until_written(server, execution_id)
    server.kill("FCN3")
    server.completed(execution_id)
    assert_same(setup.dataset(execution_id), undisturbed)


def test_a_member_continues_from_its_checkpoint(
    server: Server, setup: Setup, undisturbed: xr.Dataset
) -> None:
    execution_id = submit(server)
    checkpoints = setup.folder / "var" / "work" / execution_id / "checkpoints"
    server.until(execution_id, lambda _: any(checkpoints.glob("*-8.npz")))
    before = len(setup.events())
    server.kill("FCN3")
    server.completed(execution_id)
    assert_same(setup.dataset(execution_id), undisturbed)
    # The rest of the first member, starting with the state of the checkpoint, and the second.
    remaining = (STEPS - 8 + 1) + (STEPS + 1) + 1
    assert setup.count("step", since=before) <= remaining, "the first 8 were computed again"
    assert not checkpoints.exists()


@pytest.mark.slow
def test_an_execution_survives_the_kill_of_all_packagers(
    server: Server, setup: Setup, undisturbed: xr.Dataset
) -> None:
    execution_id = submit(server)
    until_written(server, execution_id)
    server.kill("Packager")
    server.completed(execution_id)
    assert_same(setup.dataset(execution_id), undisturbed)


@pytest.mark.slow
def test_an_execution_survives_a_rolling_update(
    server: Server, setup: Setup, undisturbed: xr.Dataset
) -> None:
    execution_id = submit(server)
    until_written(server, execution_id)
    before = server.pids("Conductor")
    # These arguments replace Conductor, FCN3 and Ingress.
    setup.args["queue"] = {"max_running": 3, "max_size": 30}
    setup.args["packager"] = {"window_steps": 3}
    deploy(setup.args, NAME)
    server.completed(execution_id)
    assert server.pids("Conductor") != before
    assert_same(setup.dataset(execution_id), undisturbed)


def test_a_retry_computes_only_the_member_that_failed(
    server: Server, setup: Setup, undisturbed: xr.Dataset
) -> None:
    execution_id = submit(server)
    # Either member may be first.
    status = server.until(
        execution_id, lambda s: s["progress"] and STEPS + 1 in s["progress"]["members"]
    )
    complete = status["progress"]["members"].index(STEPS + 1)
    setup.refused.write_text(str(SEEDS[1 - complete]))
    failed = server.finished(execution_id)
    setup.refused.unlink()
    assert (failed["status"], failed["stage"]) == ("failed", "inference")
    assert "the core returned NaN" in failed["error_message"]
    assert failed["progress"]["members"][complete] == STEPS + 1
    before = len(setup.events())
    server.retry(execution_id)
    server.completed(execution_id)
    assert_same(setup.dataset(execution_id), undisturbed)
    assert setup.count("begin", since=before) == 1


def test_a_cancel_stops_the_model_between_steps_and_frees_the_replica(
    server: Server, setup: Setup
) -> None:
    steps = 400
    execution_id = submit(server, n_steps=steps)
    until_written(server, execution_id)
    server.cancel(execution_id)
    cancelled_at = time.time()
    assert server.finished(execution_id)["status"] == "cancelled"
    server.completed(submit(server, n_steps=1))
    events = [event for event in setup.events() if event[2] > cancelled_at - STEP_S]
    stopped_at = next(at for kind, _, at in events if kind == "end")
    # Long before the member would end by itself.
    assert stopped_at - cancelled_at < steps * STEP_S / 2
    # The next member begins after the cancelled one has ended.
    running = 0
    for kind, _, _ in events:
        running += {"begin": 1, "step": 0, "end": -1}[kind]
        assert running <= 1
    assert not list((setup.folder / "var" / "work").glob(f"{execution_id}/*"))


@pytest.mark.slow
def test_more_replicas_give_the_same_arrays(
    server: Server, setup: Setup, undisturbed: xr.Dataset
) -> None:
    setup.args["models"]["fcn3"]["replicas"] = 2
    deploy(setup.args, NAME)
    before = len(setup.events())
    executions = [submit(server), submit(server, seeds=[7, 8, 9])]
    for execution_id in executions:
        server.completed(execution_id)
    assert len({pid for _, pid, _ in setup.events()[before:]}) == 2
    assert_same(setup.dataset(executions[0]), undisturbed)
