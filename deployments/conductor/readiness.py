"""Check periodically whether models, data sources and users' workflows can be used."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Collection
from typing import Any

import sqlalchemy as sa
from ray import serve
from ray.exceptions import RayError
from ray.serve.exceptions import RayServeException
from ray.serve.handle import DeploymentHandle

from deployments.conductor.origins import Origins
from deployments.runtime.failures import as_stage_failure
from deployments.store.conductor_view import ConductorStore
from workflows.custom import WorkflowDescription
from workflows.model_description import ModelDescription
from workflows.readiness import ComponentStatus, NotReady

logger = logging.getLogger("ray.serve")

FIRST_INTERVAL_S = 0.5
INTERVAL_S = 10.0
TIMEOUT_S = 30.0


class ReadinessWatch:
    """Asks every component whether it can be used, and records the answers.

    Parameters
    ----------
    components : dict of str to str
        Models, data sources and users' workflows, with the deployment that serves each.
    write : callable
        Calls a method of the store with the fencing token, in a thread.
    origins : Origins
        Receives the answers.
    scaled_to_zero : callable, optional
        Returns the deployments that autoscaling has left without a replica. Their components keep
        their last status: a call would start a replica.
    """

    def __init__(
        self,
        components: dict[str, str],
        deployments: dict[str, DeploymentHandle[Any]],
        store: ConductorStore,
        write: Callable[..., Awaitable[Any]],
        origins: Origins,
        scaled_to_zero: Callable[[], Collection[str]] = lambda: (),
    ) -> None:
        self._components = components
        self._deployments = deployments
        self._store = store
        self._write = write
        self._origins = origins
        self._scaled_to_zero = scaled_to_zero
        self._descriptions: dict[str, WorkflowDescription | ModelDescription] = {}

    async def run(self) -> None:
        """Check all components periodically, until cancelled."""
        interval = FIRST_INTERVAL_S
        while True:
            idle = await self._idle_deployments()
            checked = (name for name in self._components if not self._is_idle(name, idle))
            await asyncio.gather(*map(self._check, checked))
            await asyncio.sleep(interval)
            interval = INTERVAL_S

    async def _idle_deployments(self) -> Collection[str]:
        try:
            return await asyncio.to_thread(self._scaled_to_zero)
        except (RayError, RayServeException) as error:
            # Serve's controller is unavailable: treat every deployment as running.
            logger.warning("cannot tell which models are scaled to zero: %s", error)
            return ()

    def _is_idle(self, component: str, idle: Collection[str]) -> bool:
        # A component that was never ready is asked, even if that starts a replica.
        if not idle or component not in self._origins:
            return False
        return self._deployments[self._components[component]].deployment_id.name in idle

    async def _check(self, component: str) -> None:
        status = await self._ask(component)
        if status is None:
            return
        try:
            if status.description not in (None, self._descriptions.get(component)):
                description = status.description
                await self._write(
                    self._store.set_description, component, description.model_dump(mode="json")
                )
                self._descriptions[component] = description
            await self._write(self._store.set_readiness, component, status)
        except sa.exc.SQLAlchemyError as error:
            # The next check records it.
            logger.warning("readiness of %s could not be recorded: %s", component, error)

    async def _ask(self, component: str) -> ComponentStatus | None:
        """Return the status of a component; None if it is busy, and its last status still holds."""
        deployment = self._deployments[self._components[component]]
        arguments = (component,) if self._components[component] != component else ()
        try:
            response = deployment.check_readiness.remote(*arguments)
            async with asyncio.timeout(TIMEOUT_S):
                status: ComponentStatus = await response
            self._origins.record(component, status)
            return status
        except TimeoutError:
            if component in self._origins:
                return None
            return NotReady(reason=f"{component} is still being loaded, or waits for a GPU or CPU")
        except Exception as error:
            self._origins.forget(component)
            return NotReady(reason=str(as_stage_failure("readiness", error)))


def scaled_to_zero() -> set[str]:
    """Return the deployments of this application that autoscaling has left without a replica."""
    application = serve.status().applications.get(serve.get_replica_context().app_name)
    deployments = {} if application is None else application.deployments
    return {
        name
        for name, deployment in deployments.items()
        if deployment.status == "HEALTHY" and not deployment.replica_states
    }
