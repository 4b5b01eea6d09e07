"""How far executions are: what a life knows of itself, told in its record a few times a second."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from deployments.results.protocols import CompletedMembers
from workflows.base import Plan
from workflows.execution import Execution, Progress

PROGRESS_INTERVAL_S = 0.25


@dataclass
class Life:
    """A life that this process carries."""

    task: asyncio.Task[Any]
    written: list[int] = field(default_factory=list)
    """Time steps on disk, per member."""
    firsts: dict[int, int] = field(default_factory=dict)
    """Time index at which the latest attempt at a member began, if not with the first."""
    conditioned: list[int] = field(default_factory=list)
    """Fields that are there, per member of the conditioning forecast."""
    more_fields: asyncio.Condition = field(default_factory=asyncio.Condition)
    told_at: float = 0.0
    telling: asyncio.Lock = field(default_factory=asyncio.Lock)


class ProgressTracker:
    """Counts what is written, and records it.

    Parameters
    ----------
    running : mapping of str to Life
        The lives that this process carries, by execution.
    read : callable
        Reads an execution's record.
    record : callable
        Brings it up to date.
    in_turn : bool
        Whether models take turns on one GPU.
    """

    def __init__(
        self,
        running: Mapping[str, Life],
        read: Callable[[str], Awaitable[Execution]],
        record: Callable[..., Awaitable[None]],
        *,
        in_turn: bool,
    ) -> None:
        self._running = running
        self._read = read
        self._record = record
        self._in_turn = in_turn

    async def remaining_work(
        self, execution_id: str, plan: Plan, begun: CompletedMembers | None
    ) -> CompletedMembers:
        """Say which members are left to compute behind what an earlier attempt has left whole."""
        # One that was recorded before there was anything to tell.
        begun = begun or CompletedMembers()
        life = self._running[execution_id]
        for member in begun.members:
            life.written[member] = plan.n_times
        for member in begun.conditioning:
            life.conditioned[member] = plan.n_steps
        if begun.members:
            await self._tell_progress(execution_id, life, plan, at_once=True)
        conditioning = plan.conditioning.members if plan.conditioning is not None else ()
        return CompletedMembers(
            members=tuple(m for m in plan.members if m not in begun.members),
            conditioning=tuple(m for m in conditioning if m not in begun.conditioning),
        )

    async def note_written(self, execution_id: str, plan: Plan, member: int, written: int) -> None:
        """Record how far a member is, a few times a second and when it is whole.

        A successor counts whole members by this: what is recorded as done is not run again.
        """
        life = self._running[execution_id]
        life.written[member] = written
        await self._tell_progress(execution_id, life, plan, at_once=written == plan.n_times)

    def resumed_further(self, execution_id: str, member: int, first: int) -> bool:
        """Note where an attempt at a member begins; says if that is behind all before."""
        firsts = self._running[execution_id].firsts
        farther = first > firsts.get(member, 0)
        firsts[member] = max(first, firsts.get(member, 0))
        return farther

    async def note_conditioning(
        self, execution_id: str, plan: Plan, member: int, fields: int
    ) -> None:
        """Note how many fields of the conditioning forecast's member are there."""
        life = self._running[execution_id]
        async with life.more_fields:
            life.conditioned[member] = fields
            life.more_fields.notify_all()
        await self._tell_progress(execution_id, life, plan, at_once=False)

    async def all_conditioned(
        self, execution_id: str, plan: Plan, member: int, step: Awaitable[None]
    ) -> None:
        """Await the step that computes a member's fields; a predecessor may have done that."""
        await step
        await self.note_conditioning(execution_id, plan, member, plan.n_steps)

    async def conditioned(self, execution_id: str, plan: Plan, member: int) -> bool:
        """Wait until a member of the conditioning forecast has begun to give fields.

        Where models take turns on one GPU, until all members have given all: whoever waits there
        for another would keep the GPU from it.

        Returns
        -------
        bool
            Whether it has given all of them.
        """
        life = self._running[execution_id]

        def ready() -> bool:
            if self._in_turn:
                return min(life.conditioned) == plan.n_steps
            return life.conditioned[member] > 0

        async with life.more_fields:
            await life.more_fields.wait_for(ready)
        return life.conditioned[member] == plan.n_steps

    async def _tell_progress(
        self, execution_id: str, life: Life, plan: Plan, *, at_once: bool
    ) -> None:
        # One after the other, or an older count could overwrite a newer one.
        async with life.telling:
            total = plan.n_times * len(plan.seeds)
            now, done = time.monotonic(), sum(life.written)
            if now - life.told_at < PROGRESS_INTERVAL_S and not at_once:
                return
            life.told_at = now
            members = sum(count == plan.n_times for count in life.written)
            progress = Progress(
                message=f"{members} of {len(plan.seeds)} members, "
                f"{done} of {total} time steps written{_conditioning_in_words(life, plan)}",
                current_step=done,
                total_steps=total,
                members=tuple(life.written),
                steps_per_member=plan.n_times,
            )
            await self._record(execution_id, progress=progress)

    async def note_upload(self, execution_id: str, sent: int, total: int) -> None:
        """Record how far an upload is, a few times a second."""
        life = self._running[execution_id]
        async with life.telling:
            if time.monotonic() - life.told_at < PROGRESS_INTERVAL_S:
                return
            life.told_at = time.monotonic()
            known = (await self._read(execution_id)).progress
            message = f"{sent / 1e6:.0f} of {total / 1e6:.0f} MB uploaded"
            if known is not None:
                told = known.model_copy(update={"message": message})
            else:
                told = Progress(message=message, current_step=0, total_steps=0)
            await self._record(execution_id, progress=told)


def written_before(execution: Execution, plan: Plan) -> list[int]:
    """Take over what a predecessor told of whole members; unfinished ones begin anew."""
    told = execution.progress.members if execution.progress else ()
    return [count if count == plan.n_times else 0 for count in told] or [0] * len(plan.seeds)


def _conditioning_in_words(life: Life, plan: Plan) -> str:
    if plan.conditioning is None:
        return ""
    total = plan.n_steps * len(life.conditioned)
    return f"; {plan.conditioning.model}: {sum(life.conditioned)} of {total} hours"
