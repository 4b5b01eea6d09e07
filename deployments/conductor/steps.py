"""The steps of an execution's life: each is recorded when it has ended, and not run again then.

A step gives small values, never arrays, and may run twice without harm: a process can die between
its work and the record of it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial
from typing import Any, cast

from dbos import DBOS

from deployments.blob_uploader.messages import Uploaded, UploadJob
from deployments.conductor.loop import here
from deployments.custom_workflow.deployment import Packaging, RunJob, RunResult
from deployments.geocatalog.messages import Registered, Registration
from deployments.models.messages import ConditioningJob, MemberJob, NowcastJob
from deployments.results.protocols import CompletedMembers
from deployments.runtime.failures import ReplicaDied, TransientFailure
from deployments.runtime.retries import Backoff, RetryPolicy
from deployments.runtime.tasks import run_after, shield, task_group
from workflows.base import Conditioning, Plan
from workflows.custom import CustomPlan
from workflows.dataset import Provenance
from workflows.delivery import Container, Delivery
from workflows.errors import StageFailed
from workflows.execution import Progress, Stage, Status
from workflows.manifest import Manifest

logger = logging.getLogger("ray.serve")


def _is_retryable(error: BaseException) -> bool:
    return isinstance(error, TransientFailure)


_step = partial(DBOS.step, retries_allowed=True, should_retry=_is_retryable, preemptible=True)


def _retried_by(policy: RetryPolicy) -> dict[str, Any]:
    """Return a retry policy as arguments of a DBOS step."""
    return {
        "max_attempts": policy.attempts,
        "interval_seconds": policy.initial_delay_s,
        "backoff_rate": policy.factor,
    }


AHEAD_AGAIN_S = 10.0

STEP = RetryPolicy(attempts=6, initial_delay_s=1.0)
recorded = _step(**_retried_by(STEP))
"""A step whose outcome is kept: it is not run again after a crash, but may run twice during one.

Six attempts, over half a minute: with four, one of 38 executions was given up that shared its
machine with a hundred kills (tests/chaos). What kills its replica by itself fails after as many.
"""
recorded_run = _step(**_retried_by(replace(STEP, attempts=3)))
"""The same for users' code: what has ended its process thrice will do so again."""


recorded_delivery = _step(**_retried_by(replace(STEP, attempts=5)))
"""The same for deliveries: each attempt has gone through the client's own already."""


@recorded
async def create_result(execution_id: str, plan: Plan) -> CompletedMembers:
    """Create the result's arrays, all values missing; gives what an earlier attempt has left."""
    # To its end, even if that is cancelled: it would go on making what the cancel removes.
    begun: CompletedMembers = await shield(
        here().call(
            Stage.PACKAGE, "packager", "create", plan, execution_id, here().provenance(plan)
        )
    )
    return begun


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
    """Compute one ensemble member; when this is done, all its steps are written.

    With each attempt that begins behind a later checkpoint than all before they are counted anew: a
    long member may be interrupted any number of times as long as it comes on.
    """
    job = MemberJob(
        execution_id=execution_id,
        plan=plan,
        member=member,
        initial_conditions=initial_conditions,
        fence=here().fence,
    )

    async def attempt(progressed: Callable[[], None]) -> None:
        async for progress in here().member(plan.model, "forecast_member", job, plan.n_times):
            if here().progress.resumed_further(execution_id, member, progress.first):
                progressed()
            await here().progress.note_written(execution_id, plan, member, progress.written)

    await retry_while_progressing(attempt, f"member {member}")


async def retry_while_progressing(
    attempt: Callable[[Callable[[], None]], Awaitable[None]], what: str, policy: RetryPolicy = STEP
) -> None:
    """Try something again, counting anew with each attempt that came on.

    Parameters
    ----------
    attempt : callable
        Given what it calls when it has come past where all before it began.
    what : str
        For the log.
    policy : RetryPolicy
        For the attempts at the same place.

    Raises
    ------
    TransientFailure
        Where none came on, at once: the step's own attempts are for that.
    """
    backoff: Backoff | None = None

    def progressed() -> None:
        nonlocal backoff
        backoff = Backoff(policy)

    while True:
        try:
            await attempt(progressed)
            return
        except TransientFailure as error:
            delay_s = None if backoff is None else backoff.next_delay_s()
            if delay_s is None:
                raise
            logger.warning("%s goes on from its last checkpoint: %s", what, error)
            await asyncio.sleep(delay_s)


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
    async for progress in here().member(model, "condition_member", job, plan.n_steps):
        await here().progress.note_conditioning(execution_id, plan, member, progress.written)


@recorded
async def nowcast_member(execution_id: str, plan: Plan, member: int, satellite_image: str) -> None:
    """Compute one ensemble member as the fields come that condition it."""
    # Not before there is something to begin with: a model that waits could work for others, and
    # what it waits for has its own turn by then.
    all_conditioned = await here().progress.conditioned(
        execution_id, plan, plan.conditioned_by(member)
    )
    job = NowcastJob(
        execution_id=execution_id,
        plan=plan,
        member=member,
        initial_conditions=satellite_image,
        all_conditioned=all_conditioned,
        fence=here().fence,
    )
    async for progress in here().member(plan.model, "nowcast_member", job, plan.n_times):
        await here().progress.note_written(execution_id, plan, member, progress.written)


@recorded
async def export(execution_id: str) -> None:
    """Write the NetCDF4 file while the members are computed."""
    await here().call(Stage.PACKAGE, "packager", "export_netcdf", execution_id)


@recorded
async def package(execution_id: str) -> Manifest:
    """Draw a map, check that the result is whole, and describe its files."""
    results: Manifest = await here().call(
        Stage.PACKAGE, "packager", "describe_result", execution_id
    )
    return results


@recorded_delivery
async def upload(execution_id: str, workflow: str, container: Container) -> Uploaded:
    """Copy the results into a Blob container."""
    job = UploadJob(workflow=workflow, execution_id=execution_id, container=container)
    async for told in here().stream(Stage.UPLOAD, "blob_uploader", "upload", job):
        if isinstance(told, Uploaded):
            return told
        await here().progress.note_upload(execution_id, told.bytes, told.total_bytes)
    raise StageFailed(Stage.UPLOAD, "the upload ended without an outcome")


@asynccontextmanager
async def uploading_ahead(execution_id: str, plan: Plan) -> AsyncIterator[None]:
    """Copy chunks into the container that they shall go to, while a block writes others.

    Not recorded, and it fails nothing: `upload` sends what is missing, and says what is wrong.
    """
    container = None if plan.delivery is None else plan.delivery.container
    if container is None or plan.output_format != "zarr" or not here().serves("blob_uploader"):
        yield
        return
    job = UploadJob(workflow=plan.workflow, execution_id=execution_id, container=container)
    task = asyncio.create_task(_upload_ahead(job), name="upload-ahead")
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait({task})


async def _upload_ahead(job: UploadJob) -> None:
    while True:
        try:
            await here().call(Stage.INFERENCE, "blob_uploader", "upload_ahead", job)
            return
        except StageFailed as error:
            if not _is_retryable(error):
                logger.warning("no more is uploaded ahead: %s", error)
                return
        await asyncio.sleep(AHEAD_AGAIN_S)


@recorded_delivery
async def register(
    execution_id: str, plan: Plan, delivery: Delivery, results: Manifest
) -> Registered:
    """Make the results an item of a GeoCatalog; twice makes it once."""
    registration = Registration(
        execution_id=execution_id,
        geo_catalog_url=str(delivery.geo_catalog_url),
        collection_id=delivery.collection_id,
        plan=plan,
        provenance=cast(Provenance, results.provenance),
        files=results.assets or {},
        base_href=str(results.blob_folder_url),
    )
    registered: Registered = await here().call(
        Stage.REGISTER, "geocatalog", "register", registration, fenced=False
    )
    return registered


@recorded_run
async def run(execution_id: str, plan: CustomPlan) -> RunResult:
    """Run a user's workflow class; when this is done, its results are in their place."""
    job = RunJob(execution_id=execution_id, plan=plan, fence=here().fence)
    made: RunResult | None = None
    try:
        async with run_after() as later:
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
    except ReplicaDied as error:
        raise ReplicaDied(
            Stage.INFERENCE, f"the process that ran the workflow has ended: {error}"
        ) from None
    if made is None:
        raise StageFailed(Stage.INFERENCE, "the run ended without a result")
    return made


@recorded
async def keep(execution_id: str, made: RunResult) -> None:
    """Keep results that fall short: they can be had although the execution fails."""
    await shield(here().keep(execution_id, made.results, made.progress))


async def finish(execution_id: str, results: Manifest, progress: Progress | None = None) -> None:
    """Say that the results can be had; once that has begun, a cancel comes too late.

    Not recorded: the execution's own record says that this was done.
    """
    await shield(here().complete(execution_id, results, progress))


async def run_concurrently(*steps: Coroutine[Any, Any, Any]) -> list[Any]:
    """Await steps side by side; when one fails the others are stopped, and its error raised.

    The steps take their places in the record in the order in which they were called.
    """
    async with task_group() as group:
        tasks = [group.create_task(step) for step in steps]
    return [task.result() for task in tasks]
