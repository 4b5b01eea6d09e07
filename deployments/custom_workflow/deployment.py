"""CustomWorkflow: a user's own workflow class, one replica set for each."""

from __future__ import annotations

import asyncio
import logging
import time
import traceback
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import aclosing
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeVar, cast

from pydantic import BaseModel, ConfigDict
from ray import serve

from deployments.custom_workflow.earth2studio_shim import isolate_import
from deployments.custom_workflow.options import CustomWorkflowOptions
from deployments.custom_workflow.run_folder import RunFolder
from deployments.custom_workflow.run_output import RunOutput
from deployments.custom_workflow.user_class import Told, UserClass, guard_user_code, prepare
from deployments.models.busy_clock import Activity, BusyClock
from deployments.models.worker import ModelWorker
from deployments.models.worker_job import WorkerJob
from deployments.results.protocols import StoredObject
from deployments.runtime.failures import describe_error, sanitize
from deployments.runtime.gpus import has_gpu, hide_gpus
from deployments.runtime.log_context import bind_execution, bridge_loguru, set_stage
from deployments.runtime.versions import software
from workflows.custom import CustomPlan, WorkflowDescription
from workflows.dataset import Origin
from workflows.errors import Earth2ServeError, ModelUnavailable, Problem, StageFailed
from workflows.execution import Progress, Stage
from workflows.manifest import CustomProvenance, Manifest
from workflows.readiness import ComponentStatus, NotReady, Ready

logger = logging.getLogger("ray.serve")

R = TypeVar("R")

SCRATCH = ".earth2studio"
"""Folder of working files for what Earth2Studio's server would make elsewhere."""
LONGEST_REASON = 2000
"""Characters of what a class says when it raises."""
FIRST_PAUSE_S = 10.0
LONGEST_PAUSE_S = 300.0


class RunJob(BaseModel):
    """One execution to run."""

    model_config = ConfigDict(frozen=True)

    execution_id: str
    plan: CustomPlan
    fence: int


class Packaging(BaseModel):
    """Said when the class has ended and its results are being described."""

    kind: Literal["packaging"] = "packaging"
    progress: Progress


class RunResult(BaseModel):
    """What a run has made."""

    kind: Literal["result"] = "result"
    progress: Progress
    results: Manifest
    shortcoming: str | None
    """Why these results are not what was asked for; None if they are."""


@serve.deployment(
    name="CustomWorkflow",
    # One runs, by the replica's own lock; the others are short questions that must not wait for it.
    max_ongoing_requests=32,
)
class CustomWorkflow:
    """Serves a user's workflow class.

    Parameters
    ----------
    options : CustomWorkflowOptions
    """

    async def __init__(self, options: CustomWorkflowOptions) -> None:  # type: ignore[misc]
        self._options = options
        self._class: UserClass | None = None
        self._description: WorkflowDescription | None = None
        self._replica = ModelWorker(
            options.name,
            partial(guard_user_code, self._load),
            grace_s=options.cancel_grace_s,
            kind="workflow",
            clock=BusyClock(options.name, "cuda" if has_gpu() else "cpu"),
        )
        self._pause_s = FIRST_PAUSE_S
        self._try_again_at = 0.0
        # Not awaited: a class that takes long, or dies at it, must not keep the application from
        # being deployed.
        self._loading = asyncio.create_task(self._try_to_load())

    async def _try_to_load(self) -> None:
        try:
            await self._replica.model()
        except ModelUnavailable:
            # Logged where it happened; `check_readiness` reports it and retries.
            self._try_again_at = time.monotonic() + self._pause_s
            self._pause_s = min(2 * self._pause_s, LONGEST_PAUSE_S)

    def _load(self) -> Any:
        """Import the class and make an instance, in the thread that will run it."""
        options = self._options
        if not has_gpu():
            hide_gpus()
        if self._class is None:
            self._class = UserClass(options.path, options.work_dir / SCRATCH)
        bridge_loguru()
        if not options.name_is_given and self._class.name != options.name:
            raise ValueError(
                f"the class calls itself {self._class.name!r}, which could not be read in its "
                f"source: set workflows.custom[].name to that"
            )
        self._description = self._class.describe()
        with isolate_import(options.work_dir / SCRATCH):
            instance = self._class.make(options.config)
        # Imported now, or the first job would wait for it.
        RunOutput.prepare()
        bridge_loguru()
        return instance

    async def check_readiness(self) -> ComponentStatus:
        """Return whether the class can be run; retries a load that failed."""
        reason = self._replica.failure
        if not self._loading.done():
            reason = reason or "it is still being loaded"
        elif reason is not None and time.monotonic() >= self._try_again_at:
            self._loading = asyncio.create_task(self._try_to_load())
        if reason is not None:
            return NotReady(reason=reason, description=self._description)
        origin = Origin(name=self._options.name, loader=self._options.path)
        return Ready(origin=origin, description=self._description)

    async def validate(self, parameters: Mapping[str, Any]) -> list[Problem]:
        """Have the class check parameters by its own code; gives what is wrong.

        Raises
        ------
        ModelUnavailable
            If the class could not be imported.
        """
        if self._class is None:
            raise ModelUnavailable(Stage.INFERENCE, self._replica.failure or "not imported yet")
        return await asyncio.to_thread(
            guard_user_code, partial(self._class.problems_with, parameters)
        )

    async def run(self, job: RunJob) -> AsyncGenerator[Progress | Packaging | RunResult]:
        """Run the class once; tells how far it is, and at the end what it has made.

        Raises
        ------
        StaleConductor
            If a newer Conductor has been seen.
        StageFailed
            With the reason, if the class could not be loaded or raises.
        ExecutionCancelled
            If the caller went away: the thread has stopped then.
        """
        bind_execution(job.execution_id, job.plan.workflow, Stage.INFERENCE)
        running = WorkerJob(job.fence)
        run = _Run(job, self._options, running)
        running.progress = run.progress

        def work(instance: Any) -> None:
            run.call(cast(UserClass, self._class), instance)

        try:
            # Closed here, not by the garbage collector: the thread must have stopped by then.
            async with aclosing(self._replica.run(running, work)) as told:
                async for progress in told:
                    if not running.done:
                        yield progress
            set_stage(Stage.PACKAGE)
            yield Packaging(progress=run.progress())
            # Outside of the lock: the next execution computes meanwhile.
            yield await _to_its_end(run.deliver)
        finally:
            await _to_its_end(run.close)


async def _to_its_end(call: Callable[[], R]) -> R:
    """Call in a thread and wait until it has ended, also if that is cancelled meanwhile."""
    running = asyncio.ensure_future(asyncio.to_thread(call))
    try:
        return await asyncio.shield(running)
    except asyncio.CancelledError:
        await asyncio.wait({running})
        raise


class _Run:
    """One run: its folder, its output, its progress."""

    def __init__(self, job: RunJob, options: CustomWorkflowOptions, running: WorkerJob) -> None:
        self._job = job
        self._options = options
        self._running = running
        self._told = Told()
        self._folder: RunFolder | None = None
        self._output: RunOutput | None = None
        self._known: Mapping[Path, StoredObject] = {}
        self._shortcoming: str | None = None

    def call(self, workflow: UserClass, instance: Any) -> None:
        """Call the class, in its thread."""
        job, options = self._job, self._options
        self._folder = RunFolder(
            options.results_dir, options.work_dir, options.name, job.execution_id, job.fence
        )
        self._output = RunOutput(
            self._folder.path,
            job.plan.output_format,
            window_bytes=options.window_bytes,
            max_bytes=options.max_output_bytes,
            check=self._running.check,
            waiting=partial(self._running.during, Activity.WRITING),
        )
        prepare(instance, job.execution_id, self._folder.path, self._note)
        try:
            instance(io=self._output.backend, **workflow.validated(job.plan.parameters))
            self._running.check()
            self._output.backend.flush()
            if not self._output.backend.has_been_written and self._folder.is_empty:
                raise StageFailed(Stage.INFERENCE, "the workflow wrote no results")
            # In this thread, for NetCDF4's sake: the next run may use HDF5 as soon as this ends.
            self._shortcoming = self._output.shortcoming()
            self._known = self._output.backend.finish()
        except Earth2ServeError:
            self._output.close()
            raise
        except BaseException as error:  # a class may call sys.exit, too
            self._output.close()
            self._running.check()
            trace = sanitize(traceback.format_exc())
            logger.error("%s: the workflow raised\n%s", job.execution_id, trace)
            raise StageFailed(Stage.INFERENCE, describe_error(error)[:LONGEST_REASON]) from None

    def _note(self, values: Mapping[str, Any]) -> None:
        self._running.check()
        self._told.note(values)

    def progress(self) -> Progress:
        """Say how far it is."""
        done, total = (0, 0) if self._output is None else self._output.backend.progress
        return self._told.progress(done, total)

    def deliver(self) -> RunResult:
        """Make the folder the result."""
        if self._folder is None or self._output is None:
            raise RuntimeError("nothing was run")
        backend = self._output.backend
        (files, totals), warnings = self._folder.deliver(self._known)
        warnings += [f"{name}: everything written is NaN" for name in backend.without_values()]
        return RunResult(
            progress=self.progress(),
            results=Manifest(
                output_files=files,
                totals=totals,
                warnings=tuple(warnings),
                device="cuda" if has_gpu() else "cpu",
                provenance=CustomProvenance(workflow=self._options.path, software=software()),
            ),
            shortcoming=self._shortcoming,
        )

    def close(self) -> None:
        """Leave nothing behind but what was delivered."""
        try:
            if self._output is not None:
                self._output.close()
            if self._folder is not None:
                self._folder.remove()
        except Exception:
            # What was delivered is; that something stays behind must not change that.
            logger.exception("%s: not all of its run could be removed", self._job.execution_id)
        # The instance still refers to this run, until its next.
        self._output = self._folder = None
