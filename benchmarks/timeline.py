"""When models on stand-in GPUs computed: read from their journal, summed up and drawn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

CELL_S = 0.25


@dataclass(frozen=True)
class Step:
    """One step of a model."""

    model: str
    process: int
    began: float
    ended: float


def read_journal(path: Path) -> list[Step]:
    """Read what a `benchmarks.sleeping_models.Journal` has noted, in the order of the ends."""
    lines = [line.split() for line in path.read_text().splitlines()]
    return [Step(model, int(pid), float(b), float(e)) for model, pid, b, e in lines]


def makespan(steps: Sequence[Step]) -> float:
    """Give the seconds from the first step to the last."""
    return max(s.ended for s in steps) - min(s.began for s in steps)


def busy(steps: Sequence[Step]) -> float:
    """Give the share of the time from the first step to the last that replicas computed."""
    replicas = len({(s.model, s.process) for s in steps})
    return sum(s.ended - s.began for s in steps) / (makespan(steps) * replicas)


def pauses(steps: Sequence[Step], steps_of_member: int) -> list[float]:
    """Give the seconds that replicas paused between two members, of as many steps each."""
    found = []
    for replica in {(s.model, s.process) for s in steps}:
        own = sorted(
            (s for s in steps if (s.model, s.process) == replica), key=lambda step: step.began
        )
        found += [
            own[place].began - own[place - 1].ended
            for place in range(steps_of_member, len(own), steps_of_member)
        ]
    return sorted(found)


def timeline(steps: Sequence[Step], steps_of_member: int, cell_s: float = CELL_S) -> str:
    """Draw when each replica computed which of its members, a character for `cell_s`."""
    start, end = min(s.began for s in steps), max(s.ended for s in steps)
    rows = []
    for replica in dict.fromkeys((s.model, s.process) for s in steps):
        cells = [" "] * (int((end - start) / cell_s) + 1)
        own = [s for s in steps if (s.model, s.process) == replica]
        for number, step in enumerate(own):
            first, last = ((at - start) / cell_s for at in (step.began, step.ended))
            for cell in range(round(first), max(round(last), round(first) + 1)):
                cells[min(cell, len(cells) - 1)] = str(number // steps_of_member % 10)
        rows.append(f"  {replica[0]:<11}|{''.join(cells)}|")
    return "\n".join([*rows, f"  a character is {cell_s:g} s, its digit counts members"])
