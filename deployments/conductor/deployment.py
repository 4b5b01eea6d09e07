"""Conductor: the life of an execution, and the one process that carries it.

An execution's row is its place in the queue. The Conductor claims the one that waits longest and
runs `execute` for it, a durable coroutine: every awaited step is recorded, so whoever comes after
a crash goes on behind the last recorded one.
"""

from __future__ import annotations

import asyncio
from typing import Any

from dbos import DBOS
from ray import serve
from ray.serve.handle import DeploymentHandle

from deployments.conductor.loop import ConductorLoop, conduct_here, here
from deployments.conductor.options import ConductorOptions
from deployments.conductor.readiness import scaled_to_zero
from deployments.conductor.steps import (
    condition_member,
    create_result,
    export,
    fetch_initial_conditions,
    finish,
    forecast_member,
    keep,
    nowcast_member,
    package,
    register,
    run,
    run_concurrently,
    upload,
    uploading_ahead,
)
from deployments.custom_workflow.deployment import RunResult
from deployments.runtime.gpus import hide_gpus
from workflows.base import Conditioning, Plan
from workflows.custom import CustomPlan
from workflows.delivery import Delivery
from workflows.errors import StageFailed
from workflows.execution import Progress, Stage, Status
from workflows.manifest import Manifest


@DBOS.workflow(name="execute", max_recovery_attempts=None)
async def execute(execution_id: str, attempt: int = 0, packaged: Manifest | None = None) -> None:
    """Carry one execution from its plan to a finished, delivered result.

    Parameters
    ----------
    attempt : int
        How often the execution had been tried before.
    packaged : Manifest, optional
        The results, if all that is left to do is to deliver them.
    """
    async with here().life_of(execution_id, attempt) as plan:
        progress = None
        if packaged is not None:
            results = packaged
        elif isinstance(plan, CustomPlan):
            made = await run_custom_workflow(execution_id, plan)
            results, progress = made.results, made.progress
        elif plan.conditioning is not None:
            results = await run_nowcast(execution_id, plan, plan.conditioning)
        else:
            results = await run_forecast(execution_id, plan)
        if plan.delivery is not None:
            results = await deliver(execution_id, plan, plan.delivery, results, progress)
        await finish(execution_id, results, progress)


async def run_forecast(execution_id: str, plan: Plan) -> Manifest:
    """Carry a forecast of ours from initial conditions to described results."""
    await here().enter(execution_id, Stage.INITIAL_CONDITIONS)
    begun, initial_conditions = await run_concurrently(
        create_result(execution_id, plan), fetch_initial_conditions(execution_id, plan)
    )
    left = await here().progress.remaining_work(execution_id, plan, begun)
    await here().enter(execution_id, Stage.INFERENCE)
    async with uploading_ahead(execution_id, plan):
        await run_concurrently(
            *([export(execution_id)] if plan.output_format == "netcdf4" else []),
            *(forecast_member(execution_id, plan, m, initial_conditions) for m in left.members),
        )
    await here().enter(execution_id, Stage.PACKAGE, Status.PENDING_RESULTS)
    return await package(execution_id)


async def run_nowcast(execution_id: str, plan: Plan, conditioning: Conditioning) -> Manifest:
    """Carry a forecast that another one conditions: field by field, while both are computed."""
    await here().enter(execution_id, Stage.INITIAL_CONDITIONS)
    begun, satellite_image, analysis = await run_concurrently(
        create_result(execution_id, plan),
        fetch_initial_conditions(execution_id, plan),
        fetch_initial_conditions(execution_id, conditioning),
    )
    left = await here().progress.remaining_work(execution_id, plan, begun)
    await here().enter(execution_id, Stage.INFERENCE)
    async with uploading_ahead(execution_id, plan):
        await run_concurrently(
            *([export(execution_id)] if plan.output_format == "netcdf4" else []),
            *(
                here().progress.all_conditioned(
                    execution_id, plan, m, condition_member(execution_id, plan, m, analysis)
                )
                for m in left.conditioning
            ),
            *(nowcast_member(execution_id, plan, m, satellite_image) for m in left.members),
        )
    await here().enter(execution_id, Stage.PACKAGE, Status.PENDING_RESULTS)
    return await package(execution_id)


async def run_custom_workflow(execution_id: str, plan: CustomPlan) -> RunResult:
    """Carry the run of a user's workflow class from its call to described results.

    It enters inference as it is claimed, and the package stage when that takes a while.
    """
    made = await run(execution_id, plan)
    if made.shortcoming is not None:
        await keep(execution_id, made)
        raise StageFailed(Stage.PACKAGE, made.shortcoming)
    return made


async def deliver(
    execution_id: str,
    plan: Plan | CustomPlan,
    delivery: Delivery,
    results: Manifest,
    progress: Progress | None,
) -> Manifest:
    """Bring results to Azure: first the files, then the item that refers to them.

    From here on the results stay, however the delivery goes: `results` grows by what was done, so
    that a retry goes on behind it.
    """
    here().freed(execution_id)
    if delivery.container is not None and results.uploaded is None:
        await here().enter_delivery(execution_id, Stage.UPLOAD, results, progress)
        uploaded = await upload(execution_id, plan.workflow, delivery.container)
        results = uploaded.added_to(results)
    if delivery.geo_catalog_url is not None and isinstance(plan, Plan):
        await here().enter_delivery(execution_id, Stage.REGISTER, results, progress)
        registered = await register(execution_id, plan, delivery, results)
        results = registered.added_to(results)
    return results


@serve.deployment(
    name="Conductor",
    num_replicas=1,
    max_ongoing_requests=1000,
    graceful_shutdown_timeout_s=30,
    # Nothing advances without it. Serve replaces a replica after three failed checks, 10 s apart
    # by default.
    health_check_period_s=2,
)
class Conductor:
    """Carries executions through their lives, while it holds the lease.

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
        self._conducting = ConductorLoop(
            execute,
            deployments,
            components,
            store_url=options.store_url,
            max_running=options.max_running,
            replicas=options.replicas,
            in_turn=options.in_turn,
            drain_s=options.drain_s,
            housekeeping=options.housekeeping,
            asleep=scaled_to_zero,
        )
        conduct_here(self._conducting)
        # Not awaited: a replica that replaces another is healthy while it waits for the lease,
        # or Serve would never stop the one that holds it.
        self._task = asyncio.get_running_loop().create_task(self._conducting.run())

    async def nudge(self) -> None:
        """Look at the store at once: something was asked for."""
        self._conducting.nudge()

    async def check_health(self) -> None:
        """Fail when conducting has ended, so that Serve starts another replica."""
        if self._task.done():
            raise StageFailed(Stage.FINISH, f"the Conductor has stopped: {self._task}")

    async def __del__(self) -> None:
        # Serve calls this on the way out, also when the constructor did not get far.
        if hasattr(self, "_conducting"):
            await self._conducting.stop()
