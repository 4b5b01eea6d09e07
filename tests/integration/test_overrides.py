"""What a configuration's `deployments` may override: options of actors, and autoscaling."""

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
from tests.integration.serving import WORKFLOW

pytestmark = pytest.mark.ray

ROOT = Path(__file__).parents[2]

LOOK = """
import json, os, sys
import ray
ray.init(address=sys.argv[1], namespace="serve", log_to_driver=False)
seen = {}
for actor in ray.util.list_named_actors(all_namespaces=True):
    if actor["name"].startswith("SERVE_REPLICA::"):
        handle = ray.get_actor(actor["name"], namespace=actor["namespace"])
        value = handle.__ray_call__.remote(lambda _: os.environ.get("CUDA_VISIBLE_DEVICES"))
        seen.setdefault(actor["name"].split("#")[1], []).append(ray.get(value))
print("SEEN", json.dumps(seen))
"""
# Shorter than the watch over models looks again (10 s), so that it would keep one awake.
QUICKLY = {
    "min_replicas": 0,
    "initial_replicas": 1,
    "max_replicas": 2,
    "target_ongoing_requests": 1,
    "upscale_delay_s": 0.5,
    "downscale_delay_s": 3,
    "look_back_period_s": 2,
}
AWAKE_S = 25.0
"""Long enough for the watch to look twice."""


class Overridden:
    """A server of its own, whose configuration overrides what the code sets."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port = ports.free_port()
        self.base_url = f"http://127.0.0.1:{self.port}"
        self.environment = {
            # Other tests make CPU deployments in this process, and those hide its GPUs.
            **{name: value for name, value in os.environ.items() if name != "CUDA_VISIBLE_DEVICES"},
            "RAY_OVERRIDE_RESOURCES": json.dumps({"GPU": 2, "CPU": 8}),
            "RAY_SERVE_ENABLE_HA_PROXY": "0",
            "RAY_TMPDIR": "/tmp",
        }

    def config(self) -> Path:
        """Write a file whose overrides drop whatever the code set in ray_actor_options."""
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
                        # So that the deployments exist; nobody calls there.
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
                    + [{"name": "FCN3", "num_replicas": None, "autoscaling_config": QUICKLY}],
                }
            ],
        }
        path = self.folder / "overridden.yaml"
        path.write_text(yaml.safe_dump(document))
        return path

    def replicas(self) -> dict[str, list[Any]]:
        """Give what the replicas of each deployment see of GPUs."""
        [address] = {
            part.removeprefix("--gcs-address=")
            for line in _command_lines_of_session(self.pid)
            for part in line
            if part.startswith("--gcs-address=")
        }
        looked = subprocess.run(
            [sys.executable, "-c", LOOK, address],
            cwd=ROOT,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=60,
        )
        [line] = [x for x in looked.stdout.splitlines() if x.startswith("SEEN ")] or [looked.stderr]
        seen: dict[str, list[Any]] = json.loads(line.removeprefix("SEEN "))
        return seen

    def models(self) -> int:
        """Count the processes of FCN3."""
        title = "ray::ServeReplica:earth2serve:FCN3"
        return sum(line[0].startswith(title) for line in _command_lines_of_session(self.pid))

    def until(self, holds: Callable[[], bool], seconds: float = 120.0) -> None:
        deadline = time.monotonic() + seconds
        while not holds():
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

    def __enter__(self) -> Overridden:
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
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Overridden]:
    with Overridden(tmp_path_factory.mktemp("overridden")) as server:
        yield server


def test_cpu_replicas_see_no_gpu_also_when_their_options_are_overridden(
    server: Overridden,
) -> None:
    seen = server.replicas()
    assert set(seen) >= set(DEPLOYMENTS) - {"FCN3"}
    for name in set(DEPLOYMENTS) - {"FCN3"}:
        assert set(seen[name]) == {""}, seen
    # The model, if it has not gone to sleep by now, asked for a GPU and got one of the two.
    assert set(seen.get("FCN3", [])) <= {"0", "1"}


def test_a_model_scales_to_zero_stays_there_and_comes_back_for_what_is_queued(
    server: Overridden,
) -> None:
    server.until(lambda: server.models() == 0)
    slept_at = time.monotonic()
    while time.monotonic() < slept_at + AWAKE_S:
        assert server.models() == 0, "something keeps it awake"
        assert server.is_ready(), "a model that can be started is ready"
        time.sleep(0.5)

    url = f"{server.base_url}/v1/infer/{WORKFLOW}"
    asked = {"n_steps": 2, "n_samples": 4}
    queued = [httpx.post(url, json={"parameters": asked}).json() for _ in range(3)]
    status: dict[str, Any] = {}
    for each in queued:
        path = f"{url}/{each['execution_id']}/status"
        server.until(
            lambda path=path: status.update(httpx.get(path).json()) or status["end_time"]  # type: ignore[misc]
        )
        assert status["status"] == "completed", status
    server.until(lambda: server.models() == 0)


def _command_lines_of_session(pid: int) -> list[list[str]]:
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if os.getsid(int(folder.name)) == pid:
                found.append(folder.joinpath("cmdline").read_text().split("\0"))
        except (OSError, ProcessLookupError):
            continue
    return found
