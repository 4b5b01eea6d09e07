"""How often members are retried."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from typing import Any

from deployments.conductor.retries import STEP, retry_while_progressing
from deployments.runtime.failures import TransientFailure
from deployments.store.conductor_view import ConductorStore
from tests.deployments.conductor.harness import conductor_loop, finished, submit, until
from tests.deployments.conductor.stand_ins import Journal, StandIns
from workflows import Status


async def test_member_that_progresses_is_retried_any_number_of_times(
    store: ConductorStore, store_url: str, journal: Journal
) -> None:
    steps = 8
    stand_ins = StandIns(journal)

    async def die_after_a_checkpoint(job: Any) -> None:
        if (first := stand_ins.firsts.get(job.member, 0)) < steps - 1:
            stand_ins.firsts[job.member] = first + 1
            raise TransientFailure("inference", "ActorDiedError: it died")

    stand_ins = StandIns(journal, before={"member": die_after_a_checkpoint})
    execution_id = submit(store, n_samples=1, n_steps=steps)
    async with conductor_loop(store_url, stand_ins):
        assert (await until(store, execution_id, finished)).status == Status.COMPLETED
    assert journal.lines().count("begin 0") == steps > 6


async def test_attempts_are_counted_anew_after_progress() -> None:
    async def attempts(*each: int) -> int:
        """Return how many attempts are made if each place needs so many, and the last succeeds."""
        progresses = [new for count in each for new in [True, *[False] * (count - 1)]]
        made = 0

        async def attempt(progressed: Callable[[], None]) -> None:
            nonlocal made
            made += 1
            if progresses[made - 1]:
                progressed()
            if made < len(progresses):
                raise TransientFailure("inference", "ActorDiedError: it died")

        with suppress(TransientFailure):
            await retry_while_progressing(attempt, "it", replace(STEP, initial_delay_s=0.0))
        return made

    assert await attempts(*[5] * 20, 1) == 101
    assert await attempts(5, 7, 1) == 11
