"""Calls of deployments on behalf of executions."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Any

from ray.serve.handle import DeploymentHandle

from deployments.conductor.fencing import end_superseded_process
from deployments.conductor.member_scheduler import MemberScheduler
from deployments.conductor.metrics import ExecutionMetrics
from deployments.models.messages import MemberJob, MemberProgress
from deployments.runtime.failures import as_stage_failure
from workflows.errors import StageFailed, StaleConductor
from workflows.execution import Stage


@dataclass(eq=False)
class DeploymentCalls:
    """Calls deployments by name, and cancels a call together with its caller.

    All methods raise `StageFailed`, or `TransientFailure` if a retry may succeed.
    """

    deployments: Mapping[str, DeploymentHandle[Any]]
    fence: int
    """The Conductor's fencing token. If a deployment refuses it, this process ends."""
    scheduler: MemberScheduler
    metrics: ExecutionMetrics

    def has(self, deployment: str) -> bool:
        """Return whether this server has a deployment; a plan may be older than its settings."""
        return deployment in self.deployments

    async def call(
        self, stage: Stage, deployment: str, method: str, *args: Any, fenced: bool = True
    ) -> Any:
        """Call a deployment and return its answer.

        Parameters
        ----------
        fenced : bool
            Whether the method takes the fencing token as last argument.
        """
        self.metrics.record_call(stage)
        if fenced:
            args = (*args, self.fence)
        response = getattr(self.deployments[deployment], method).remote(*args)
        try:
            return await response
        except asyncio.CancelledError:
            response.cancel()
            raise
        except Exception as error:
            raise _stage_failure(stage, error) from None

    async def stream(
        self, stage: Stage, deployment: str, method: str, *args: Any
    ) -> AsyncIterator[Any]:
        """Call a generator of a deployment and yield what it yields."""
        if not self.has(deployment):
            raise StageFailed(stage, f"this server no longer serves {deployment}")
        self.metrics.record_call(stage)
        handle = self.deployments[deployment].options(stream=True)
        response = getattr(handle, method).remote(*args)
        try:
            async for item in response:
                yield item
        except (asyncio.CancelledError, GeneratorExit):
            response.cancel()
            raise
        except Exception as error:
            raise _stage_failure(stage, error) from None

    async def compute_member(
        self, model: str, method: str, job: MemberJob, steps: int
    ) -> AsyncIterator[MemberProgress]:
        """Wait for a slot at a model, have a member computed and yield its progress."""
        async with self.scheduler.slot(model, job.execution_id, steps) as slot:
            assigned = job.model_copy(update={"replica": slot.replica})
            async for progress in self.stream(Stage.INFERENCE, model, method, assigned):
                slot.update(steps - progress.written, progress.replica)
                yield progress


def _stage_failure(stage: str, error: Exception) -> Exception:
    failure = as_stage_failure(stage, error)
    if isinstance(failure, StaleConductor):
        end_superseded_process(str(failure))
    return failure
