"""What else the machine does, and what memory processes take: from ``/proc``, so Linux only."""

from __future__ import annotations

import os
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path

QUIET_CORES = 0.1
"""Cores that others may use before figures are called unquiet."""


def load_average() -> float:
    """Give the load average over a minute; our own work is part of it."""
    return os.getloadavg()[0]


class OthersWatch:
    """Measures how many cores processes other than ours keep busy.

    Ours are this process and all below it. The load average cannot tell: it counts our own
    work of the minute before.
    """

    def __init__(self) -> None:
        self.restart()

    def restart(self) -> None:
        """Measure from now on."""
        self._began = time.monotonic()
        self._busy = _busy_seconds()
        self._ours = _seconds_of(tree(os.getpid()))

    def cores(self) -> float:
        """Give the mean since the start; not less than 0."""
        busy = _busy_seconds() - self._busy
        ours = _seconds_of(tree(os.getpid())) - self._ours
        return max(0.0, (busy - ours) / max(time.monotonic() - self._began, 1e-3))


def _busy_seconds() -> float:
    fields = Path("/proc/stat").read_text().splitlines()[0].split()[1:9]
    user, nice, system, _idle, _iowait, irq, softirq, steal = map(int, fields)
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")


def _seconds_of(processes: Iterable[int]) -> float:
    """Sum the CPU time of processes and of children that they have waited for."""
    ticks = 0
    for process in processes:
        try:
            ticks += sum(map(int, _stat(process)[11:15]))
        except (FileNotFoundError, ProcessLookupError):
            continue
    return ticks / os.sysconf("SC_CLK_TCK")


def _stat(process: int) -> list[str]:
    """Read the fields of ``/proc/PID/stat`` behind the name, which may hold anything."""
    return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()


def tree(root: int) -> list[int]:
    """List a process and all below it."""
    children: dict[int, list[int]] = defaultdict(list)
    for process in _processes():
        try:
            children[int(_stat(process)[1])].append(process)
        except (FileNotFoundError, ProcessLookupError):
            continue
    found = [root]
    for process in found:
        found += children[process]
    return found


def alive(process: int) -> bool:
    """Say whether a process runs; one that only waits to be reaped does not."""
    try:
        return _stat(process)[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def _processes() -> Iterator[int]:
    return (int(name) for name in os.listdir("/proc") if name.isdecimal())


def pss_by_name(processes: Iterable[int]) -> dict[str, tuple[int, int]]:
    """Measure memory, by name of process: how many there are, and their bytes.

    Proportional set size: a page that n processes share counts as a nth in each, so the sum is
    what the machine would have free without them.
    """
    sizes: dict[str, tuple[int, int]] = {}
    for process in processes:
        try:
            rollup = Path(f"/proc/{process}/smaps_rollup").read_text()
            name = _name(process)
        except (FileNotFoundError, ProcessLookupError):
            continue
        size = next(int(line.split()[1]) for line in rollup.splitlines() if line[:4] == "Pss:")
        count, total = sizes.get(name, (0, 0))
        sizes[name] = (count + 1, total + size * 1024)
    return dict(sorted(sizes.items(), key=lambda entry: -entry[1][1]))


def _name(process: int) -> str:
    """Name a process by what it runs."""
    command = Path(f"/proc/{process}/cmdline").read_bytes().split(b"\0")
    words = [word.decode(errors="replace") for word in command if word]
    if not words:
        return "(ended)"
    if words[0].startswith("ray::"):
        return words[0]
    if words[0].startswith("ray-dashboard-"):
        return "ray-dashboard modules"
    if "multiprocessing" in " ".join(words):
        return "python multiprocessing"
    if "python" in Path(words[0]).name:
        # `python -m package ARG` and `python [-u] script.py`.
        named = [words[i + 1] for i, word in enumerate(words[:-1]) if word == "-m"]
        scripts = [Path(word).name for word in words[1:] if word.endswith(".py")]
        return (named + scripts + [Path(words[0]).name])[0]
    return Path(words[0]).name
