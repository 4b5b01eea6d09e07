"""Decides which ensemble member is computed next, and by which replica.

Serve's own queue is first come, first served, and binds a call to a replica as soon as that has
room for two: one member would wait behind 32 of 400 steps, and possibly for a replica that is busy
while another is idle. So members wait here, and are handed over one by one:

- A replica gets its next member shortly before the one that it computes ends: late, so that
  requests which arrive meanwhile can still go first, but early enough to leave no gap.
- The execution with the fewest remaining steps goes next. Small requests hardly wait, and of equal
  ones the first finishes first, where round-robin would let all of them finish late.
- Whenever another execution was preferred, the oldest one goes next. It gets at least every second
  slot, so however many small requests arrive, it takes at most twice as long.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from itertools import count

from deployments.models.messages import MAX_CALLS_PER_REPLICA

HANDOVER_STEPS = 4
"""Unwritten steps of a member at which its replica gets the next one."""


@dataclass(eq=False)
class Slot:
    """A member's slot at a model, held from its handover until all its steps are written."""

    execution_id: str
    steps_left: int
    """Steps that are not written yet."""
    replica: str | None = None
    """The replica that computes it; None while Serve chooses one."""
    _model: _Model | None = field(default=None, repr=False)

    @property
    def ends_soon(self) -> bool:
        """Whether its replica may get another member."""
        return self.steps_left <= HANDOVER_STEPS

    def update(self, steps_left: int, replica: str | None) -> None:
        """Set how many steps are left, and which replica computes them."""
        self.steps_left = steps_left
        if self._model is not None:
            if replica is not None:
                if self.replica not in (None, replica):
                    # The chosen replica is gone, or Serve would have sent the member there.
                    self._model.known.pop(str(self.replica), None)
                self.replica = replica
                self._model.known[replica] = None
            self._model.assign_slots()


@dataclass(eq=False)
class _Request:
    """A member that waits for a slot."""

    execution_id: str
    steps: int
    slot: asyncio.Future[Slot]


class MemberScheduler:
    """Shares the replicas of models between executions.

    Parameters
    ----------
    replicas : mapping of str to int
        Replicas that each model has, or may get by autoscaling; 1 if not listed.
    """

    def __init__(self, replicas: Mapping[str, int]) -> None:
        self._replicas = replicas
        self._models: dict[str, _Model] = {}
        self._order: dict[str, int] = {}
        self._numbers = count(1)

    def add_execution(self, execution_id: str) -> None:
        """Register an execution that begins; those registered before count as older."""
        self._order.setdefault(execution_id, next(self._numbers))

    def remove_execution(self, execution_id: str) -> None:
        """Forget an execution that has ended."""
        self._order.pop(execution_id, None)

    @asynccontextmanager
    async def slot(self, model: str, execution_id: str, steps: int) -> AsyncIterator[Slot]:
        """Wait for a slot at a model for a member of `steps` time steps; hold it in the block."""
        new = _Model(self._replicas.get(model, 1), self._order)
        queue = self._models.setdefault(model, new)
        request = _Request(execution_id, steps, asyncio.get_running_loop().create_future())
        slot: Slot | None = None
        queue.waiting.append(request)
        try:
            queue.assign_slots()
            slot = await request.slot
            yield slot
        except BaseException:
            if slot is not None and slot.replica is not None:
                # It may have died.
                queue.known.pop(slot.replica, None)
            raise
        finally:
            queue.release(request)


class _Model:
    """The members that one model computes, or that wait for it."""

    def __init__(self, replicas: int, order: Mapping[str, int]) -> None:
        self._replicas = replicas
        self._order = order
        self.waiting: list[_Request] = []
        self.known: dict[str, None] = {}
        """Replicas that have reported progress, in that order."""
        self._slots: list[Slot] = []
        self._oldest_is_next = False

    def assign_slots(self) -> None:
        """Hand over as many members as the replicas can take."""
        # Some may have been cancelled, but their tasks have not run since.
        self.waiting = [request for request in self.waiting if not request.slot.done()]
        while self.waiting and self._has_room():
            request = self._next_request()
            self.waiting.remove(request)
            slot = Slot(request.execution_id, request.steps, self._free_replica(), self)
            self._slots.append(slot)
            request.slot.set_result(slot)

    def release(self, request: _Request) -> None:
        """Free the slot of a request, or withdraw the request."""
        if request in self.waiting:
            self.waiting.remove(request)
        elif request.slot.done() and not request.slot.cancelled():
            self._slots.remove(request.slot.result())
        self.assign_slots()

    def _has_room(self) -> bool:
        computing = sum(not slot.ends_soon for slot in self._slots)
        limit = MAX_CALLS_PER_REPLICA * self._replicas
        return computing < self._replicas and len(self._slots) < limit

    def _next_request(self) -> _Request:
        first: dict[str, _Request] = {}
        remaining: Counter[str] = Counter()
        for request in self.waiting:
            first.setdefault(request.execution_id, request)
            remaining[request.execution_id] += request.steps
        oldest = min(first, key=lambda name: self._order.get(name, 0))
        shortest = min(first, key=lambda name: (remaining[name], self._order.get(name, 0)))
        chosen = oldest if self._oldest_is_next else shortest
        self._oldest_is_next = chosen != oldest
        return first[chosen]

    def _free_replica(self) -> str | None:
        """Return a known replica that is idle or nearly so; None leaves the choice to Serve."""
        by_replica: dict[str | None, list[Slot]] = {name: [] for name in self.known}
        for slot in self._slots:
            by_replica.setdefault(slot.replica, []).append(slot)
        for name in self.known:
            if not by_replica[name]:
                return name
        if len(self.known) < self._replicas:
            return None
        for name in self.known:
            if len(by_replica[name]) == 1 and by_replica[name][0].ends_soon:
                return name
        return None
