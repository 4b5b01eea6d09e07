"""What is left to the next start when the server is told to stop."""

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

pytestmark = pytest.mark.ray

ROOT = Path(__file__).parents[2]
GRID = {"n_lat": 8, "n_lon": 16}
STEPS, SEEDS = 60, [1, 2, 3, 4]
STEP_S = 2.0
"""Of steps that are not computed at once: a member is not done while a busy machine shuts down."""
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
                            "loader": "tests.integration.standins:slow_fcn3",
                            "options": {
                                "step_s": STEP_S,
                                "journal": str(folder / "journal"),
                                "at_once": str(folder / "at_once"),
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
    """Serve in a process of its own until that is told to stop; the first steps take no time."""
    (folder / "at_once").write_text(str(steps_computed(folder) + steps))
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
    answer = client.post(f"/v1/infer/{WORKFLOW}", json=body)
    assert answer.status_code == 200, answer.text
    return str(answer.json()["execution_id"])


def steps_computed(folder: Path) -> int:
    journal = folder / "journal"
    return journal.read_text().count("step") if journal.exists() else 0


def steps_done(store: ConductorStore, execution_id: str) -> int:
    progress = store.read(execution_id).progress
    return progress.current_step if progress else 0


def wait_for_steps(store: ConductorStore, execution_id: str, steps: int) -> None:
    deadline = time.monotonic() + START_LIMIT_S
    while steps_done(store, execution_id) < steps:
        assert store.read(execution_id).ended_at is None
        assert time.monotonic() < deadline, store.read(execution_id)
        time.sleep(0.05)


def stop(process: subprocess.Popen[bytes], number: signal.Signals, folder: Path) -> None:
    process.send_signal(number)
    # Stopped before it was ready, the process has been seen to end by the signal itself, after all
    # else had been shut down. How it ends when it was is a matter of tests/serve_app/test_main.py.
    code = process.wait(timeout=STOP_LIMIT_S)
    assert code in (0, -signal.SIGTERM), (folder / "log").read_text()[-3000:]


def statuses(store: ConductorStore, *execution_ids: str) -> list[Status]:
    return [store.read(each).status for each in execution_ids]


def test_what_runs_and_what_waits_is_left_to_the_next_start(tmp_path: Path, free_port: int) -> None:
    whole = STEPS + 1
    with server(tmp_path, free_port, whole + 3) as (process, client):
        wait_until_ready(client, tmp_path)
        running = submit(client, n_steps=STEPS, seeds=SEEDS)
        waiting = submit(client, n_steps=1, n_samples=1)
        store = ConductorStore(f"sqlite:///{tmp_path}/var/executions.sqlite")
        # In the middle of the second member.
        wait_for_steps(store, running, whole + 3)
        stop(process, signal.SIGINT, tmp_path)
    assert statuses(store, running, waiting) == [Status.RUNNING, Status.QUEUED]
    with server(tmp_path, free_port, whole + 3) as (process, _):
        # In the middle of the third. Not when it is ready: what was left goes on before that.
        wait_for_steps(store, running, 2 * whole + 3)
        stop(process, signal.SIGTERM, tmp_path)
    assert statuses(store, running, waiting) == [Status.RUNNING, Status.QUEUED]
    with server(tmp_path, free_port, whole * len(SEEDS)) as (_, client):
        deadline = time.monotonic() + START_LIMIT_S
        while store.read(waiting).ended_at is None:
            assert time.monotonic() < deadline, store.read(waiting)
            time.sleep(0.1)
        wait_until_ready(client, tmp_path)
        manifest = client.get(f"/v1/infer/{WORKFLOW}/{running}/results")
        assert manifest.status_code == 200
    assert statuses(store, running, waiting) == [Status.COMPLETED, Status.COMPLETED]
    begun = [line for line in (tmp_path / "journal").read_text().splitlines() if "begin" in line]
    # Each interruption costs the member in which it comes, and no other.
    assert len(begun) <= len(SEEDS) + 2 + 1
    store.close()
