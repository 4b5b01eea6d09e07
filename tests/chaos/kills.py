"""What is killed, and how long it takes until something is computed again."""

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
PROGRESS_LIMIT_S = 120.0
NODE_AWAY_S = 3.0


@dataclass
class Watch:
    """Sees whether anything goes on.

    Parameters
    ----------
    journal : Path
        Grows with everything that is computed.
    ended : callable
        Gives how many executions have ended.
    """

    journal: Path
    ended: Callable[[], int]

    def until_progress(self, what: str) -> float:
        """Wait until something is computed or ends; gives the seconds.

        Raises
        ------
        TimeoutError
            If nothing does for long after `what`.
        """
        began_at, before = time.monotonic(), self._state()
        while self._state() == before:
            if time.monotonic() - began_at > PROGRESS_LIMIT_S:
                raise TimeoutError(f"no progress for {PROGRESS_LIMIT_S:g} s after {what}")
            time.sleep(0.02)
        return time.monotonic() - began_at

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
    look : callable
        Called before each kill.
    deployments : sequence of str
    n_workers : int
        Nodes that may be lost.
    seed : int
    """

    cluster: Cluster
    watch: Watch
    look: Callable[[], None]
    deployments: Sequence[str]
    n_workers: int
    seed: int
    counts: Counter[str] = field(default_factory=Counter)
    to_progress: dict[str, list[float]] = field(default_factory=dict)
    """Seconds from a kill until a step was computed or an execution ended, by what was killed."""

    def __post_init__(self) -> None:
        self._random = random.Random(self.seed)  # noqa: S311

    def run(self, n: int, pause_s: float, *, restarts: int) -> None:
        """Kill as often as asked for, and in between lose everything a few times.

        Parameters
        ----------
        n : int
            Kills, those of the whole cluster included.
        pause_s : float
            Longest pause between progress and the next kill. One kill in four comes without
            waiting for progress, while the one before is still being dealt with.
        restarts : int
            How often all is lost at once.
        """
        everything = {n * (i + 1) // (restarts + 1) for i in range(restarts)}
        number = 0
        while number < n:
            self.look()
            what = EVERYTHING if number in everything else self._choose()
            if not self._kill(what):
                time.sleep(0.5)
                continue
            number += 1
            self.counts[what] += 1
            if number < n and self._random.random() < 0.25:
                time.sleep(self._random.uniform(0, 1))
                continue
            took = self.watch.until_progress(f"a kill of {what}")
            self.to_progress.setdefault(what, []).append(took)
            time.sleep(self._random.uniform(0, pause_s))

    def _choose(self) -> str:
        choices = [*self.deployments, CONTROLLER_OF_SERVE, *([NODE] if self.n_workers else [])]
        return self._random.choice(choices)

    def _kill(self, what: str) -> bool:
        """Kill it; False if there is none at the moment."""
        if what == EVERYTHING:
            self.cluster.restart()
            return True
        if what == NODE:
            number = self._random.randint(1, self.n_workers)
            self.cluster.kill_node(number)
            time.sleep(NODE_AWAY_S)
            self.cluster.start_node(number)
            return True
        title = CONTROLLER if what == CONTROLLER_OF_SERVE else f"{REPLICA}{what}"
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
        """Tell how often what was killed, and how long it took to go on."""
        return report(self.counts, self.to_progress)


def report(counts: Mapping[str, int], to_progress: Mapping[str, Sequence[float]]) -> str:
    """Tell how often what happened, and how many seconds it took to go on."""
    lines = [f"{'what':<20}{'times':>6}{'to progress: median':>22}{'longest':>10}"]
    for what, count in sorted(counts.items(), key=lambda item: -item[1]):
        took = to_progress.get(what, [])
        median, longest = (f"{f(took):.1f} s" if took else "-" for f in (statistics.median, max))
        lines.append(f"{what:<20}{count:>6}{median:>22}{longest:>10}")
    return "\n".join(lines)
