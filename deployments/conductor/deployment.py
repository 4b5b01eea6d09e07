"""The Conductor's Serve deployment."""

from __future__ import annotations

import asyncio
from typing import Any

from ray import serve
from ray.serve.handle import DeploymentHandle

from deployments.conductor.loop import ConductorLoop
from deployments.conductor.options import ConductorOptions
from deployments.conductor.readiness import scaled_to_zero
from deployments.runtime.gpus import hide_gpus
from workflows.errors import StageFailed
from workflows.execution import Stage


@serve.deployment(
    name="Conductor",
    num_replicas=1,
    max_ongoing_requests=1000,
    graceful_shutdown_timeout_s=30,
    # Nothing advances without it. Serve replaces a replica after three failed checks: one that
    # hangs after 20 s, where the defaults take two minutes.
    health_check_period_s=2,
    health_check_timeout_s=5,
)
class Conductor:
    """Runs executions while it holds the lease.

    Parameters
    ----------
    options : ConductorOptions
    deployments : dict of str to DeploymentHandle
        ``packager``, ``initial_conditions``, and every model and user's workflow by name.
    components : dict of str to str
        Models, data sources and users' workflows to watch, and the deployment that serves each.
    """

    async def __init__(  # type: ignore[misc]
        self,
        options: ConductorOptions,
        deployments: dict[str, DeploymentHandle[Any]],
        components: dict[str, str],
    ) -> None:
        hide_gpus()
        self._loop = ConductorLoop(options, deployments, components, scaled_to_zero=scaled_to_zero)
        # Not awaited: a replica that replaces another is healthy while it waits for the lease,
        # or Serve would never stop the one that holds it.
        self._task = asyncio.get_running_loop().create_task(self._loop.run())

    async def nudge(self) -> None:
        """Look at the store at once, because a request was written to it."""
        self._loop.nudge()

    async def check_health(self) -> None:
        """Fail when the loop has ended, so that Serve starts another replica."""
        if self._task.done():
            raise StageFailed(Stage.FINISH, f"the Conductor has stopped: {self._task}")

    async def __del__(self) -> None:
        # Serve calls this as the replica stops, also if the constructor failed.
        if hasattr(self, "_loop"):
            await self._loop.stop()
