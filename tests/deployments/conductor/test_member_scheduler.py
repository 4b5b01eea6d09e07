"""Which member is computed next, and by which replica."""

from __future__ import annotations

import asyncio

import pytest

from deployments.conductor.member_scheduler import HANDOVER_STEPS, MemberScheduler, Slot

MODEL = "fcn3"
LONG = 40


class Members:
    """Members of executions, all requested at once; each holds its slot until `end`."""

    def __init__(self, replicas: int) -> None:
        self.scheduler = MemberScheduler({MODEL: replicas})
        self.started: list[str] = []
        self.slots: dict[str, Slot] = {}
        self._ends: dict[str, asyncio.Event] = {}
        self.tasks: dict[str, asyncio.Task[None]] = {}

    async def add(self, execution: str, members: int, steps: int = LONG) -> None:
        self.scheduler.add_execution(execution)
        for number in range(members):
            name = f"{execution}{number}"
            self._ends[name] = asyncio.Event()
            self.tasks[name] = asyncio.create_task(self._compute(execution, name, steps))
        await settled()

    async def _compute(self, execution: str, name: str, steps: int) -> None:
        async with self.scheduler.slot(MODEL, execution, steps) as slot:
            self.started.append(name)
            self.slots[name] = slot
            await self._ends[name].wait()

    async def end(self, name: str) -> None:
        self._ends[name].set()
        await settled()

    async def update(self, name: str, left: int, replica: str | None = None) -> None:
        self.slots[name].update(left, replica)
        await settled()

    async def end_all(self) -> list[str]:
        """End one after the other in the order of their start, and return that order."""
        for name in self.started:  # grows meanwhile
            await self.end(name)
        await asyncio.gather(*self.tasks.values())
        return self.started


async def settled() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_replica_gets_its_next_member_when_one_ends() -> None:
    members = Members(2)
    await members.add("a", 5)
    assert members.started == ["a0", "a1"]
    await members.end("a1")
    assert members.started == ["a0", "a1", "a2"]
    assert await members.end_all() == [f"a{n}" for n in range(5)]


async def test_next_member_is_handed_over_shortly_before_one_ends() -> None:
    members = Members(1)
    await members.add("a", 4)
    await members.update("a0", HANDOVER_STEPS + 1)
    assert members.started == ["a0"]
    await members.update("a0", HANDOVER_STEPS)
    assert members.started == ["a0", "a1"]
    # A replica takes two.
    await members.update("a1", 1)
    assert members.started == ["a0", "a1"]
    await members.end("a0")
    assert members.started == ["a0", "a1", "a2"]


async def test_short_members_are_handed_over_two_at_a_time() -> None:
    members = Members(2)
    await members.add("a", 9, steps=HANDOVER_STEPS)
    assert members.started == ["a0", "a1", "a2", "a3"]


async def test_small_request_goes_before_the_next_member_of_a_large_one() -> None:
    members = Members(1)
    await members.add("large", 32)
    await members.add("small", 1)
    await members.end("large0")
    assert members.started == ["large0", "small0"]


async def test_first_of_equal_requests_finishes_first() -> None:
    members = Members(1)
    await members.add("a", 3)
    await members.add("b", 3)
    assert await members.end_all() == ["a0", "a1", "a2", "b0", "b1", "b2"]


async def test_oldest_request_gets_every_second_slot() -> None:
    members = Members(1)
    await members.add("large", 3)
    for name in "bcd":
        await members.add(name, 1, steps=10)
    assert await members.end_all() == ["large0", "b0", "large1", "c0", "large2", "d0"]


async def test_steps_are_counted_rather_than_members() -> None:
    members = Members(1)
    await members.add("a", 3, steps=400)
    await members.add("b", 1, steps=400)
    await members.add("c", 2, steps=40)
    await members.end("a0")
    assert members.started == ["a0", "c0"]


async def test_cancelled_request_is_skipped() -> None:
    members = Members(1)
    await members.add("a", 2)
    await members.add("b", 1)
    members.tasks["b0"].cancel()
    await settled()
    await members.end("a0")
    assert members.started == ["a0", "a1"]


async def test_cancelled_execution_frees_its_slots() -> None:
    members = Members(2)
    await members.add("a", 8)
    await members.add("b", 3)
    for name in ("a1", "a0", *(f"a{n}" for n in range(2, 8))):
        members.tasks[name].cancel()
    await settled()
    assert members.started == ["a0", "a1", "b0", "b1"]
    await members.end("b0")
    assert members.started[-1] == "b2"


async def test_slot_that_is_assigned_to_a_cancelled_member_goes_to_the_next() -> None:
    members = Members(1)
    await members.add("a", 3)
    members._ends["a0"].set()
    for _ in range(2):
        await asyncio.sleep(0)
    # a1 has been assigned a slot, but its task has not run since.
    members.tasks["a1"].cancel()
    await settled()
    assert members.started[-1] == "a2"


async def test_member_that_fails_frees_its_slot() -> None:
    scheduler = MemberScheduler({})
    with pytest.raises(ValueError, match="NaN"):
        async with scheduler.slot(MODEL, "a", LONG):
            raise ValueError("NaN")
    async with asyncio.timeout(1), scheduler.slot(MODEL, "b", LONG):
        pass


async def test_member_goes_to_the_replica_that_is_about_to_be_free() -> None:
    members = Members(2)
    await members.add("a", 4)
    assert [members.slots[name].replica for name in ("a0", "a1")] == [None, None]
    await members.update("a0", LONG, "one")
    await members.update("a1", LONG, "two")
    await members.update("a1", HANDOVER_STEPS, "two")
    assert members.slots["a2"].replica == "two"
    await members.end("a0")
    assert members.slots["a3"].replica == "one"


async def test_serve_chooses_while_replicas_are_unknown() -> None:
    members = Members(3)
    await members.add("a", 1, steps=HANDOVER_STEPS)
    await members.update("a0", HANDOVER_STEPS, "one")
    await members.add("b", 2)
    # "one" still writes; two others may be idle.
    assert [members.slots[name].replica for name in ("b0", "b1")] == [None, None]
    await members.end("a0")
    await members.add("c", 1)
    assert members.slots["c0"].replica == "one"


async def test_replica_at_which_a_member_failed_is_not_chosen() -> None:
    members = Members(1)
    await members.add("a", 2)
    await members.update("a0", LONG, "one")
    members.tasks["a0"].cancel()
    await settled()
    assert members.slots["a1"].replica is None


async def test_replica_that_is_gone_is_not_chosen_again() -> None:
    """Autoscaling removes idle replicas unnoticed: a member sent there is computed elsewhere."""
    members = Members(1)
    await members.add("a", 3)
    await members.update("a0", LONG, "gone")
    await members.end("a0")
    assert members.slots["a1"].replica == "gone"
    await members.update("a1", LONG, "new")
    await members.end("a1")
    assert members.slots["a2"].replica == "new"
    await members.end("a2")


async def test_models_have_separate_slots() -> None:
    scheduler = MemberScheduler({"fcn3": 1, "stormscope": 1})
    async with asyncio.timeout(1), scheduler.slot("fcn3", "a", LONG):
        async with scheduler.slot("stormscope", "a", LONG):
            pass
