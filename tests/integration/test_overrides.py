"""Overrides in a configuration's `deployments`: options of actors, and autoscaling."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from serve_app import ports
from serve_app.check import DEPLOYMENTS
from tests.integration.serving import LIMIT_S, WORKFLOW

pytestmark = [pytest.mark.ray, pytest.mark.slow]

ROOT = Path(__file__).parents[2]

VISIBLE_GPUS = """
import json, os, sys
import ray
ray.init(address=sys.argv[1], namespace="serve", log_to_driver=False)
found = {}
for actor in ray.util.list_named_actors(all_namespaces=True):
    if actor["name"].startswith("SERVE_REPLICA::"):
        handle = ray.get_actor(actor["name"], namespace=actor["namespace"])
        value = handle.__ray_call__.remote(lambda _: os.environ.get("CUDA_VISIBLE_DEVICES"))
        found.setdefault(actor["name"].split("#")[1], []).append(ray.get(value))
print("FOUND", json.dumps(found))
"""
# The delay is shorter than the interval of the Conductor's checks of models (10 s), which would
# otherwise keep a replica alive.
AUTOSCALING = {
    "min_replicas": 0,
    "initial_replicas": 1,
    "max_replicas": 2,
    "target_ongoing_requests": 1,
    "upscale_delay_s": 0.5,
    "downscale_delay_s": 3,
    "look_back_period_s": 2,
}
OBSERVED_S = 25.0
"""Long enough for two of the Conductor's checks of models."""


class OverriddenServer:
    """A server in a process of its own whose configuration overrides settings of the code."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port = ports.free_port()
        self.base_url = f"http://127.0.0.1:{self.port}"
        self.environment = {
            # Other tests construct CPU deployments in this process, which hides its GPUs.
            **{name: value for name, value in os.environ.items() if name != "CUDA_VISIBLE_DEVICES"},
            "RAY_OVERRIDE_RESOURCES": json.dumps({"GPU": 2, "CPU": 8}),
            "RAY_SERVE_ENABLE_HA_PROXY": "0",
            "RAY_TMPDIR": "/tmp",
        }

    def config(self) -> Path:
        """Write a configuration whose overrides replace the code's ray_actor_options."""
        grid = {"n_lat": 8, "n_lon": 16}
        document = {
            "http_options": {"host": "127.0.0.1", "port": self.port},
            "applications": [
                {
                    "name": "earth2serve",
                    "import_path": "serve_app.app:build",
                    "args": {
                        "data_dir": str(self.folder / "var"),
                        "models": {"fcn3": {"grid": grid, "num_gpus": 1.0, "replicas": 2}},
                        # Only so that the deployments exist.
                        "azure": {
                            "blob": {
                                "allowed_containers": ["https://abc.blob.core.windows.net/data"]
                            },
                            "geocatalog": {"allowed": ["https://geocatalog.example"]},
                        },
                    },
                    "deployments": [
                        {"name": name, "ray_actor_options": {"num_cpus": 0.05}}
                        for name in DEPLOYMENTS
                        if name != "FCN3"
                    ]
                    + [{"name": "FCN3", "num_replicas": None, "autoscaling_config": AUTOSCALING}],
                }
            ],
        }
        path = self.folder / "overridden.yaml"
        path.write_text(yaml.safe_dump(document))
        return path

    def visible_gpus(self) -> dict[str, list[Any]]:
        """Return CUDA_VISIBLE_DEVICES of each replica, by deployment."""
        [address] = {
            part.removeprefix("--gcs-address=")
            for line in _command_lines_of_session(self.pid)
            for part in line
            if part.startswith("--gcs-address=")
        }
        done = subprocess.run(
            [sys.executable, "-c", VISIBLE_GPUS, address],
            cwd=ROOT,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=LIMIT_S,
        )
        lines = [line for line in done.stdout.splitlines() if line.startswith("FOUND ")]
        assert lines, done.stderr
        found: dict[str, list[Any]] = json.loads(lines[0].removeprefix("FOUND "))
        return found

    def n_models(self) -> int:
        """Return the number of processes of FCN3."""
        title = "ray::ServeReplica:earth2serve:FCN3"
        return sum(line[0].startswith(title) for line in _command_lines_of_session(self.pid))

    def until(self, condition: Callable[[], bool], seconds: float = 120.0) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, (self.folder / "server.log").read_text()[-3000:]
            time.sleep(0.2)

    def is_ready(self) -> bool:
        try:
            return httpx.get(f"{self.base_url}/readiness").status_code == 200
        except httpx.TransportError:
            return False

    @property
    def pid(self) -> int:
        return self._server.pid

    def __enter__(self) -> OverriddenServer:
        with (self.folder / "server.log").open("w") as output:
            self._server = subprocess.Popen(
                [sys.executable, "-m", "serve_app", str(self.config())],
                cwd=ROOT,
                env=self.environment,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self.until(lambda: self.is_ready() or self._server.poll() is not None)
        return self

    def __exit__(self, *_: object) -> None:
        self._server.send_signal(signal.SIGINT)
        self._server.wait(60)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OverriddenServer]:
    with OverriddenServer(tmp_path_factory.mktemp("overridden")) as server:
        yield server


def test_cpu_replicas_see_no_gpu_even_if_their_options_are_overridden(
    server: OverriddenServer,
) -> None:
    visible = server.visible_gpus()
    assert set(visible) >= set(DEPLOYMENTS) - {"FCN3"}
    for name in set(DEPLOYMENTS) - {"FCN3"}:
        assert set(visible[name]) == {""}, visible
    # Each replica of the model, unless it has been scaled down by now, has one of the two GPUs.
    assert set(visible.get("FCN3", [])) <= {"0", "1"}


def test_a_model_scales_to_zero_and_back_for_queued_executions(server: OverriddenServer) -> None:
    server.until(lambda: server.n_models() == 0)
    scaled_down_at = time.monotonic()
    while time.monotonic() < scaled_down_at + OBSERVED_S:
        assert server.n_models() == 0, "a replica was started without any execution"
        assert server.is_ready(), "not ready although a replica can be started"
        time.sleep(0.5)

    url = f"{server.base_url}/v1/infer/{WORKFLOW}"
    parameters = {"n_steps": 2, "n_samples": 4}
    queued = [httpx.post(url, json={"parameters": parameters}).json() for _ in range(3)]
    for each in queued:
        path = f"{url}/{each['execution_id']}/status"
        server.until(lambda path=path: httpx.get(path).json()["end_time"] is not None)  # type: ignore[misc]
        status = httpx.get(path).json()
        assert status["status"] == "completed", status
    server.until(lambda: server.n_models() == 0)


def _command_lines_of_session(pid: int) -> list[list[str]]:
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if os.getsid(int(folder.name)) == pid:
                found.append(folder.joinpath("cmdline").read_text().split("\0"))
        except (OSError, ProcessLookupError):
            continue
    return found
