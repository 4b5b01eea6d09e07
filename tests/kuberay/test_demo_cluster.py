"""The demo overlay's configuration, deployed as KubeRay does, on two nodes in place of its pods.

The nodes have the resources that the manifests name, including stand-ins for GPUs, and Ray requires
a token. Because both nodes share one machine, three things differ: the folder of `data_dir`, the
HTTP address, and Serve's proxy, which runs on the head only and without HAProxy.
"""

from __future__ import annotations

import json
import os
import secrets
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from benchmarks.machine import tree
from serve_app.__main__ import ENVIRONMENT
from serve_app.ports import free_port
from tests.kuberay.rendering import ROOT, groups, resources, serve_config

OVERLAY = "demo-cpu"
START_LIMIT_S = 240.0
pytestmark = [pytest.mark.ray, pytest.mark.slow]


class Pods:
    """Nodes of Ray as the manifests describe them, one for each pod."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.dashboard = f"http://127.0.0.1:{(port := free_port())}"
        self._dashboard_port = port
        self._gcs_port = free_port()
        self._nodes: list[subprocess.Popen[bytes]] = []
        self.environment = {
            **os.environ,
            **ENVIRONMENT,
            "RAY_SERVE_ENABLE_HA_PROXY": "0",
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": secrets.token_hex(32),
            "PYTHONPATH": str(ROOT),
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        }
        self.environment.pop("RAY_ADDRESS", None)
        self.environment.pop("EXPOSED_WORKFLOWS", None)
        # Other tests construct CPU deployments in this process, which hides its GPUs.
        self.environment.pop("CUDA_VISIBLE_DEVICES", None)

    def start(self) -> None:
        for name, group in groups(OVERLAY).items():
            amounts = resources(group)
            command = ["ray", "start", "--block", "--node-ip-address=127.0.0.1"]
            command += [
                f"--num-cpus={amounts.pop('CPU'):.0f}",
                f"--num-gpus={amounts.pop('GPU'):.0f}",
            ]
            command += [f"--resources={json.dumps(amounts)}", "--object-store-memory=300000000"]
            command += [f"--dashboard-agent-listen-port={free_port()}"]
            if name == "head":
                command += ["--head", f"--port={self._gcs_port}", "--dashboard-host=127.0.0.1"]
                command += [f"--dashboard-port={self._dashboard_port}"]
                command += [f"--temp-dir={self.folder}/r"]
            else:
                command += [f"--address=127.0.0.1:{self._gcs_port}"]
            with (self.folder / f"{name}.log").open("wb") as log:
                self._nodes.append(
                    subprocess.Popen(
                        command,
                        cwd=self.folder,
                        env=self.environment,
                        stdin=subprocess.DEVNULL,
                        stdout=log,
                        stderr=subprocess.STDOUT,
                        start_new_session=True,
                    )
                )
            if name == "head":
                self._until(self._has_dashboard, "the dashboard")

    def _has_dashboard(self) -> bool:
        try:
            return httpx.get(f"{self.dashboard}/api/gcs_healthz", timeout=5).status_code < 500
        except httpx.TransportError:
            return False

    def serve(self, *arguments: str) -> str:
        """Run the command `serve`; return its output."""
        done = subprocess.run(
            ["serve", *arguments],
            cwd=self.folder,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=START_LIMIT_S,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def _until(self, condition: Callable[[], bool], name: str) -> None:
        deadline = time.monotonic() + START_LIMIT_S
        while not condition():
            for node in self._nodes:
                assert node.poll() is None, self.logs()
            assert time.monotonic() < deadline, (
                f"{name}: not within {START_LIMIT_S} s\n{self.logs()}"
            )
            time.sleep(0.2)

    def logs(self) -> str:
        return "\n".join(path.read_text()[-2000:] for path in self.folder.glob("*.log"))

    def kill(self) -> None:
        pids = [pid for node in self._nodes for pid in tree(node.pid)]
        for pid in pids:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        for node in self._nodes:
            node.wait()


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    """Folder of all files of the cluster."""
    # Its path must be short, for sockets.
    with tempfile.TemporaryDirectory(prefix="e2s-", dir="/tmp") as name:
        yield Path(name)


@pytest.fixture(scope="module")
def demo(folder: Path) -> Iterator[httpx.Client]:
    """A client of the deployed configuration."""
    config = serve_config(OVERLAY)
    port = free_port()
    with ExitStack() as stack:
        config["applications"][0]["args"]["data_dir"] = str(folder / "data")
        config["http_options"] = {"host": "127.0.0.1", "port": port}
        config["proxy_location"] = "HeadOnly"
        written = folder / "serve.yaml"
        written.write_text(yaml.safe_dump(config))
        pods = Pods(folder)
        stack.callback(pods.kill)
        pods.start()
        pods.serve("deploy", "-a", pods.dashboard, str(written))
        client = stack.enter_context(
            httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=httpx.Timeout(90))
        )
        deadline = time.monotonic() + START_LIMIT_S
        while not _is_ready(client):
            status = pods.serve("status", "-a", pods.dashboard)
            assert time.monotonic() < deadline and "DEPLOY_FAILED" not in status, status
            time.sleep(1)
        yield client


def _is_ready(client: httpx.Client) -> bool:
    try:
        return client.get("/readiness").status_code == 200
    except httpx.TransportError:
        return False


@pytest.mark.usefixtures("demo")
def test_controller_and_proxy_log_json(folder: Path) -> None:
    logs = folder / "r" / "session_latest" / "logs" / "serve"
    for process in ("controller", "proxy"):
        files = list(logs.glob(f"{process}_*.log"))
        lines = [line for file in files for line in file.read_text().splitlines()]
        assert lines, f"{process}: {list(logs.iterdir())}"
        assert {type(json.loads(line)) for line in lines} == {dict}


@pytest.mark.parametrize(
    ("workflow", "parameters"),
    [
        ("foundry_fcn3_workflow", {"n_steps": 2, "n_samples": 2, "output_format": "zarr"}),
        ("foundry_fcn3_stormscope_goes_workflow", {"n_steps": 2, "output_format": "netcdf4"}),
    ],
)
def test_both_workflows_run(demo: httpx.Client, workflow: str, parameters: dict[str, Any]) -> None:
    url = f"/v1/infer/{workflow}"
    response = demo.post(url, json={"parameters": parameters})
    assert response.status_code == 200, response.text
    execution = f"{url}/{response.json()['execution_id']}"
    deadline = time.monotonic() + START_LIMIT_S
    while (status := demo.get(f"{execution}/status", params={"wait": 60}).json())[
        "end_time"
    ] is None:
        assert time.monotonic() < deadline, status
    assert status["status"] == "completed", status
    manifest = demo.get(f"{execution}/results").json()
    assert manifest["totals"]["bytes"] > 1e6
    preview = demo.get(f"{execution}/results/preview.png")
    assert preview.content.startswith(b"\x89PNG")
