"""A server of our own: started with a temporary folder, stopped without leaving anything."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import yaml

from benchmarks import machine
from serve_app.ports import free_port

CONFIG = Path(__file__).parents[1] / "config" / "local.yaml"
START_LIMIT_S = 300.0
STOP_LIMIT_S = 60.0


class Server:
    """Runs ``python -m serve_app`` with config/local.yaml, changed where that is needed.

    Parameters
    ----------
    name : str
        For messages and the temporary folder.
    args : dict
        Replaces entries under ``args``; ``data_dir`` is set here.
    applications : list of dict, optional
        Further applications that are served beside ours.
    environment : mapping, optional
        Variables that are set for the server alone.
    """

    def __init__(
        self,
        name: str,
        args: dict[str, Any],
        applications: list[dict[str, Any]] | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.name = name
        self.folder = Path(tempfile.mkdtemp(prefix="e2s-bench-"))
        config = yaml.safe_load(CONFIG.read_text(encoding="utf-8"))
        ours = config["applications"][0]
        ours["args"] = {**ours["args"], **args, "data_dir": str(self.folder / "data")}
        config["applications"] += applications or []
        self._config = self.folder / "config.yaml"
        self._config.write_text(yaml.safe_dump(config), encoding="utf-8")
        self._log = self.folder / "log"
        self._process: subprocess.Popen[bytes] | None = None
        self._environment = environment or {}
        self.port = free_port()
        self.base = f"http://127.0.0.1:{self.port}"
        self.start_s = 0.0

    def __enter__(self) -> Server:
        began = time.monotonic()
        environment = {
            **os.environ,
            # Never one that somebody else has started.
            "RAY_ADDRESS": "local",
            "RAY_TMPDIR": str(self.folder / "ray"),
            # Other servers may run on this machine.
            "RAY_SERVE_HAPROXY_METRICS_PORT": str(free_port()),
            "RAY_SERVE_HAPROXY_STATS_PORT": str(free_port()),
            **self._environment,
        }
        environment.pop("EXPOSED_WORKFLOWS", None)
        try:
            with self._log.open("wb") as log:
                self._process = subprocess.Popen(
                    [*_SERVE, str(self._config), "--port", str(self.port)],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    env=environment,
                    # Ctrl-C is for us; we pass it on in order.
                    start_new_session=True,
                )
            self._wait_ready(began + START_LIMIT_S)
        except BaseException:
            self._stop()
            raise
        self.start_s = time.monotonic() - began
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop()

    def processes(self) -> list[int]:
        """List the server's processes."""
        return [] if self._process is None else machine.tree(self._process.pid)

    def metrics(self) -> Iterator[str]:
        """Read what Ray's nodes tell Prometheus."""
        listed = self.folder / "ray/ray/session_latest/prom_metrics_service_discovery.json"
        for entry in json.loads(listed.read_text()):
            for address in entry["targets"]:
                with _opener.open(f"http://{address}/metrics", timeout=10) as answer:
                    yield answer.read().decode()

    def _wait_ready(self, deadline: float) -> None:
        assert self._process is not None
        while self._process.poll() is None and time.monotonic() < deadline:
            try:
                with _opener.open(f"{self.base}/readiness", timeout=5):
                    return
            except (urllib.error.URLError, OSError):
                time.sleep(0.5)
        tail = self._log.read_text(errors="replace")[-3000:]
        raise RuntimeError(f"the server {self.name!r} did not become ready:\n{tail}")

    def _stop(self) -> None:
        """Stop as Ctrl-C does; what is still there after a while is killed, and said."""
        processes = self.processes()
        if self._process is not None:
            self._process.send_signal(signal.SIGINT)
            try:
                self._process.wait(STOP_LIMIT_S)
            except subprocess.TimeoutExpired:
                print(f"the server {self.name!r} did not stop in {STOP_LIMIT_S:g} s", flush=True)
        deadline = time.monotonic() + 10.0
        while any(map(machine.alive, processes)) and time.monotonic() < deadline:
            time.sleep(0.1)
        for process in filter(machine.alive, processes):
            print(f"left behind by the server {self.name!r}, killed: {process}", flush=True)
            os.kill(process, signal.SIGKILL)
        if self._process is not None:
            self._process.wait()
        shutil.rmtree(self.folder, ignore_errors=True)


_opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
_SERVE = (sys.executable, "-m", "serve_app")
