"""Whose member is computed next: turns at a model's replicas, shared between executions.

Serve's own queue is first come, first served, and binds a call to a replica as long as that takes
two: one member would wait behind 32 of 400 steps, and maybe for a replica that is busy while
another is free. So members wait here, and are handed over one by one:

- A replica gets its next member when the one that it computes is about to end: late, so that
  whatever has come meanwhile can still go first, and early enough to be at hand.
- Next is the execution with the fewest steps left. Small requests hardly wait, and of equal ones
  the first is finished first: taking turns would let all of them end late.
- Whenever another execution was preferred, the oldest one goes next. It gets every second turn
  at least, so that however many small ones come, it takes twice as long at most.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from deployments.models.messages import MAX_CALLS_PER_REPLICA

AT_HAND_STEPS = 4
"""Steps that a member may have left, unwritten, when the next one is handed over."""


@dataclass(eq=False)
class Turn:
    """A member's turn, from being handed over until all that it gave is written."""

    execution_id: str
    steps_left: int
    """Steps that are not yet written."""
    replica: str | None = None
    """Where it is computed: chosen for it, or told since; None if Serve chooses."""
    _places: _Places | None = field(default=None, repr=False)

    @property
    def ends_soon(self) -> bool:
        """Whether its replica shall have another member at hand."""
        return self.steps_left <= AT_HAND_STEPS

    def told(self, steps_left: int, replica: str | None) -> None:
        """Take note of how far it is, and where."""
        self.steps_left = steps_left
        if self._places is not None:
            if replica is not None:
                if self.replica not in (None, replica):
                    # It was not there any more, or Serve would have sent the member to it.
                    self._places.known.pop(str(self.replica), None)
                self.replica = replica
                self._places.known[replica] = None
            self._places.hand_out()


@dataclass(eq=False)
class _Asked:
    """A member that waits for its turn."""

    execution_id: str
    steps: int
    turn: asyncio.Future[Turn]


class MemberScheduler:
    """The turns at all models.

    Parameters
    ----------
    replicas : mapping of str to int
        How many replicas a model has, or may get by autoscaling; 1 of those that are not named.
    """

    def __init__(self, replicas: Mapping[str, int]) -> None:
        self._replicas = replicas
        self._places: dict[str, _Places] = {}
        self._ages: dict[str, int] = {}
        self._arrivals = 0

    def arrive(self, execution_id: str) -> None:
        """Note that an execution's life has begun: those that did before are older."""
        self._arrivals += 1
        self._ages.setdefault(execution_id, self._arrivals)

    def leave(self, execution_id: str) -> None:
        """Note that it has ended."""
        self._ages.pop(execution_id, None)

    @asynccontextmanager
    async def turn(self, model: str, execution_id: str, steps: int) -> AsyncIterator[Turn]:
        """Wait for a turn, and keep it.

        Parameters
        ----------
        model : str
        execution_id : str
        steps : int
            That the member has.
        """
        places = self._places.get(model)
        if places is None:
            places = _Places(self._replicas.get(model, 1), self._ages)
            self._places[model] = places
        asked = _Asked(execution_id, steps, asyncio.get_running_loop().create_future())
        turn: Turn | None = None
        places.waiting.append(asked)
        try:
            places.hand_out()
            turn = await asked.turn
            yield turn
        except BaseException:
            if turn is not None and turn.replica is not None:
                # It may have died.
                places.known.pop(turn.replica, None)
            raise
        finally:
            places.give_back(asked)


class _Places:
    """Who computes and who waits at one model."""

    def __init__(self, replicas: int, ages: Mapping[str, int]) -> None:
        self._replicas = replicas
        self._ages = ages
        self.waiting: list[_Asked] = []
        self.known: dict[str, None] = {}
        """Replicas that have told of themselves."""
        self._turns: list[Turn] = []
        self._oldest_is_due = False

    def hand_out(self) -> None:
        """Hand over as many members as replicas can use."""
        # Some may have been cancelled, but have not run since.
        self.waiting = [asked for asked in self.waiting if not asked.turn.done()]
        while self.waiting and self._has_room():
            asked = self._next()
            self.waiting.remove(asked)
            turn = Turn(asked.execution_id, asked.steps, self._free_replica(), self)
            self._turns.append(turn)
            asked.turn.set_result(turn)

    def give_back(self, asked: _Asked) -> None:
        """End a turn, or the wait for it."""
        if asked in self.waiting:
            self.waiting.remove(asked)
        elif asked.turn.done() and not asked.turn.cancelled():
            self._turns.remove(asked.turn.result())
        self.hand_out()

    def _has_room(self) -> bool:
        computing = sum(not turn.ends_soon for turn in self._turns)
        return (
            computing < self._replicas and len(self._turns) < MAX_CALLS_PER_REPLICA * self._replicas
        )

    def _next(self) -> _Asked:
        """Choose the member that goes next, in the order of its execution."""
        first: dict[str, _Asked] = {}
        left: Counter[str] = Counter()
        for asked in self.waiting:
            first.setdefault(asked.execution_id, asked)
            left[asked.execution_id] += asked.steps
        oldest = min(first, key=lambda name: self._ages.get(name, 0))
        shortest = min(first, key=lambda name: (left[name], self._ages.get(name, 0)))
        chosen = oldest if self._oldest_is_due else shortest
        self._oldest_is_due = chosen != oldest
        return first[chosen]

    def _free_replica(self) -> str | None:
        """Choose a replica that does nothing, or next to nothing; None if none is known."""
        at: dict[str | None, list[Turn]] = {name: [] for name in self.known}
        for turn in self._turns:
            at.setdefault(turn.replica, []).append(turn)
        unknown = len(self.known) < self._replicas
        for name in self.known:
            if not at[name]:
                return name
        if unknown:
            return None
        return next(
            (name for name in self.known if len(at[name]) == 1 and at[name][0].ends_soon), None
        )
