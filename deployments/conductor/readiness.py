"""The watch over models and data sources; what they say of themselves makes up readiness."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection
from typing import Any

import sqlalchemy as sa
from ray import serve
from ray.exceptions import RayError
from ray.serve.exceptions import RayServeException
from ray.serve.handle import DeploymentHandle

from deployments.conductor.context import Lives
from deployments.runtime.failures import as_stage_failure
from deployments.store.conductor_view import ConductorStore

logger = logging.getLogger("ray.serve")

FIRST_PAUSE_S = 0.5
INTERVAL_S = 10.0
TIMEOUT_S = 30.0


class ReadinessWatch:
    """Asks models and data sources what they are, and keeps and records their answers.

    Parameters
    ----------
    components : dict of str to str
        Models and data sources, and the deployment that serves each.
    deployments : dict of str to DeploymentHandle
    store : ConductedStore
        Gets the readiness.
    lives : Lives
        Get the descriptions.
    asleep : callable, optional
        Gives the deployments that have no replica since there is nothing to do. They are not
        asked: that would start one, and what was known of them stays.
    """

    def __init__(
        self,
        components: dict[str, str],
        deployments: dict[str, DeploymentHandle[Any]],
        store: ConductorStore,
        lives: Lives,
        asleep: Callable[[], Collection[str]] = lambda: (),
    ) -> None:
        self._asleep = asleep
        self._components = components
        self._deployments = deployments
        self._store = store
        self._lives = lives
        self._described: dict[str, Any] = {}

    async def run(self) -> None:
        """Look at all of them now and then, until cancelled."""
        pause = FIRST_PAUSE_S
        while True:
            asleep = await self._who_sleeps()
            looked_at = (name for name in self._components if not self._sleeps(name, asleep))
            await asyncio.gather(*map(self._look_at, looked_at))
            await asyncio.sleep(pause)
            pause = INTERVAL_S

    async def _who_sleeps(self) -> Collection[str]:
        try:
            return await asyncio.to_thread(self._asleep)
        except (RayError, RayServeException) as error:
            # Serve's controller is away for a moment: all are asked, as if nobody slept.
            logger.warning("which models are scaled to zero is not known: %s", error)
            return ()

    def _sleeps(self, component: str, asleep: Collection[str]) -> bool:
        # Once it has to say what it is, and whether it can be loaded.
        if not asleep or component not in self._lives.descriptions:
            return False
        return self._deployments[self._components[component]].deployment_id.name in asleep

    async def _look_at(self, component: str) -> None:
        deployment = self._deployments[self._components[component]]
        arguments = (component,) if self._components[component] != component else ()
        known = self._lives.descriptions
        try:
            found = await asyncio.wait_for(
                _awaited(deployment.describe.remote(*arguments)), TIMEOUT_S
            )
            # A user's workflow can tell what it is while it cannot run yet.
            reason = found.pop("unready", None)
            described = found.pop("description", None)
            ready = reason is None
            if ready:
                known[component] = found
            if described is not None and described != self._described.get(component):
                await self._lives.write(self._store.describe, component, described)
                self._described[component] = described
        except TimeoutError:
            # Busy with work: what was known stays.
            if component in known:
                return
            ready = False
            reason = f"{component} is still being loaded, or waits for a GPU or CPU"
        except sa.exc.SQLAlchemyError as error:
            logger.warning("description of %s could not be recorded: %s", component, error)
            return
        except Exception as error:
            ready, reason = False, str(as_stage_failure("readiness", error))
            known.pop(component, None)
        try:
            await self._lives.write(
                self._store.set_readiness, component, ready=ready, reason=reason
            )
        except sa.exc.SQLAlchemyError as error:
            # The next look tells it; without this there would be none.
            logger.warning("readiness of %s could not be recorded: %s", component, error)


def scaled_to_zero() -> set[str]:
    """Name the deployments of this application that autoscaling has left without a replica."""
    found = serve.status().applications.get(serve.get_replica_context().app_name)
    deployments = {} if found is None else found.deployments
    return {
        name
        for name, each in deployments.items()
        if each.status == "HEALTHY" and not each.replica_states
    }


async def _awaited(response: Any) -> Any:
    return await response
