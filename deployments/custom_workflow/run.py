"""One run of a user's class: its folder, its output and its progress."""

from __future__ import annotations

import logging
import traceback
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from deployments.custom_workflow.backend import Output
from deployments.custom_workflow.calling import run_to_end
from deployments.custom_workflow.messages import RunJob, RunResult
from deployments.custom_workflow.options import CustomWorkflowOptions
from deployments.custom_workflow.run_folder import RunFolder
from deployments.custom_workflow.run_interface import ReportedProgress, attach_run
from deployments.custom_workflow.run_output import open_output
from deployments.custom_workflow.user_class import UserClass
from deployments.results.work import StoredObject
from deployments.runtime.busy_clock import Activity
from deployments.runtime.failures import describe_error, sanitize
from deployments.runtime.gpus import has_gpu
from deployments.runtime.versions import software
from deployments.runtime.worker_job import WorkerJob
from workflows.errors import Earth2ServeError, StageFailed
from workflows.execution import Progress, Stage
from workflows.manifest import CustomProvenance, Manifest

logger = logging.getLogger("ray.serve")

MAX_REASON_LENGTH = 2000
"""Characters of a class's error that are recorded."""


class Run:
    """One run: called in the class's thread, then delivered and closed in others.

    `ModelWorker` stops it, and counts its waits, through `worker_job`.
    """

    def __init__(self, job: RunJob, options: CustomWorkflowOptions, worker_job: WorkerJob) -> None:
        self._job = job
        self._options = options
        self._worker_job = worker_job
        self._reported = ReportedProgress()
        self._folder: RunFolder | None = None
        self._output: Output | None = None
        self._known_files: Mapping[Path, StoredObject] = {}
        self._required: tuple[str, ...] = ()
        self._warnings: list[str] = []

    def call(self, workflow: UserClass, instance: Any) -> None:
        """Call the class, in its thread.

        Raises
        ------
        StageFailed
            If the class raises.
        ExecutionCancelled
            If the run was cancelled.
        """
        job, options, storage = self._job, self._options, self._options.storage
        self._folder = RunFolder(
            storage.results_dir, storage.work_dir, options.name, job.execution_id, job.fence
        )
        self._output = output = open_output(
            self._folder.path,
            job.plan.output_format,
            window_bytes=options.window_mb * 10**6,
            max_bytes=options.max_output_bytes,
            check=self._worker_job.check,
            waiting=partial(self._worker_job.during, Activity.WRITING),
        )
        attach_run(instance, job.execution_id, self._folder.path, self._report, output.share)
        try:
            parameters = workflow.validated(job.plan.parameters)
            run_to_end(partial(instance, io=output, **parameters))
            self._worker_job.check()
            # In this thread, because of NetCDF4: the next run may use HDF5 as soon as this ends.
            # An empty dataset is the result of a class that found nothing to write.
            is_alone = self._folder.is_empty
            self._known_files = output.finish(keep_empty=is_alone)
            if is_alone and not output.coverage.fractions and not len(output):
                self._warnings.append("the workflow wrote no variables")
            self._required = tuple(getattr(instance, "required_variables", ()))
        except Earth2ServeError:
            output.discard()
            raise
        except BaseException as error:  # a class may call sys.exit, too
            output.discard()
            self._worker_job.check()
            trace = sanitize(traceback.format_exc())
            logger.error("%s: the workflow raised\n%s", job.execution_id, trace)
            raise StageFailed(Stage.INFERENCE, describe_error(error)[:MAX_REASON_LENGTH]) from None

    def _report(self, values: Mapping[str, Any]) -> None:
        self._worker_job.check()
        self._reported.update(values)

    def progress(self) -> Progress:
        """Return the progress so far."""
        done, total = (0, 0) if self._output is None else self._output.coverage.progress
        return self._reported.progress(done, total)

    def deliver(self) -> RunResult:
        """Make the run's folder the result of the execution.

        Raises
        ------
        StageFailed
            If the execution was removed, or its files cannot be delivered.
        StaleConductor
            If a newer token was seen.
        """
        if self._folder is None or self._output is None:
            raise RuntimeError("nothing was run")
        coverage = self._output.coverage
        (files, totals), warnings = self._folder.deliver(self._known_files)
        return RunResult(
            progress=self.progress(),
            results=Manifest(
                output_files=files,
                totals=totals,
                warnings=(*self._warnings, *warnings, *coverage.warnings()),
                coverage=coverage.fractions,
                device="cuda" if has_gpu() else "cpu",
                provenance=CustomProvenance(workflow=self._options.path, software=software()),
            ),
            shortcoming=coverage.shortcoming(self._required),
        )

    def close(self) -> None:
        """Remove everything that was not delivered."""
        try:
            if self._output is not None:
                self._output.discard()
            if self._folder is not None:
                self._folder.remove()
        except Exception:
            # The delivered results are complete; leftovers must not fail the execution.
            logger.exception("%s: files of the run could not be removed", self._job.execution_id)
        # The instance keeps a reference to this run until its next one.
        self._output = self._folder = None
