"""The recorded steps of an execution.

Once a step has ended, its outcome is recorded and it is not run again. It returns small values,
never arrays. It may run twice, since a process can die between its work and the record of it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import cast

from deployments.blob_uploader.messages import Uploaded, UploadJob
from deployments.conductor.calls import DeploymentCalls
from deployments.conductor.capacity import WorkflowCapacity
from deployments.conductor.origins import Origins
from deployments.conductor.progress import ProgressTracker
from deployments.conductor.records import ExecutionRecords
from deployments.conductor.retries import (
    is_retryable,
    recorded_delivery,
    recorded_step,
    recorded_user_code,
    retry_while_progressing,
)
from deployments.custom_workflow.messages import Packaging, RunJob, RunResult
from deployments.geocatalog.messages import Registered, Registration
from deployments.models.messages import ConditioningJob, MemberJob, NowcastJob
from deployments.results.messages import CompletedMembers
from deployments.runtime.failures import ReplicaDied
from deployments.runtime.tasks import run_after, shield
from deployments.runtime.versions import software
from workflows.base import Conditioning, Plan
from workflows.custom import CustomPlan
from workflows.dataset import Provenance
from workflows.delivery import Container, Delivery
from workflows.errors import StageFailed
from workflows.execution import Progress, Stage, Status
from workflows.manifest import Manifest

logger = logging.getLogger("ray.serve")

UPLOAD_AHEAD_RETRY_S = 10.0


@dataclass(eq=False)
class ExecutionSteps:
    """The steps of executions, each one or a few calls of a deployment."""

    calls: DeploymentCalls
    records: ExecutionRecords
    progress: ProgressTracker
    capacity: WorkflowCapacity
    origins: Origins

    @recorded_step
    async def create_result(self, execution_id: str, plan: Plan) -> CompletedMembers:
        """Create the result's arrays with all values missing.

        Returns the members that an earlier attempt has completed; their values are kept.
        """
        provenance = await self._provenance(plan)
        # Shielded: a cancelled call would go on creating files that the cancel removes.
        completed: CompletedMembers = await shield(
            self.calls.call(Stage.PACKAGE, "packager", "create", plan, execution_id, provenance)
        )
        return completed

    async def _provenance(self, plan: Plan) -> Provenance:
        origin = self.origins.wait
        conditioned_on: tuple[str, ...] = ()
        if (other := plan.conditioning) is not None:
            conditioned_on = (other.model, other.interpolation, other.data_source)
        return Provenance(
            model=await origin(plan.model),
            data_source=await origin(plan.data_source),
            conditioned_on=tuple([await origin(name) for name in conditioned_on]),
            software=software(),
        )

    @recorded_step
    async def fetch_initial_conditions(self, execution_id: str, plan: Plan | Conditioning) -> str:
        """Fetch the analysed state at the start and return the path of its file."""
        call = partial(self.calls.call, Stage.INITIAL_CONDITIONS, "initial_conditions")
        path: str = await call("fetch", plan, execution_id, fenced=False)
        return path

    @recorded_step
    async def forecast_member(
        self, execution_id: str, plan: Plan, member: int, initial_conditions: str
    ) -> None:
        """Compute one ensemble member; at the end all its time steps are written.

        The count of attempts restarts whenever one resumes from a later checkpoint than all before:
        a long member may be interrupted any number of times as long as it progresses.
        """
        job = MemberJob(
            execution_id=execution_id,
            plan=plan,
            member=member,
            initial_conditions=initial_conditions,
            fence=self.calls.fence,
        )

        async def attempt(progressed: Callable[[], None]) -> None:
            compute = self.calls.compute_member
            async for progress in compute(plan.model, "forecast_member", job, plan.n_times):
                if self.progress.resumed_further(execution_id, member, progress.first):
                    progressed()
                await self.progress.note_written(execution_id, plan, member, progress.written)

        await retry_while_progressing(attempt, f"member {member}")

    @recorded_step
    async def condition_member(
        self, execution_id: str, plan: Plan, member: int, analysis: str
    ) -> None:
        """Compute one member of the conditioning forecast; at the end all its fields are kept."""
        job = ConditioningJob(
            execution_id=execution_id,
            plan=plan,
            member=member,
            initial_conditions=analysis,
            fence=self.calls.fence,
        )
        model = cast(Conditioning, plan.conditioning).model
        compute = self.calls.compute_member
        async for progress in compute(model, "condition_member", job, plan.n_steps):
            await self.progress.note_conditioning(execution_id, plan, member, progress.written)

    @recorded_step
    async def nowcast_member(
        self, execution_id: str, plan: Plan, member: int, satellite_image: str
    ) -> None:
        """Compute one ensemble member of a nowcast while its conditioning fields are computed."""
        # Before a slot is requested: a waiting model could work for others, and the forecast that
        # it waits for has its own slot by then.
        all_conditioned = await self.progress.wait_for_conditioning(
            execution_id, plan, plan.conditioned_by(member)
        )
        job = NowcastJob(
            execution_id=execution_id,
            plan=plan,
            member=member,
            initial_conditions=satellite_image,
            all_conditioned=all_conditioned,
            fence=self.calls.fence,
        )
        compute = self.calls.compute_member
        async for progress in compute(plan.model, "nowcast_member", job, plan.n_times):
            await self.progress.note_written(execution_id, plan, member, progress.written)

    @recorded_step
    async def export_netcdf(self, execution_id: str) -> None:
        """Write the NetCDF4 file while the members are computed."""
        await self.calls.call(Stage.PACKAGE, "packager", "export_netcdf", execution_id)

    @recorded_step
    async def describe_result(self, execution_id: str) -> Manifest:
        """Draw a map, check that the result is complete, and return the manifest of its files."""
        manifest: Manifest = await self.calls.call(
            Stage.PACKAGE, "packager", "describe_result", execution_id
        )
        return manifest

    @asynccontextmanager
    async def uploading_ahead(self, execution_id: str, plan: Plan) -> AsyncIterator[None]:
        """Upload chunks of a Zarr store while the block writes it.

        Not recorded, and never the cause of a failure: `upload` sends what is missing and reports
        what is wrong.
        """
        container = None if plan.delivery is None else plan.delivery.container
        if container is None or plan.output_format != "zarr" or not self.calls.has("blob_uploader"):
            yield
            return
        job = UploadJob(workflow=plan.workflow, execution_id=execution_id, container=container)
        task = asyncio.create_task(self._upload_ahead(job), name="upload-ahead")
        try:
            yield
        finally:
            task.cancel()
            await asyncio.wait({task})

    async def _upload_ahead(self, job: UploadJob) -> None:
        while True:
            try:
                await self.calls.call(Stage.INFERENCE, "blob_uploader", "upload_ahead", job)
                return
            except StageFailed as error:
                if not is_retryable(error):
                    logger.warning("no more chunks are uploaded ahead: %s", error)
                    return
            await asyncio.sleep(UPLOAD_AHEAD_RETRY_S)

    @recorded_delivery
    async def upload(self, execution_id: str, workflow: str, container: Container) -> Uploaded:
        """Copy the results into a Blob container."""
        job = UploadJob(workflow=workflow, execution_id=execution_id, container=container)
        async for update in self.calls.stream(Stage.UPLOAD, "blob_uploader", "upload", job):
            if isinstance(update, Uploaded):
                return update
            await self.progress.note_upload(execution_id, update.bytes, update.total_bytes)
        raise StageFailed(Stage.UPLOAD, "the upload ended without an outcome")

    @recorded_delivery
    async def register(
        self, execution_id: str, plan: Plan, delivery: Delivery, results: Manifest
    ) -> Registered:
        """Register the results as an item of a GeoCatalog; a repeated call replaces the item."""
        registration = Registration(
            execution_id=execution_id,
            geo_catalog_url=str(delivery.geo_catalog_url),
            collection_id=delivery.collection_id,
            plan=plan,
            provenance=cast(Provenance, results.provenance),
            files=results.assets or {},
            base_href=str(results.blob_folder_url),
        )
        registered: Registered = await self.calls.call(
            Stage.REGISTER, "geocatalog", "register", registration, fenced=False
        )
        return registered

    @recorded_user_code
    async def run_user_class(self, execution_id: str, plan: CustomPlan) -> RunResult:
        """Run a user's workflow class; at the end its results are in place."""
        job = RunJob(execution_id=execution_id, plan=plan, fence=self.calls.fence)
        result: RunResult | None = None
        try:
            async with run_after() as later:
                async for update in self.calls.stream(Stage.INFERENCE, plan.workflow, "run", job):
                    if isinstance(update, RunResult):
                        result = update
                    elif isinstance(update, Packaging):
                        self.capacity.release(execution_id)
                        enter = partial(self.records.enter_stage, execution_id, Stage.PACKAGE)
                        later(partial(enter, Status.PENDING_RESULTS, update.progress))
                    else:
                        await self.records.update(execution_id, progress=update)
        except ReplicaDied as error:
            raise ReplicaDied(
                Stage.INFERENCE, f"the process that ran the workflow has ended: {error}"
            ) from None
        if result is None:
            raise StageFailed(Stage.INFERENCE, "the run ended without a result")
        return result

    @recorded_step
    async def keep_incomplete_results(
        self, execution_id: str, results: Manifest, progress: Progress
    ) -> None:
        """Record results that fall short of the request: they can be read although it fails."""
        await shield(self.records.keep_incomplete_results(execution_id, results, progress))
