"""Who goes next at a model, and where."""

from __future__ import annotations

import asyncio

import pytest

from deployments.conductor.member_scheduler import AT_HAND_STEPS, MemberScheduler, Turn

MODEL = "fcn3"
LONG = 40


class Members:
    """Members of executions, started at once; each keeps its turn until it is told to end."""

    def __init__(self, replicas: int) -> None:
        self.turns = MemberScheduler({MODEL: replicas})
        self.handed: list[str] = []
        self.held: dict[str, Turn] = {}
        self._ends: dict[str, asyncio.Event] = {}
        self.tasks: dict[str, asyncio.Task[None]] = {}

    async def arrive(self, execution: str, members: int, steps: int = LONG) -> None:
        self.turns.arrive(execution)
        for number in range(members):
            name = f"{execution}{number}"
            self._ends[name] = asyncio.Event()
            self.tasks[name] = asyncio.create_task(self._compute(execution, name, steps))
        await settled()

    async def _compute(self, execution: str, name: str, steps: int) -> None:
        async with self.turns.turn(MODEL, execution, steps) as turn:
            self.handed.append(name)
            self.held[name] = turn
            await self._ends[name].wait()

    async def end(self, name: str) -> None:
        self._ends[name].set()
        await settled()

    async def tell(self, name: str, left: int, replica: str | None = None) -> None:
        self.held[name].told(left, replica)
        await settled()

    async def end_all(self) -> list[str]:
        """End one after the other, in the order in which they began."""
        place = 0
        while place < len(self.handed):
            await self.end(self.handed[place])
            place += 1
        await asyncio.gather(*self.tasks.values())
        return self.handed


async def settled() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_a_replica_gets_one_member_and_the_next_when_that_ends() -> None:
    members = Members(2)
    await members.arrive("a", 5)
    assert members.handed == ["a0", "a1"]
    await members.end("a1")
    assert members.handed == ["a0", "a1", "a2"]
    assert await members.end_all() == [f"a{n}" for n in range(5)]


async def test_the_next_is_at_hand_before_a_member_ends_and_not_much_earlier() -> None:
    members = Members(1)
    await members.arrive("a", 4)
    await members.tell("a0", AT_HAND_STEPS + 1)
    assert members.handed == ["a0"]
    await members.tell("a0", AT_HAND_STEPS)
    assert members.handed == ["a0", "a1"]
    # Two is what a replica takes.
    await members.tell("a1", 1)
    assert members.handed == ["a0", "a1"]
    await members.end("a0")
    assert members.handed == ["a0", "a1", "a2"]


async def test_short_members_are_at_hand_from_the_beginning() -> None:
    members = Members(2)
    await members.arrive("a", 9, steps=AT_HAND_STEPS)
    assert members.handed == ["a0", "a1", "a2", "a3"]


async def test_a_small_request_goes_before_the_next_member_of_a_large_one() -> None:
    members = Members(1)
    await members.arrive("large", 32)
    await members.arrive("small", 1)
    await members.end("large0")
    assert members.handed == ["large0", "small0"]


async def test_of_equal_requests_the_first_is_finished_first() -> None:
    members = Members(1)
    await members.arrive("a", 3)
    await members.arrive("b", 3)
    assert await members.end_all() == ["a0", "a1", "a2", "b0", "b1", "b2"]


async def test_a_large_request_gets_every_second_turn_however_many_small_ones_come() -> None:
    members = Members(1)
    await members.arrive("large", 3)
    for name in "bcd":
        await members.arrive(name, 1, steps=10)
    assert await members.end_all() == ["large0", "b0", "large1", "c0", "large2", "d0"]


async def test_fewer_steps_count_not_fewer_members() -> None:
    members = Members(1)
    await members.arrive("a", 3, steps=400)
    await members.arrive("b", 1, steps=400)
    await members.arrive("c", 2, steps=40)
    await members.end("a0")
    assert members.handed == ["a0", "c0"]


async def test_who_stops_waiting_is_not_waited_for() -> None:
    members = Members(1)
    await members.arrive("a", 2)
    await members.arrive("b", 1)
    members.tasks["b0"].cancel()
    await settled()
    await members.end("a0")
    assert members.handed == ["a0", "a1"]


async def test_an_execution_that_is_cancelled_leaves_nothing_behind() -> None:
    members = Members(2)
    await members.arrive("a", 8)
    await members.arrive("b", 3)
    for name in ("a1", "a0", *(f"a{n}" for n in range(2, 8))):
        members.tasks[name].cancel()
    await settled()
    assert members.handed == ["a0", "a1", "b0", "b1"]
    await members.end("b0")
    assert members.handed[-1] == "b2"


async def test_a_turn_that_is_given_up_as_it_comes_goes_to_the_next() -> None:
    members = Members(1)
    await members.arrive("a", 3)
    members._ends["a0"].set()
    for _ in range(2):
        await asyncio.sleep(0)
    # a1 has been given its turn, but has not run since.
    members.tasks["a1"].cancel()
    await settled()
    assert members.handed[-1] == "a2"


async def test_a_member_that_fails_gives_its_turn_back() -> None:
    turns = MemberScheduler({})
    with pytest.raises(ValueError, match="NaN"):
        async with turns.turn(MODEL, "a", LONG):
            raise ValueError("NaN")
    async with asyncio.timeout(1), turns.turn(MODEL, "b", LONG):
        pass


async def test_a_member_goes_to_the_replica_that_is_about_to_be_free() -> None:
    members = Members(2)
    await members.arrive("a", 4)
    assert [members.held[name].replica for name in ("a0", "a1")] == [None, None]
    await members.tell("a0", LONG, "one")
    await members.tell("a1", LONG, "two")
    await members.tell("a1", AT_HAND_STEPS, "two")
    assert members.held["a2"].replica == "two"
    await members.end("a0")
    assert members.held["a3"].replica == "one"


async def test_replicas_that_are_not_known_yet_are_left_to_serve() -> None:
    members = Members(3)
    await members.arrive("a", 1, steps=AT_HAND_STEPS)
    await members.tell("a0", AT_HAND_STEPS, "one")
    await members.arrive("b", 2)
    # "one" still writes; two others may have nothing to do.
    assert [members.held[name].replica for name in ("b0", "b1")] == [None, None]
    await members.end("a0")
    await members.arrive("c", 1)
    assert members.held["c0"].replica == "one"


async def test_a_replica_at_which_a_member_failed_is_not_chosen() -> None:
    members = Members(1)
    await members.arrive("a", 2)
    await members.tell("a0", LONG, "one")
    members.tasks["a0"].cancel()
    await settled()
    assert members.held["a1"].replica is None


async def test_a_replica_that_is_gone_is_not_chosen_again() -> None:
    """Idle replicas end unnoticed, as by autoscaling: whoever is sent there ends up elsewhere."""
    members = Members(1)
    await members.arrive("a", 3)
    await members.tell("a0", LONG, "gone")
    await members.end("a0")
    assert members.held["a1"].replica == "gone"
    await members.tell("a1", LONG, "new")
    await members.end("a1")
    assert members.held["a2"].replica == "new"
    await members.end("a2")


async def test_models_do_not_wait_for_each_other() -> None:
    turns = MemberScheduler({"fcn3": 1, "stormscope": 1})
    async with asyncio.timeout(1), turns.turn("fcn3", "a", LONG):
        async with turns.turn("stormscope", "a", LONG):
            pass
