"""Serve the application on the session's Ray cluster, and look at it from outside."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import httpx
import ray
from ray import serve

from serve_app.app import build

WORKFLOW = "foundry_fcn3_workflow"
PREFIX = "SERVE_REPLICA::"
LIMIT_S = 240.0
"""Of every wait for an event. Other tests use the processors meanwhile."""


class Server:
    """A client of one workflow of a served application, with a view of its replicas."""

    def __init__(self, name: str, base_url: str, workflow: str = WORKFLOW) -> None:
        self.name = name
        self.base_url = base_url
        self.workflow = workflow
        self.http = httpx.Client(base_url=base_url, timeout=LIMIT_S)

    def client_of(self, workflow: str) -> Server:
        """Return a client of another workflow of the same server."""
        return Server(self.name, self.base_url, workflow)

    def submit(self, **parameters: Any) -> str:
        response = self.http.post(f"/v1/infer/{self.workflow}", json={"parameters": parameters})
        assert response.status_code == 200, response.text
        execution_id: str = response.json()["execution_id"]
        return execution_id

    def status(self, execution_id: str, wait_s: float = 0.0) -> dict[str, Any]:
        path = f"/v1/infer/{self.workflow}/{execution_id}/status"
        response = self.http.get(path, params={"wait": wait_s} if wait_s else {})
        assert response.status_code == 200, response.text
        status: dict[str, Any] = response.json()
        return status

    def until(
        self, execution_id: str, condition: Callable[[dict[str, Any]], bool]
    ) -> dict[str, Any]:
        """Wait until an execution's status meets a condition; return it."""
        deadline = time.monotonic() + LIMIT_S
        while True:
            # A replica that is replaced closes its connections.
            try:
                status = self.status(execution_id)
                if condition(status):
                    return status
            except httpx.TransportError:
                status = {}
            assert time.monotonic() < deadline, f"still {status}"
            time.sleep(0.05)

    def until_ready(self, workflow: str | None = None) -> None:
        """Wait until one workflow is ready, or all are."""
        deadline = time.monotonic() + LIMIT_S
        while not self._is_ready(workflow):
            assert time.monotonic() < deadline, self.http.get("/readiness").text
            time.sleep(0.1)

    def _is_ready(self, workflow: str | None) -> bool:
        response = self.http.get("/readiness")
        if workflow is None:
            return response.status_code == 200
        if not response.headers.get("content-type", "").startswith("application/json"):
            return False  # from Serve itself, before it knows the route
        body = response.json()
        return bool(body.get("detail", body)["workflows"][workflow]["ready"])

    def finished(self, execution_id: str) -> dict[str, Any]:
        """Wait until an execution has ended; return its status."""
        return self.until(execution_id, lambda s: s["end_time"] is not None)

    def completed(self, execution_id: str) -> dict[str, Any]:
        """Wait until an execution has completed; return its status."""
        ended = self.finished(execution_id)
        assert ended["status"] == "completed", ended
        return ended

    def manifest(self, execution_id: str) -> dict[str, Any]:
        response = self.http.get(f"/v1/infer/{self.workflow}/{execution_id}/results")
        assert response.status_code == 200, response.text
        manifest: dict[str, Any] = response.json()
        return manifest

    def retry(self, execution_id: str) -> None:
        response = self.http.post(f"/v1/infer/{self.workflow}/{execution_id}/retry")
        assert response.status_code == 202, response.text

    def cancel(self, execution_id: str) -> None:
        response = self.http.delete(f"/v1/infer/{self.workflow}/{execution_id}")
        assert response.status_code in (200, 202), response.text

    def purge(self, execution_id: str) -> None:
        """Purge an execution; return when it is unknown."""
        url = f"/v1/infer/{self.workflow}/{execution_id}"
        response = self.http.delete(url, params={"purge": True})
        assert response.status_code in (202, 204), response.text
        deadline = time.monotonic() + LIMIT_S
        while self.http.get(f"{url}/status").status_code != 404:
            assert time.monotonic() < deadline
            time.sleep(0.05)

    def replicas(self, deployment: str) -> list[Any]:
        """Return the actors of a deployment."""
        prefix = f"{PREFIX}{self.name}#{deployment}#"
        named = ray.util.list_named_actors(all_namespaces=True)
        return [
            ray.get_actor(actor["name"], namespace=actor["namespace"])
            for actor in named
            if actor["name"].startswith(prefix)
        ]

    def call(self, deployment: str, function: Callable[[], Any]) -> list[Any]:
        """Call a function in every replica of a deployment."""
        return ray.get(
            [a.__ray_call__.remote(lambda _: function()) for a in self.replicas(deployment)]
        )

    def pids(self, deployment: str) -> list[int]:
        return self.call(deployment, os.getpid)

    def kill(self, deployment: str) -> list[int]:
        """Kill all replicas of a deployment; return their process ids."""
        pids = self.pids(deployment)
        assert pids
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
        return pids


def steps_written(status: Mapping[str, Any]) -> int:
    """Return the number of time steps that an execution has written."""
    return status["progress"]["current_step"] if status["progress"] else 0


@contextmanager
def served(
    args: Mapping[str, Any],
    name: str,
    port: int,
    ready: str | None = None,
    *,
    wait: bool = True,
    logging_config: dict[str, Any] | None = None,
) -> Iterator[Server]:
    """Serve the application under a name and route prefix of its own, and delete it afterwards.

    Parameters
    ----------
    args : mapping
        The application's settings.
    name : str
    port : int
    ready : str, optional
        Workflow to wait for; by default all of them.
    wait : bool
        Whether to wait at all.
    logging_config : dict, optional
        Of Serve.
    """
    deploy(args, name, logging_config)
    server = Server(name, f"http://127.0.0.1:{port}/{name}")
    try:
        if wait:
            server.until_ready(ready)
        yield server
    finally:
        server.http.close()
        # The next application starts while this one shuts down.
        serve.delete(name, _blocking=False)


def deploy(
    args: Mapping[str, Any], name: str, logging_config: dict[str, Any] | None = None
) -> None:
    """Deploy the application, or update the one of that name; by default with one workflow."""
    args = {"workflows": {"exposed": [WORKFLOW]}, **args}
    serve.run(build(args), name=name, route_prefix=f"/{name}", logging_config=logging_config)
