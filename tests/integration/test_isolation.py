"""Replicas without a GPU cannot see one, whatever the configuration overrides."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest
import yaml

from serve_app.settings import DEPLOYMENTS

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


@pytest.fixture
def config(tmp_path: Path, free_port: int) -> Path:
    """A file whose overrides drop whatever the code set in ray_actor_options."""
    path = tmp_path / "overridden.yaml"
    grid = {"n_lat": 8, "n_lon": 16}
    document = {
        "http_options": {"host": "127.0.0.1", "port": free_port},
        "applications": [
            {
                "name": "earth2serve",
                "import_path": "serve_app.app:build",
                "args": {
                    "data_dir": str(tmp_path / "var"),
                    "models": {"fcn3": {"grid": grid, "num_gpus": 1.0}},
                    # So that the deployments exist; nobody calls there.
                    "azure": {
                        "blob": {"allowed_containers": ["https://abc.blob.core.windows.net/data"]},
                        "geocatalog": {"allowed": ["https://geocatalog.example"]},
                    },
                },
                "deployments": [
                    {"name": name, "ray_actor_options": {"num_cpus": 0.05}}
                    for name in DEPLOYMENTS
                    if name != "FCN3"
                ],
            }
        ],
    }
    path.write_text(yaml.safe_dump(document))
    return path


def test_cpu_replicas_see_no_gpu_also_when_their_options_are_overridden(
    config: Path, free_port: int, tmp_path: Path
) -> None:
    environment = {
        # Other tests make CPU deployments in this process, and those hide its GPUs.
        **{name: value for name, value in os.environ.items() if name != "CUDA_VISIBLE_DEVICES"},
        "RAY_OVERRIDE_RESOURCES": json.dumps({"GPU": 2, "CPU": 8}),
        "RAY_SERVE_ENABLE_HA_PROXY": "0",
        "RAY_TMPDIR": "/tmp",
    }
    log = tmp_path / "server.log"
    with log.open("w") as output:
        server = subprocess.Popen(
            [sys.executable, "-m", "serve_app", str(config)],
            cwd=ROOT,
            env=environment,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        deadline = time.monotonic() + 120
        while True:
            try:
                if httpx.get(f"http://127.0.0.1:{free_port}/readiness").status_code == 200:
                    break
            except httpx.TransportError:
                pass
            assert server.poll() is None, log.read_text()[-3000:]
            assert time.monotonic() < deadline, log.read_text()[-3000:]
            time.sleep(0.5)
        [address] = {
            part.removeprefix("--gcs-address=")
            for line in _command_lines_of_session(server.pid)
            for part in line
            if part.startswith("--gcs-address=")
        }
        looked = subprocess.run(
            [sys.executable, "-c", LOOK, address],
            cwd=ROOT,
            env=environment,
            capture_output=True,
            text=True,
            timeout=60,
        )
        [line] = [x for x in looked.stdout.splitlines() if x.startswith("SEEN ")] or [looked.stderr]
        seen = json.loads(line.removeprefix("SEEN "))
    finally:
        server.send_signal(signal.SIGINT)
        server.wait(60)
    assert set(seen) == set(DEPLOYMENTS)
    for name in set(DEPLOYMENTS) - {"FCN3"}:
        assert set(seen[name]) == {""}, seen
    # The model asked for a GPU and got one of the two.
    assert set(seen["FCN3"]) <= {"0", "1"}


def _command_lines_of_session(pid: int) -> list[list[str]]:
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if os.getsid(int(folder.name)) == pid:
                found.append(folder.joinpath("cmdline").read_text().split("\0"))
        except (OSError, ProcessLookupError):
            continue
    return found
