"""The HTTP API as a Ray Serve deployment."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from fastapi import FastAPI
from ray import serve
from ray.serve.handle import DeploymentHandle

from deployments.runtime.gpus import hide_gpus
from deployments.store.executions import ExecutionStore
from serve_app.http.create_app import create_app
from serve_app.http.options import IngressOptions
from workflows.delivery import Container
from workflows.errors import Problem


@serve.deployment(
    name="Ingress",
    # Never reached: requests above it would wait, and probes with them. What requests hold is
    # bounded by kind, see `ChangeWatcher` and `serve_app.files.buffers`.
    max_ongoing_requests=100_000,
    health_check_period_s=5,
    health_check_timeout_s=15,
    ray_actor_options={"num_cpus": 0.1, "num_gpus": 0},
)
@serve.ingress()
class Ingress:
    """Answers HTTP requests; stateless, with any number of replicas.

    Parameters
    ----------
    options : IngressOptions
    conductor : DeploymentHandle
        Has ``nudge()``.
    custom : dict of str to DeploymentHandle
        Custom workflows by name, each with ``validate(parameters)``.
    blob_uploader : DeploymentHandle, optional
        Has ``sign(container, workflow, execution_id, lifetime_s)``.
    """

    def __init__(
        self,
        options: IngressOptions,
        conductor: DeploymentHandle[Any],
        custom: dict[str, DeploymentHandle[Any]],
        blob_uploader: DeploymentHandle[Any] | None = None,
    ) -> None:
        hide_gpus()
        self._options = options
        self._custom = custom
        self._conductor = conductor
        self._blob_uploader = blob_uploader
        self._store = ExecutionStore(options.store_url)

    def __serve_build_asgi_app__(self) -> FastAPI:
        """Return the application; Serve calls this in the replica, after the constructor."""
        validators = {name: partial(_validate, handle) for name, handle in self._custom.items()}
        uploader = self._blob_uploader
        sign = partial(_sign, uploader) if uploader is not None else None
        nudge = partial(_nudge, self._conductor)
        return create_app(self._options, self._store, nudge, validators, sign=sign)


async def _nudge(conductor: DeploymentHandle[Any]) -> None:
    await conductor.nudge.remote()


async def _sign(
    blob_uploader: DeploymentHandle[Any], container: Container, *args: str | float
) -> str:
    url: str = await blob_uploader.sign.remote(container, *args)
    return url


async def _validate(
    workflow: DeploymentHandle[Any], parameters: Mapping[str, Any]
) -> list[Problem]:
    problems: list[Problem] = await workflow.validate.remote(parameters)
    return problems
