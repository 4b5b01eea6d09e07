"""Conductor: the life of an execution, and the one process that carries it.

An execution's row is its place in the queue. The Conductor claims the one that waits longest and
runs `execute` for it, a durable coroutine: every awaited step is recorded, so whoever comes after
a crash goes on behind the last recorded one.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine
from functools import partial
from typing import Any, cast

from dbos import DBOS
from pydantic import BaseModel, ConfigDict
from ray import serve
from ray.serve.handle import DeploymentHandle

from deployments._conducting import Conducting, conduct_here, here
from deployments._endurance import uninterrupted, unless_over_soon
from deployments._fcn3_steps import ConditioningJob, MemberJob
from deployments._isolation import hide_gpus
from deployments._stormscope_steps import NowcastJob
from deployments._transient import TransientFailure
from deployments.custom_workflow import Packaging, RunJob, RunResult
from workflows.base import Conditioning, Plan
from workflows.custom import CustomPlan
from workflows.errors import StageFailed
from workflows.execution import Progress, Stage, Status

logger = logging.getLogger("ray.serve")


def _worth_another_try(error: BaseException) -> bool:
    return isinstance(error, TransientFailure)


_step = partial(
    DBOS.step,
    retries_allowed=True,
    interval_seconds=1.0,
    backoff_rate=2.0,
    should_retry=_worth_another_try,
    preemptible=True,
)
recorded = _step(max_attempts=4)
"""A step whose outcome is kept: it is not run again after a crash, but may run twice during one."""
recorded_run = _step(max_attempts=3)
"""The same for users' code: what has ended its process thrice will do so again."""


@DBOS.workflow(name="execute", max_recovery_attempts=None)
async def execute(execution_id: str) -> None:
    """Carry one execution from its plan to a finished result."""
    async with here().life_of(execution_id) as plan:
        if isinstance(plan, CustomPlan):
            made = await life_of_custom(execution_id, plan)
            await finish(execution_id, made.results, made.progress)
        elif plan.conditioning is not None:
            await finish(execution_id, await life_of_nowcast(execution_id, plan, plan.conditioning))
        else:
            await finish(execution_id, await life_of_forecast(execution_id, plan))


async def life_of_forecast(execution_id: str, plan: Plan) -> dict[str, Any]:
    """Carry a forecast of ours from initial conditions to described results."""
    await here().enter(execution_id, Stage.INITIAL_CONDITIONS)
    _, initial_conditions = await together(
        create_result(execution_id, plan), fetch_initial_conditions(execution_id, plan)
    )
    await here().enter(execution_id, Stage.INFERENCE)
    await together(
        *([export(execution_id)] if plan.output_format == "netcdf4" else []),
        *(forecast_member(execution_id, plan, m, initial_conditions) for m in plan.members),
    )
    await here().enter(execution_id, Stage.PACKAGE, Status.PENDING_RESULTS)
    return await package(execution_id)


async def life_of_nowcast(
    execution_id: str, plan: Plan, conditioning: Conditioning
) -> dict[str, Any]:
    """Carry a forecast that another one conditions: field by field, while both are computed."""
    await here().enter(execution_id, Stage.INITIAL_CONDITIONS)
    _, satellite_image, analysis = await together(
        create_result(execution_id, plan),
        fetch_initial_conditions(execution_id, plan),
        fetch_initial_conditions(execution_id, conditioning),
    )
    await here().enter(execution_id, Stage.INFERENCE)
    await together(
        *([export(execution_id)] if plan.output_format == "netcdf4" else []),
        *(
            here().all_conditioned(
                execution_id, plan, m, condition_member(execution_id, plan, m, analysis)
            )
            for m in conditioning.members
        ),
        *(nowcast_member(execution_id, plan, m, satellite_image) for m in plan.members),
    )
    await here().enter(execution_id, Stage.PACKAGE, Status.PENDING_RESULTS)
    return await package(execution_id)


async def life_of_custom(execution_id: str, plan: CustomPlan) -> RunResult:
    """Carry the run of a user's workflow class from its call to described results.

    It enters inference as it is claimed, and the package stage when that takes a while.
    """
    made = await run(execution_id, plan)
    if made.shortcoming is not None:
        await keep(execution_id, made)
        raise StageFailed(Stage.PACKAGE, made.shortcoming)
    return made


@recorded
async def create_result(execution_id: str, plan: Plan) -> None:
    """Create the result's arrays, all values missing."""
    # To its end, even if that is cancelled: it would go on making what the cancel removes.
    await uninterrupted(
        here().call(
            Stage.PACKAGE, "packager", "create", plan, execution_id, here().provenance(plan)
        )
    )


@recorded
async def fetch_initial_conditions(execution_id: str, plan: Plan | Conditioning) -> str:
    """Fetch the analysed state at the start; gives its path."""
    path: str = await here().call(
        Stage.INITIAL_CONDITIONS, "initial_conditions", "fetch", plan, execution_id, fenced=False
    )
    return path


@recorded
async def forecast_member(
    execution_id: str, plan: Plan, member: int, initial_conditions: str
) -> None:
    """Compute one ensemble member; when this is done, all its steps are written."""
    job = MemberJob(
        execution_id=execution_id,
        plan=plan,
        member=member,
        initial_conditions=initial_conditions,
        fence=here().fence,
    )
    async for progress in here().stream(Stage.INFERENCE, plan.model, "forecast_member", job):
        await here().note_progress(execution_id, plan, member, progress.written)


@recorded
async def condition_member(execution_id: str, plan: Plan, member: int, analysis: str) -> None:
    """Compute one member of what conditions the plan's forecast; at the end its fields are kept."""
    job = ConditioningJob(
        execution_id=execution_id,
        plan=plan,
        member=member,
        initial_conditions=analysis,
        fence=here().fence,
    )
    model = cast(Conditioning, plan.conditioning).model
    async for progress in here().stream(Stage.INFERENCE, model, "condition_member", job):
        await here().note_conditioning(execution_id, plan, member, progress.written)


@recorded
async def nowcast_member(execution_id: str, plan: Plan, member: int, satellite_image: str) -> None:
    """Compute one ensemble member as the fields come that condition it."""
    # Not before there is something to begin with: a model that waits could work for others.
    all_conditioned = await here().conditioned(execution_id, plan, plan.conditioned_by(member))
    job = NowcastJob(
        execution_id=execution_id,
        plan=plan,
        member=member,
        initial_conditions=satellite_image,
        all_conditioned=all_conditioned,
        fence=here().fence,
    )
    async for progress in here().stream(Stage.INFERENCE, plan.model, "nowcast_member", job):
        await here().note_progress(execution_id, plan, member, progress.written)


@recorded
async def export(execution_id: str) -> None:
    """Write the NetCDF4 file while the members are computed."""
    await here().call(Stage.PACKAGE, "packager", "export_netcdf", execution_id)


@recorded
async def package(execution_id: str) -> dict[str, Any]:
    """Draw a map, check that the result is whole, and describe its files."""
    results: dict[str, Any] = await here().call(Stage.PACKAGE, "packager", "finish", execution_id)
    return results


@recorded_run
async def run(execution_id: str, plan: CustomPlan) -> RunResult:
    """Run a user's workflow class; when this is done, its results are in their place."""
    job = RunJob(execution_id=execution_id, plan=plan, fence=here().fence)
    made: RunResult | None = None
    try:
        async with unless_over_soon() as later:
            async for told in here().stream(Stage.INFERENCE, plan.workflow, "run", job):
                if isinstance(told, RunResult):
                    made = told
                elif isinstance(told, Packaging):
                    here().freed(execution_id)
                    later(
                        partial(
                            here().enter,
                            execution_id,
                            Stage.PACKAGE,
                            Status.PENDING_RESULTS,
                            told.progress,
                        )
                    )
                else:
                    await here().record(execution_id, progress=told)
    except TransientFailure as error:
        if "Died" not in str(error):
            raise
        raise TransientFailure(
            Stage.INFERENCE, f"the process that ran the workflow has ended: {error}"
        ) from None
    if made is None:
        raise StageFailed(Stage.INFERENCE, "the run ended without a result")
    return made


@recorded
async def keep(execution_id: str, made: RunResult) -> None:
    """Keep results that fall short: they can be had although the execution fails."""
    await uninterrupted(here().keep(execution_id, made.results, made.progress))


async def finish(
    execution_id: str, results: dict[str, Any], progress: Progress | None = None
) -> None:
    """Say that the results can be had; once that has begun, a cancel comes too late.

    Not recorded: the execution's own record says that this was done.
    """
    await uninterrupted(here().complete(execution_id, results, progress))


async def together(*steps: Coroutine[Any, Any, Any]) -> list[Any]:
    """Await steps side by side; when one fails the others are stopped, and its error raised.

    The steps take their places in the record in the order in which they were called.
    """
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(step) for step in steps]
    except BaseExceptionGroup as errors:
        raise errors.exceptions[0] from None
    return [task.result() for task in tasks]


class ConductorOptions(BaseModel):
    """What the Conductor needs to know."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    store_url: str
    max_running: dict[str, int]
    """Executions that run at once, by workflow."""
    in_turn: bool = False
    """Whether models take turns on one GPU: what conditions a forecast is then computed first."""
    drain_s: float = 5.0
    """What running steps get to end in when another replica takes over."""


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
        self._conducting = Conducting(
            execute,
            deployments,
            components,
            store_url=options.store_url,
            max_running=options.max_running,
            in_turn=options.in_turn,
            drain_s=options.drain_s,
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
