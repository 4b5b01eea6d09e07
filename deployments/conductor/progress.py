"""Counts what executions have computed, and records it a few times a second."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Mapping
from dataclasses import dataclass, field
from typing import Any

from deployments.conductor.records import ExecutionRecords
from deployments.results.messages import CompletedMembers
from workflows.base import Plan
from workflows.execution import Execution, Progress

PROGRESS_INTERVAL_S = 0.25


@dataclass
class ActiveExecution:
    """An execution that runs in this process."""

    task: asyncio.Task[Any]
    written: list[int] = field(default_factory=list)
    """Time steps on disk, per member."""
    resumed_from: dict[int, int] = field(default_factory=dict)
    """Latest time index from which an attempt at a member began; missing for 0."""
    conditioned: list[int] = field(default_factory=list)
    """Conditioning fields on disk, per member of the conditioning forecast."""
    fields_added: asyncio.Condition = field(default_factory=asyncio.Condition)
    is_cancelling: bool = False
    recorded_at: float = 0.0
    """When progress was last recorded, on the monotonic clock."""
    recording: asyncio.Lock = field(default_factory=asyncio.Lock)


@dataclass(eq=False)
class ProgressTracker:
    """Counts what executions have written, and records it."""

    active: Mapping[str, ActiveExecution]
    records: ExecutionRecords
    models_share_gpu: bool

    async def remaining_work(
        self, execution_id: str, plan: Plan, completed: CompletedMembers
    ) -> CompletedMembers:
        """Return the members that are still to be computed, and count `completed` as written."""
        active = self.active[execution_id]
        for member in completed.members:
            active.written[member] = plan.n_times
        for member in completed.conditioning:
            active.conditioned[member] = plan.n_steps
        if completed.members:
            await self._record(execution_id, active, plan, at_once=True)
        conditioning = plan.conditioning.members if plan.conditioning is not None else ()
        return CompletedMembers(
            members=tuple(m for m in plan.members if m not in completed.members),
            conditioning=tuple(m for m in conditioning if m not in completed.conditioning),
        )

    async def note_written(self, execution_id: str, plan: Plan, member: int, written: int) -> None:
        """Record how many time steps of a member are written.

        Always recorded when the member is complete: a successor counts complete members by this,
        since it does not repeat a recorded step.
        """
        active = self.active[execution_id]
        active.written[member] = written
        await self._record(execution_id, active, plan, at_once=written == plan.n_times)

    def resumed_further(self, execution_id: str, member: int, first: int) -> bool:
        """Return whether an attempt at a member begins at a later time index than all before."""
        resumed_from = self.active[execution_id].resumed_from
        latest = resumed_from.get(member, 0)
        resumed_from[member] = max(first, latest)
        return first > latest

    async def note_conditioning(
        self, execution_id: str, plan: Plan, member: int, fields: int
    ) -> None:
        """Record how many fields of a member of the conditioning forecast are written."""
        active = self.active[execution_id]
        async with active.fields_added:
            active.conditioned[member] = fields
            active.fields_added.notify_all()
        await self._record(execution_id, active, plan, at_once=False)

    async def note_all_conditioning(
        self, execution_id: str, plan: Plan, member: int, step: Awaitable[None]
    ) -> None:
        """Await the step that computes a member's conditioning fields, then count all of them.

        A step that a predecessor has recorded ends without having counted any.
        """
        await step
        await self.note_conditioning(execution_id, plan, member, plan.n_steps)

    async def wait_for_conditioning(self, execution_id: str, plan: Plan, member: int) -> bool:
        """Wait for the first field of a conditioning member; return whether all are written.

        Where models share one GPU, wait for all fields of all members: a model that waited on the
        GPU for another would keep it from computing.
        """
        active = self.active[execution_id]

        def can_begin() -> bool:
            if self.models_share_gpu:
                return min(active.conditioned) == plan.n_steps
            return active.conditioned[member] > 0

        async with active.fields_added:
            await active.fields_added.wait_for(can_begin)
        return active.conditioned[member] == plan.n_steps

    async def note_upload(self, execution_id: str, sent: int, total: int) -> None:
        """Record how many bytes of an upload are sent."""
        active = self.active[execution_id]
        async with active.recording:
            if time.monotonic() - active.recorded_at < PROGRESS_INTERVAL_S:
                return
            active.recorded_at = time.monotonic()
            before = (await self.records.read(execution_id)).progress
            before = before or Progress(message="", current_step=0, total_steps=0)
            message = f"{sent / 1e6:.0f} of {total / 1e6:.0f} MB uploaded"
            progress = before.model_copy(update={"message": message})
            await self.records.update(execution_id, progress=progress)

    async def _record(
        self, execution_id: str, active: ActiveExecution, plan: Plan, *, at_once: bool
    ) -> None:
        # One update at a time, or an older count could overwrite a newer one.
        async with active.recording:
            now = time.monotonic()
            if now - active.recorded_at < PROGRESS_INTERVAL_S and not at_once:
                return
            active.recorded_at = now
            members = sum(count == plan.n_times for count in active.written)
            total, done = plan.n_times * len(plan.seeds), sum(active.written)
            progress = Progress(
                message=f"{members} of {len(plan.seeds)} members, "
                f"{done} of {total} time steps written{_describe_conditioning(active, plan)}",
                current_step=done,
                total_steps=total,
                members=tuple(active.written),
                steps_per_member=plan.n_times,
            )
            await self.records.update(execution_id, progress=progress)


def completed_steps(execution: Execution, plan: Plan) -> list[int]:
    """Return the time steps written per member, counting only members recorded as complete."""
    recorded = execution.progress.members if execution.progress else ()
    return [count if count == plan.n_times else 0 for count in recorded] or [0] * len(plan.seeds)


def _describe_conditioning(active: ActiveExecution, plan: Plan) -> str:
    if plan.conditioning is None:
        return ""
    total = plan.n_steps * len(active.conditioned)
    return f"; {plan.conditioning.model}: {sum(active.conditioned)} of {total} hours"
