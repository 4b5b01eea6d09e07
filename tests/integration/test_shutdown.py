"""Executions that are running or queued when the server is stopped."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from deployments.store.conductor_view import ConductorStore
from tests.integration.serving import WORKFLOW
from workflows.execution import Status

pytestmark = [pytest.mark.ray, pytest.mark.slow]

ROOT = Path(__file__).parents[2]
GRID = {"n_lat": 8, "n_lon": 16}
STEPS, SEEDS = 60, [1, 2, 3, 4]
STEP_S = 2.0
"""Pause before a step: no member ends while a busy machine shuts down."""
START_LIMIT_S, STOP_LIMIT_S = 180, 180


def configuration(folder: Path) -> dict[str, Any]:
    return {
        "http_options": {"host": "127.0.0.1", "port": 1},
        "applications": [
            {
                "name": "earth2serve",
                "import_path": "serve_app.app:build",
                "route_prefix": "/",
                "args": {
                    "data_dir": str(folder / "var"),
                    "workflows": {"exposed": [WORKFLOW]},
                    "queue": {"max_running": 1},
                    "models": {
                        "fcn3": {
                            "loader": "tests.integration.standins:load_slow_fcn3",
                            "options": {
                                "step_s": STEP_S,
                                "journal": str(folder / "journal"),
                                "unpaused": str(folder / "unpaused"),
                                **GRID,
                            },
                            "num_gpus": 0.0,
                            "grid": GRID,
                        }
                    },
                },
            }
        ],
    }


@contextmanager
def server(
    folder: Path, port: int, steps: int
) -> Iterator[tuple[subprocess.Popen[bytes], httpx.Client]]:
    """Serve in a process of its own; the first steps are computed without pauses."""
    (folder / "unpaused").write_text(str(steps_computed(folder) + steps))
    (folder / "config.yaml").write_text(yaml.safe_dump(configuration(folder)))
    with (folder / "log").open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "serve_app", "config.yaml", "--port", str(port)],
            cwd=folder,
            env={**os.environ, "PYTHONPATH": str(ROOT), "RAY_SERVE_ENABLE_HA_PROXY": "0"},
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30) as client:
            yield process, client
    finally:
        process.kill()
        process.wait()


def wait_until_ready(client: httpx.Client, folder: Path) -> None:
    deadline = time.monotonic() + START_LIMIT_S
    while not is_ready(client):
        assert time.monotonic() < deadline, (folder / "log").read_text()[-3000:]
        time.sleep(0.3)


def is_ready(client: httpx.Client) -> bool:
    try:
        return client.get("/readiness").status_code == 200
    except httpx.TransportError:
        return False


def submit(client: httpx.Client, **parameters: Any) -> str:
    body = {"parameters": {"output_format": "zarr", **parameters}}
    response = client.post(f"/v1/infer/{WORKFLOW}", json=body)
    assert response.status_code == 200, response.text
    return str(response.json()["execution_id"])


def steps_computed(folder: Path) -> int:
    journal = folder / "journal"
    return journal.read_text().count("step") if journal.exists() else 0


def steps_recorded(store: ConductorStore, execution_id: str) -> int:
    progress = store.read(execution_id).progress
    return progress.current_step if progress else 0


def wait_for_steps(store: ConductorStore, execution_id: str, steps: int) -> None:
    deadline = time.monotonic() + START_LIMIT_S
    while steps_recorded(store, execution_id) < steps:
        assert store.read(execution_id).ended_at is None
        assert time.monotonic() < deadline, store.read(execution_id)
        time.sleep(0.05)


def stop(process: subprocess.Popen[bytes], number: signal.Signals, folder: Path) -> None:
    process.send_signal(number)
    # A process that is stopped before it is ready may end by the signal itself, after everything
    # else has been shut down. tests/serve_app/test_main.py tests the exit code of a ready one.
    code = process.wait(timeout=STOP_LIMIT_S)
    assert code in (0, -signal.SIGTERM), (folder / "log").read_text()[-3000:]


def statuses(store: ConductorStore, *execution_ids: str) -> list[Status]:
    return [store.read(each).status for each in execution_ids]


def test_running_and_queued_executions_continue_after_a_restart(
    tmp_path: Path, free_port: int
) -> None:
    member = STEPS + 1
    with server(tmp_path, free_port, member + 3) as (process, client):
        wait_until_ready(client, tmp_path)
        running = submit(client, n_steps=STEPS, seeds=SEEDS)
        queued = submit(client, n_steps=1, n_samples=1)
        store = ConductorStore(f"sqlite:///{tmp_path}/var/executions.sqlite")
        # In the middle of the second member.
        wait_for_steps(store, running, member + 3)
        stop(process, signal.SIGINT, tmp_path)
    assert statuses(store, running, queued) == [Status.RUNNING, Status.QUEUED]
    with server(tmp_path, free_port, member + 3) as (process, _):
        # In the middle of the third: executions continue before the server is ready.
        wait_for_steps(store, running, 2 * member + 3)
        stop(process, signal.SIGTERM, tmp_path)
    assert statuses(store, running, queued) == [Status.RUNNING, Status.QUEUED]
    with server(tmp_path, free_port, member * len(SEEDS)) as (_, client):
        deadline = time.monotonic() + START_LIMIT_S
        while store.read(queued).ended_at is None:
            assert time.monotonic() < deadline, store.read(queued)
            time.sleep(0.1)
        wait_until_ready(client, tmp_path)
        manifest = client.get(f"/v1/infer/{WORKFLOW}/{running}/results")
        assert manifest.status_code == 200
    assert statuses(store, running, queued) == [Status.COMPLETED, Status.COMPLETED]
    # Each stop interrupts one member, which is computed again.
    assert (tmp_path / "journal").read_text().count("begin") <= len(SEEDS) + 2 + 1
    store.close()
