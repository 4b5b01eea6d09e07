"""Kill processes at random, and measure the time to the next progress."""

from __future__ import annotations

import os
import random
import signal
import statistics
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.chaos.cluster import CONTROLLER, REPLICA, Cluster

CONTROLLER_OF_SERVE, NODE, EVERYTHING = "Serve controller", "worker node", "whole cluster"
HAPROXY = "HAProxy"
PROGRESS_LIMIT_S = 120.0
NODE_AWAY_S = 3.0


@dataclass
class Watch:
    """Observes progress.

    Parameters
    ----------
    journal : Path
        Grows with each computed step.
    ended : callable
        Returns the number of ended executions.
    """

    journal: Path
    ended: Callable[[], int]

    def until_progress(self, fault: str) -> float:
        """Wait until a step is computed or an execution ends; return the seconds.

        Raises
        ------
        TimeoutError
            If there is no progress for a long time after the fault.
        """
        started_at, before = time.monotonic(), self._state()
        while self._state() == before:
            if time.monotonic() - started_at > PROGRESS_LIMIT_S:
                raise TimeoutError(f"no progress for {PROGRESS_LIMIT_S:g} s after {fault}")
            time.sleep(0.02)
        return time.monotonic() - started_at

    def _state(self) -> tuple[int, int]:
        size = self.journal.stat().st_size if self.journal.exists() else 0
        return size, self.ended()


@dataclass
class Kills:
    """Kills processes of a cluster at random.

    Parameters
    ----------
    cluster : Cluster
    watch : Watch
    before_kill : callable
        Called before each kill.
    deployments : sequence of str
    n_workers : int
        Number of nodes that may be killed.
    seed : int
    """

    cluster: Cluster
    watch: Watch
    before_kill: Callable[[], None]
    deployments: Sequence[str]
    n_workers: int
    seed: int
    counts: Counter[str] = field(default_factory=Counter)
    to_progress: dict[str, list[float]] = field(default_factory=dict)
    """Seconds from a kill to the next progress, by target."""

    def __post_init__(self) -> None:
        self._random = random.Random(self.seed)  # noqa: S311

    def run(self, n: int, pause_s: float, *, restarts: int) -> None:
        """Kill processes, nodes and, a few times, the whole cluster.

        Parameters
        ----------
        n : int
            Number of kills, including those of the whole cluster.
        pause_s : float
            Longest pause between progress and the next kill. One kill in four does not wait for
            progress after the previous one.
        restarts : int
            Number of kills of the whole cluster.
        """
        everything = {n * (i + 1) // (restarts + 1) for i in range(restarts)}
        number = 0
        while number < n:
            self.before_kill()
            target = EVERYTHING if number in everything else self._choose()
            if not self._kill(target):
                time.sleep(0.5)
                continue
            number += 1
            self.counts[target] += 1
            if number < n and self._random.random() < 0.25:
                time.sleep(self._random.uniform(0, 1))
                continue
            took = self.watch.until_progress(f"a kill of {target}")
            self.to_progress.setdefault(target, []).append(took)
            time.sleep(self._random.uniform(0, pause_s))

    def _choose(self) -> str:
        # Nodes have no HAProxy, see `Cluster`.
        choices = [*self.deployments, CONTROLLER_OF_SERVE, NODE if self.n_workers else HAPROXY]
        return self._random.choice(choices)

    def _kill(self, target: str) -> bool:
        """Kill a target; return False if it does not exist at the moment."""
        if target == EVERYTHING:
            self.cluster.restart()
            return True
        if target == NODE:
            number = self._random.randint(1, self.n_workers)
            self.cluster.kill_node(number)
            time.sleep(NODE_AWAY_S)
            self.cluster.start_node(number)
            return True
        if target == HAPROXY:
            pids = self.cluster.processes("haproxy")
        else:
            title = CONTROLLER if target == CONTROLLER_OF_SERVE else f"{REPLICA}{target}"
            pids = list(self.cluster.pids(title))
        if not pids:
            return False
        # All replicas of a deployment, or one of them.
        for pid in pids if self._random.random() < 0.5 else [self._random.choice(pids)]:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        return True

    def report(self) -> str:
        """Return a table of targets, kills and times to progress."""
        return report(self.counts, self.to_progress)


def report(counts: Mapping[str, int], to_progress: Mapping[str, Sequence[float]]) -> str:
    """Return a table of faults, their number and the times to progress."""
    lines = [f"{'fault':<20}{'times':>6}{'to progress: median':>22}{'longest':>10}"]
    for fault, count in sorted(counts.items(), key=lambda item: -item[1]):
        took = to_progress.get(fault, [])
        median, longest = (f"{f(took):.1f} s" if took else "-" for f in (statistics.median, max))
        lines.append(f"{fault:<20}{count:>6}{median:>22}{longest:>10}")
    return "\n".join(lines)
