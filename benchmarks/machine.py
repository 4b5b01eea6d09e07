"""Load of the machine and memory of processes, from ``/proc`` (Linux only)."""

from __future__ import annotations

import os
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path

QUIET_CORES = 0.1
"""Cores that others may use on a quiet machine."""


def load_average() -> float:
    """Return the load average over a minute, including our own work."""
    return os.getloadavg()[0]


class OthersWatch:
    """Measures how many cores processes other than ours keep busy.

    Ours are this process and its descendants. The load average includes our own work of the
    previous minute.
    """

    def __init__(self) -> None:
        self.restart()

    def restart(self) -> None:
        """Measure from now on."""
        self._started = time.monotonic()
        self._busy = _busy_seconds()
        self._ours = _seconds_of(tree(os.getpid()))

    def cores(self) -> float:
        """Return the mean number of busy cores since the start."""
        busy = _busy_seconds() - self._busy
        ours = _seconds_of(tree(os.getpid())) - self._ours
        return max(0.0, (busy - ours) / max(time.monotonic() - self._started, 1e-3))


def _busy_seconds() -> float:
    fields = Path("/proc/stat").read_text().splitlines()[0].split()[1:9]
    user, nice, system, _idle, _iowait, irq, softirq, steal = map(int, fields)
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")


def _seconds_of(processes: Iterable[int]) -> float:
    """Return the CPU time of processes and of children that they have reaped, seconds."""
    ticks = 0
    for process in processes:
        try:
            ticks += sum(map(int, _stat(process)[11:15]))
        except (FileNotFoundError, ProcessLookupError):
            continue
    return ticks / os.sysconf("SC_CLK_TCK")


def _stat(process: int) -> list[str]:
    """Return the fields of ``/proc/PID/stat`` after the name, which may contain anything."""
    return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()


def tree(root: int) -> list[int]:
    """Return a process and its descendants."""
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


def _processes() -> Iterator[int]:
    return (int(name) for name in os.listdir("/proc") if name.isdecimal())


def pss_by_name(processes: Iterable[int]) -> dict[str, tuple[int, int]]:
    """Return number and memory, bytes, of processes by name, largest first.

    Memory is the proportional set size: a page that n processes share counts as 1/n in each, so
    the sum is the memory that would be free without them.
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
    """Return a name for what a process runs."""
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
