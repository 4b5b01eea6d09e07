"""Figures, printed as a table and saved in a file."""

from __future__ import annotations

import json
import os
import platform
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks import machine

RESULTS = Path(__file__).parent / "results" / "latest.json"


@dataclass(frozen=True)
class Target:
    """The bound of a figure on a quiet machine with two cores."""

    bound: float
    at_least: bool = False

    def met(self, value: float) -> bool:
        """Return whether a value meets the target."""
        return value >= self.bound if self.at_least else value <= self.bound

    def __str__(self) -> str:
        return f"{'≥' if self.at_least else '≤'} {short(self.bound)}"


@dataclass(frozen=True)
class Figure:
    """One measurement."""

    group: str
    name: str
    value: float
    unit: str
    target: Target | None
    note: str
    load: float
    """Load average over the last minute."""
    others: float | None
    """Cores that other processes kept busy meanwhile; None if ours cannot be distinguished."""
    runs: dict[str, list[float]] = field(default_factory=dict)
    """The runs of each side of a ratio, in order."""


@dataclass
class Report:
    """Collects figures and prints each when it is added.

    Parameters
    ----------
    owns_server : bool
        False if we have not started the server: its work cannot be distinguished from others'.
    about : dict, optional
        Further entries of the file.
    """

    owns_server: bool
    about: dict[str, Any] = field(default_factory=dict)
    figures: list[Figure] = field(default_factory=list)
    _watch: machine.OthersWatch = field(default_factory=machine.OthersWatch)
    _group: str = ""

    def start(self, group: str) -> None:
        """Start a group of figures."""
        self._group = group
        print(f"\n{group}", flush=True)
        self.restart_watch()

    def restart_watch(self) -> None:
        """Measure the load of other processes from now on, for the next figures."""
        self._watch.restart()

    def add(
        self,
        name: str,
        value: float,
        unit: str,
        *,
        target: Target | None = None,
        note: str = "",
        runs: dict[str, list[float]] | None = None,
    ) -> None:
        """Add a figure that was measured since the last `restart_watch`."""
        others = self._watch.cores() if self.owns_server else None
        load = machine.load_average()
        figure = Figure(self._group, name, value, unit, target, note, load, others, runs or {})
        self.figures.append(figure)
        print(_line(figure), flush=True)

    def close(self, path: Path = RESULTS) -> None:
        """Print whether the machine was quiet, and save the figures."""
        met = [f.target.met(f.value) for f in self.figures if f.target is not None]
        if met:
            print(f"\ntargets met: {sum(met)} of {len(met)}")
        busy = [f.others for f in self.figures if f.others and f.others > machine.QUIET_CORES]
        if busy:
            print(
                f"NOT A QUIET MACHINE: during {len(busy)} of {len(self.figures)} figures other "
                f"processes kept {median(busy):.1f} cores busy (median), up to {max(busy):.1f} of "
                f"{os.cpu_count()}; ratios are more reliable than times"
            )
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(self._document(), indent=1), encoding="utf-8")
        print(f"written to {path}")

    def _document(self) -> dict[str, Any]:
        return {
            "taken_at": datetime.now(UTC).isoformat(timespec="seconds"),
            "machine": {
                "cores": os.cpu_count(),
                "processor": _processor(),
                "python": platform.python_version(),
            },
            **self.about,
            "figures": [_entry(figure) for figure in self.figures],
        }


def ratio_of_neighbours(these: list[float], those: list[float]) -> tuple[float, str]:
    """Return the median ratio of neighbouring runs, which saw the same load, and the spread."""
    ratios = [this / that for this, that in zip(these, those, strict=True)]
    return median(ratios), f"{min(ratios):.2f} to {max(ratios):.2f}"


def _entry(figure: Figure) -> dict[str, Any]:
    met = figure.target.met(figure.value) if figure.target else None
    entry = asdict(figure) | {"met": met}
    if not figure.runs:
        del entry["runs"]
    return entry


def _line(figure: Figure) -> str:
    target = ""
    if figure.target is not None:
        met = "met" if figure.target.met(figure.value) else "MISSED"
        target = f"target {figure.target}: {met}"
    others = "" if figure.others is None else f" others {figure.others:.1f}"
    warning = " !" if figure.others and figure.others > machine.QUIET_CORES else ""
    return (
        f"  {figure.name:<46} {short(figure.value):>8} {figure.unit:<5} {target:<22} "
        f"load {figure.load:<5.1f}{others}{warning}  {figure.note}"
    ).rstrip()


def short(value: float) -> str:
    """Return a value with three significant digits, or all digits before the point."""
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}"


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()
