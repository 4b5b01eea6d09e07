"""When models on stand-in GPUs computed, from their journal: figures and a drawing."""

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
    started: float
    ended: float


def read_journal(path: Path) -> list[Step]:
    """Return the steps in a `benchmarks.sleeping_models.Journal`, in order of their ends."""
    lines = [line.split() for line in path.read_text().splitlines()]
    return [Step(model, int(pid), float(b), float(e)) for model, pid, b, e in lines]


def makespan(steps: Sequence[Step]) -> float:
    """Return the seconds from the first step to the last."""
    return max(s.ended for s in steps) - min(s.started for s in steps)


def busy(steps: Sequence[Step]) -> float:
    """Return the share of the time from the first step to the last in which replicas computed."""
    replicas = len({(s.model, s.process) for s in steps})
    return sum(s.ended - s.started for s in steps) / (makespan(steps) * replicas)


def pauses(steps: Sequence[Step], steps_of_member: int) -> list[float]:
    """Return the pauses of replicas between two members of `steps_of_member` steps, seconds."""
    found = []
    for replica in {(s.model, s.process) for s in steps}:
        own = sorted(
            (s for s in steps if (s.model, s.process) == replica), key=lambda step: step.started
        )
        found += [
            own[first].started - own[first - 1].ended
            for first in range(steps_of_member, len(own), steps_of_member)
        ]
    return sorted(found)


def timeline(steps: Sequence[Step], steps_of_member: int, cell_s: float = CELL_S) -> str:
    """Draw when each replica computed which of its members, one character per `cell_s`."""
    start, end = min(s.started for s in steps), max(s.ended for s in steps)
    rows = []
    for replica in dict.fromkeys((s.model, s.process) for s in steps):
        cells = [" "] * (int((end - start) / cell_s) + 1)
        own = [s for s in steps if (s.model, s.process) == replica]
        for number, step in enumerate(own):
            first, last = ((at - start) / cell_s for at in (step.started, step.ended))
            for cell in range(round(first), max(round(last), round(first) + 1)):
                cells[min(cell, len(cells) - 1)] = str(number // steps_of_member % 10)
        rows.append(f"  {replica[0]:<11}|{''.join(cells)}|")
    return "\n".join([*rows, f"  one character is {cell_s:g} s; digits count members"])
