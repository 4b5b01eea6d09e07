"""Serving the application on the session's Ray cluster, and looking at it from outside."""

from __future__ import annotations

import os
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


class Server:
    """A client of a served application, and a view of its replicas."""

    def __init__(self, name: str, base_url: str, workflow: str = WORKFLOW) -> None:
        self.name = name
        self.base_url = base_url
        self.workflow = workflow
        self.http = httpx.Client(base_url=base_url, timeout=60)

    def calling(self, workflow: str) -> Server:
        """Give the same server, seen by a client of another workflow."""
        return Server(self.name, self.base_url, workflow)

    def submit(self, **parameters: Any) -> str:
        answer = self.http.post(f"/v1/infer/{self.workflow}", json={"parameters": parameters})
        assert answer.status_code == 200, answer.text
        execution_id: str = answer.json()["execution_id"]
        return execution_id

    def status(self, execution_id: str, wait_s: float = 0.0) -> dict[str, Any]:
        path = f"/v1/infer/{self.workflow}/{execution_id}/status"
        answer = self.http.get(path, params={"wait": wait_s} if wait_s else {})
        assert answer.status_code == 200, answer.text
        found: dict[str, Any] = answer.json()
        return found

    def until(
        self, execution_id: str, holds: Callable[[dict[str, Any]], bool], seconds: float = 60.0
    ) -> dict[str, Any]:
        deadline = time.monotonic() + seconds
        while True:
            # A replica that is replaced takes its connections along.
            try:
                found = self.status(execution_id)
                if holds(found):
                    return found
            except httpx.TransportError:
                found = {}
            assert time.monotonic() < deadline, f"still {found}"
            time.sleep(0.05)

    def until_ready(self, workflow: str | None = None, seconds: float = 60.0) -> None:
        """Wait until a workflow is ready, or all are."""
        deadline = time.monotonic() + seconds
        while not self._is_ready(workflow):
            assert time.monotonic() < deadline, self.http.get("/readiness").text
            time.sleep(0.1)

    def _is_ready(self, workflow: str | None) -> bool:
        answer = self.http.get("/readiness")
        if workflow is None:
            return answer.status_code == 200
        if not answer.headers.get("content-type", "").startswith("application/json"):
            return False  # Serve itself, before the route is there
        body = answer.json()
        return bool(body.get("detail", body)["workflows"][workflow]["ready"])

    def finished(self, execution_id: str, seconds: float = 60.0) -> dict[str, Any]:
        return self.until(execution_id, lambda s: s["end_time"] is not None, seconds)

    def replicas(self, deployment: str) -> list[Any]:
        """Give the actors of a deployment."""
        prefix = f"{PREFIX}{self.name}#{deployment}#"
        named = ray.util.list_named_actors(all_namespaces=True)
        return [
            ray.get_actor(actor["name"], namespace=actor["namespace"])
            for actor in named
            if actor["name"].startswith(prefix)
        ]

    def ask(self, deployment: str, question: Callable[[], Any]) -> list[Any]:
        """Run a function in every replica of a deployment."""
        return ray.get(
            [a.__ray_call__.remote(lambda _: question()) for a in self.replicas(deployment)]
        )

    def pids(self, deployment: str) -> list[int]:
        return self.ask(deployment, os.getpid)


@contextmanager
def served(
    args: Mapping[str, Any],
    name: str,
    port: int,
    seconds: float = 60.0,
    ready: str | None = None,
    *,
    wait: bool = True,
    logging_config: dict[str, Any] | None = None,
) -> Iterator[Server]:
    """Serve the application under a name and route of its own; it is gone afterwards.

    It is ready when all its workflows are, or the one that is named, unless nobody waits for that.
    """
    deploy(args, name, logging_config)
    server = Server(name, f"http://127.0.0.1:{port}/{name}")
    try:
        if wait:
            server.until_ready(ready, seconds)
        yield server
    finally:
        server.http.close()
        serve.delete(name)


def deploy(
    args: Mapping[str, Any], name: str, logging_config: dict[str, Any] | None = None
) -> None:
    """Deploy, or update what is deployed under that name: one workflow unless `args` say more."""
    args = {"workflows": {"exposed": [WORKFLOW]}, **args}
    serve.run(build(args), name=name, route_prefix=f"/{name}", logging_config=logging_config)
