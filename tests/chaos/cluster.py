"""A Ray cluster of several nodes on one machine, each with its own disk, whose parts are killed."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import httpx

from benchmarks.machine import tree
from serve_app.__main__ import ENVIRONMENT
from serve_app.ports import free_port, free_ports, ports_and_sockets

ROOT = Path(__file__).parents[2]
APPLICATION = "earth2serve"
REPLICA = f"ray::ServeReplica:{APPLICATION}:"
CONTROLLER = "ray::ServeController"
START_LIMIT_S = 180.0
GRACE_S = 60.0
"""Grace period of a pod in ``config/kuberay``; Ray drains a node for up to 30 s of it."""
GPUS, GPUS_ALONE = 2, 3
"""Number of stand-ins for GPUs on each worker node, and on a head without worker nodes."""


class Cluster:
    """A head and worker nodes, with the application on them.

    Parameters
    ----------
    args : dict
        The application's settings. ``data_dir`` is a different folder on each node.
    folder : Path
        For logs and the nodes' folders.
    n_workers : int
        Nodes with GPUs. Without any, the head has the GPUs, and there is one disk.
    environment : mapping of str to str, optional
        Additional variables of all processes.
    """

    def __init__(
        self,
        args: Mapping[str, Any],
        folder: Path,
        n_workers: int,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self._environment = _environment() | dict(environment or {})
        # Not in `folder`: a socket's path has at most 97 characters, and Serve adds 57.
        self._sockets = Path(tempfile.mkdtemp(prefix="h-"))
        if not n_workers:
            self._environment |= _haproxy(self._sockets)
        self._args = args
        self._folder = folder
        self._n_workers = n_workers
        self._port, self._dashboard_port, self.http_port = free_port(), free_port(), free_port()
        self._n_starts = 0
        self._nodes: dict[int, subprocess.Popen[bytes]] = {}
        self.base_url = f"http://127.0.0.1:{self.http_port}"
        Path(args["data_dir"]).mkdir(parents=True, exist_ok=True)

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.kill_all()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.kill_all()
        shutil.rmtree(self._sockets, ignore_errors=True)

    def start(self) -> None:
        """Start all nodes and deploy the application."""
        self.start_node(0)
        for number in range(1, self._n_workers + 1):
            self.start_node(number)
        self._deploy()

    def start_node(self, number: int) -> None:
        """Start a node; 0 is the head."""
        command = ["ray", "start", "--block", "--node-ip-address=127.0.0.1", "--num-cpus=8"]
        # By default this port would be the same on every node.
        command.append(f"--dashboard-agent-listen-port={free_port()}")
        gpus = GPUS if number else 0 if self._n_workers else GPUS_ALONE
        command.append(f"--num-gpus={gpus}")
        if number == 0:
            command += ["--head", f"--port={self._port}", "--include-dashboard=false"]
            self._n_starts += 1
            # Its path must be short, for sockets.
            command += [f"--temp-dir={self._folder}/r{self._n_starts}"]
            command += ["--object-store-memory=300000000"]
        else:
            command += [f"--address=127.0.0.1:{self._port}", "--object-store-memory=200000000"]
        script = " ".join(command)
        if self._n_workers:
            # Only this node sees the mount, so other nodes cannot read what it writes there.
            own = self._folder / f"disk-{number}"
            own.mkdir(exist_ok=True)
            script = f"mount --bind {own} {self._args['data_dir']} && exec {script}"
            command = ["unshare", "--mount", "sh", "-c", script]
        with (self._folder / f"node-{number}.log").open("ab") as log:
            self._nodes[number] = subprocess.Popen(
                command,
                cwd=ROOT,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=self._environment,
                start_new_session=True,
            )
        self._wait_for_nodes()

    def kill_node(self, number: int) -> None:
        """Kill all processes of a node at once."""
        node = self._nodes.pop(number)
        _kill(tree(node.pid))
        node.wait()

    def kill_all(self) -> None:
        """Kill all nodes at once, as a power cut does."""
        pids = [pid for node in self._nodes.values() for pid in tree(node.pid)]
        _kill(pids)
        for node in self._nodes.values():
            node.wait()
        self._nodes.clear()

    def stop(self) -> None:
        """Stop all nodes as Kubernetes does.

        A container runtime sends SIGTERM only to the first process, here ``ray start``. When that
        has ended, or after the grace period, the kernel kills the other processes.
        """
        pids = [pid for node in self._nodes.values() for pid in tree(node.pid)]
        for node in self._nodes.values():
            os.kill(node.pid, signal.SIGTERM)
        deadline = time.monotonic() + GRACE_S
        while time.monotonic() < deadline and any(n.poll() is None for n in self._nodes.values()):
            time.sleep(0.1)
        self.kill_all()
        _kill(pids)

    def restart(self) -> None:
        """Kill all nodes at once, and start new ones."""
        self.kill_all()
        self.start()

    def pids(self, prefix: str) -> dict[int, str]:
        """Return the titles of all processes whose title starts with a prefix, by process id."""
        found = {}
        for node in self._nodes.values():
            for pid in tree(node.pid):
                try:
                    title = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace")
                except (FileNotFoundError, ProcessLookupError):
                    continue
                if title.startswith(prefix):
                    found[pid] = title.strip("\0 ")
        return found

    def processes(self, command: str) -> list[int]:
        """Return the ids of the processes of a command."""
        found = []
        for node in self._nodes.values():
            for pid in tree(node.pid):
                try:
                    name = Path(f"/proc/{pid}/comm").read_text().strip()
                except (FileNotFoundError, ProcessLookupError):
                    continue
                if name == command:
                    found.append(pid)
        return found

    def deployments(self) -> set[str]:
        """Return the names of the deployments that have a replica."""
        titles = self.pids(REPLICA).values()
        return {re.split(r"[:.\s]", title.removeprefix(REPLICA))[0] for title in titles}

    def _wait_for_nodes(self) -> None:
        deadline = time.monotonic() + START_LIMIT_S
        while True:
            for number, node in self._nodes.items():
                if node.poll() is not None:
                    log = (self._folder / f"node-{number}.log").read_text()
                    raise RuntimeError(f"node {number} ended: {log[-2000:]}")
            raylets = self.processes("raylet")
            if len(raylets) >= len(self._nodes):
                return
            if time.monotonic() > deadline:
                raise RuntimeError(f"{len(raylets)} of {len(self._nodes)} nodes have started")
            time.sleep(0.2)

    def _deploy(self) -> None:
        """Deploy in a separate process; the application outlives it."""
        values = {"address": f"127.0.0.1:{self._port}", "args": self._args, "port": self.http_port}
        done = subprocess.run(
            [sys.executable, "-m", "tests.chaos.deploy", json.dumps(values)],
            cwd=ROOT,
            env=self._environment,
            capture_output=True,
            text=True,
            timeout=START_LIMIT_S,
        )
        if done.returncode:
            raise RuntimeError(f"deploying failed: {done.stdout[-3000:]}{done.stderr[-3000:]}")
        deadline = time.monotonic() + START_LIMIT_S
        while not self.is_ready():
            if time.monotonic() > deadline:
                raise RuntimeError("the application does not become ready")
            time.sleep(0.2)

    def is_ready(self) -> bool:
        """Return whether every workflow is ready."""
        try:
            return httpx.get(f"{self.base_url}/readiness", timeout=5).status_code == 200
        except httpx.TransportError:
            return False


def _environment() -> dict[str, str]:
    environment = {
        **os.environ,
        **ENVIRONMENT,
        "RAY_AUTH_MODE": "disabled",
        # It would listen on the same ports on every node.
        "RAY_SERVE_ENABLE_HA_PROXY": "0",
        "PYTHONPATH": str(ROOT),
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }
    environment.pop("RAY_ADDRESS", None)
    environment.pop("EXPOSED_WORKFLOWS", None)
    # Other tests construct CPU deployments in this process, which hides its GPUs.
    environment.pop("CUDA_VISIBLE_DEVICES", None)
    return environment


def _haproxy(folder: Path) -> dict[str, str]:
    """Return variables for HAProxy in front of a single node, with its files in a folder."""
    metrics, stats = free_ports(2)
    return {
        **ports_and_sockets(folder),
        "RAY_SERVE_ENABLE_HA_PROXY": "1",
        "RAY_SERVE_HAPROXY_METRICS_PORT": str(metrics),
        "RAY_SERVE_HAPROXY_STATS_PORT": str(stats),
        "EARTH2SERVE_PYTHON": sys.executable,
    }


def _kill(pids: list[int]) -> None:
    for pid in pids:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
    deadline = time.monotonic() + 10
    while any(map(_is_alive, pids)) and time.monotonic() < deadline:
        time.sleep(0.02)


def _is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False
