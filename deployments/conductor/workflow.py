"""The durable workflow of an execution, from its plan to its delivered results.

DBOS records the outcome of every step, so that after a crash the next Conductor resumes from the
last recorded one.
"""

from __future__ import annotations

from collections.abc import Coroutine, Iterator
from typing import Any

from dbos import DBOS, DBOSConfiguredInstance

from deployments.conductor.context import ExecutionContext
from deployments.conductor.progress import ProgressTracker
from deployments.conductor.steps import ExecutionSteps
from deployments.results.messages import CompletedMembers
from deployments.runtime.tasks import task_group
from workflows.base import Conditioning, Plan
from workflows.custom import CustomPlan
from workflows.delivery import Delivery
from workflows.errors import StageFailed
from workflows.execution import Progress, Stage, Status
from workflows.manifest import Manifest


@DBOS.dbos_class()
class ExecutionWorkflow(DBOSConfiguredInstance):
    """Runs executions with the steps of one Conductor; DBOS finds it by its name on recovery.

    Notes
    -----
    DBOS numbers the steps in the order in which they are called, and expects the same order when it
    recovers an execution.
    """

    def __init__(
        self, context: ExecutionContext, progress: ProgressTracker, steps: ExecutionSteps
    ) -> None:
        super().__init__("conductor")
        self._context = context
        self._records = context.records
        self._progress = progress
        self._steps = steps

    @DBOS.workflow(name="execute", max_recovery_attempts=None)
    async def execute(
        self, execution_id: str, attempt: int = 0, packaged: Manifest | None = None
    ) -> None:
        """Run one execution from its plan to its delivered results.

        Parameters
        ----------
        attempt : int
            How many attempts at the execution have failed before.
        packaged : Manifest, optional
            The results, if only their delivery is left to do.
        """
        async with self._context.running(execution_id, attempt) as plan:
            progress = None
            if packaged is not None:
                results = packaged
            elif isinstance(plan, CustomPlan):
                results, progress = await self.run_custom_workflow(execution_id, plan)
            else:
                results = await self.run_forecast(execution_id, plan, attempt)
            if plan.delivery is not None:
                results = await self.deliver(execution_id, plan, plan.delivery, results, progress)
            await self._context.mark_completed(execution_id, results, progress)

    async def run_forecast(self, execution_id: str, plan: Plan, attempt: int) -> Manifest:
        """Run a forecast, or a nowcast and the forecast that conditions it, up to the manifest."""
        steps = self._steps
        await self._records.enter_stage(execution_id, Stage.INITIAL_CONDITIONS)
        sources: list[Plan | Conditioning] = [plan]
        if plan.conditioning is not None:
            sources.append(plan.conditioning)
        create = steps.create_result(execution_id, plan)
        fetches = (steps.fetch_initial_conditions(execution_id, source) for source in sources)
        if attempt == 0:
            completed, *states = await run_concurrently(create, *fetches)
        else:
            # Before the fetch: it removes what an earlier attempt has left, initial conditions
            # included, if another model or data source is configured now.
            completed = await create
            states = await run_concurrently(*fetches)
        remaining = await self._progress.remaining_work(execution_id, plan, completed)
        await self._records.enter_stage(execution_id, Stage.INFERENCE)
        async with steps.uploading_ahead(execution_id, plan):
            await run_concurrently(
                *([steps.export_netcdf(execution_id)] if plan.output_format == "netcdf4" else []),
                *self._compute_members(execution_id, plan, remaining, *states),
            )
        # The models are idle while the result is read and compared.
        self._context.capacity.release(execution_id)
        await self._records.enter_stage(execution_id, Stage.PACKAGE, Status.PENDING_RESULTS)
        return await steps.describe_result(execution_id)

    def _compute_members(
        self,
        execution_id: str,
        plan: Plan,
        remaining: CompletedMembers,
        state: str,
        analysis: str = "",
    ) -> Iterator[Coroutine[Any, Any, None]]:
        """Yield the steps that compute members; those of a nowcast follow its conditioning."""
        steps = self._steps
        for member in remaining.conditioning:
            step = steps.condition_member(execution_id, plan, member, analysis)
            yield self._progress.note_all_conditioning(execution_id, plan, member, step)
        compute = steps.forecast_member if plan.conditioning is None else steps.nowcast_member
        for member in remaining.members:
            yield compute(execution_id, plan, member, state)

    async def run_custom_workflow(
        self, execution_id: str, plan: CustomPlan
    ) -> tuple[Manifest, Progress]:
        """Run a user's workflow class, and return its results and last progress.

        The execution enters the inference stage as it is claimed, and the package stage if
        describing its files takes a while.
        """
        result = await self._steps.run_user_class(execution_id, plan)
        if result.shortcoming is not None:
            await self._steps.keep_incomplete_results(execution_id, result.results, result.progress)
            raise StageFailed(Stage.PACKAGE, result.shortcoming)
        return result.results, result.progress

    async def deliver(
        self,
        execution_id: str,
        plan: Plan | CustomPlan,
        delivery: Delivery,
        results: Manifest,
        progress: Progress | None,
    ) -> Manifest:
        """Upload results to Azure, then register them, and return the manifest with both.

        From here on the results are kept even if the delivery fails. They record what was
        delivered, so that a retry resumes after that.
        """
        self._context.capacity.release(execution_id)
        if delivery.container is not None and results.uploaded is None:
            await self._records.enter_delivery(execution_id, Stage.UPLOAD, results, progress)
            uploaded = await self._steps.upload(execution_id, plan.workflow, delivery.container)
            results = uploaded.added_to(results)
        if delivery.geo_catalog_url is not None and isinstance(plan, Plan):
            await self._records.enter_delivery(execution_id, Stage.REGISTER, results, progress)
            registered = await self._steps.register(execution_id, plan, delivery, results)
            results = registered.added_to(results)
        return results


async def run_concurrently(*steps: Coroutine[Any, Any, Any]) -> list[Any]:
    """Await steps concurrently; if one fails, stop the others and raise its error."""
    async with task_group() as group:
        tasks = [group.create_task(step) for step in steps]
    return [task.result() for task in tasks]
