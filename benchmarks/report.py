"""Figures, the table that shows them and the file that keeps them."""

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
class Aim:
    """What a figure should be on a quiet machine with two cores."""

    bound: float
    at_least: bool = False

    def met(self, value: float) -> bool:
        """Say whether a value meets it."""
        return value >= self.bound if self.at_least else value <= self.bound

    def __str__(self) -> str:
        return f"{'≥' if self.at_least else '≤'} {short(self.bound)}"


@dataclass(frozen=True)
class Figure:
    """One thing that was measured."""

    group: str
    name: str
    value: float
    unit: str
    aim: Aim | None
    note: str
    load: float
    """Load average over the minute before the figure was taken."""
    others: float | None
    """Cores that other processes kept busy meanwhile; None if ours cannot be told from them."""
    runs: dict[str, list[float]] = field(default_factory=dict)
    """What a ratio is made of: the runs of each side, in order."""


@dataclass
class Report:
    """Collects figures, printing each as it comes.

    Parameters
    ----------
    owns_server : bool
        False if the server is somebody else's, so that its work cannot be told from that of others.
    about : dict, optional
        What else the file should say.
    """

    owns_server: bool
    about: dict[str, Any] = field(default_factory=dict)
    figures: list[Figure] = field(default_factory=list)
    _watch: machine.OthersWatch = field(default_factory=machine.OthersWatch)
    _group: str = ""

    def begin(self, group: str) -> None:
        """Begin a group of figures."""
        self._group = group
        print(f"\n{group}", flush=True)
        self.measuring()

    def measuring(self) -> None:
        """Note that what the next figures tell is measured from now on."""
        self._watch.restart()

    def add(
        self,
        name: str,
        value: float,
        unit: str,
        *,
        aim: Aim | None = None,
        note: str = "",
        runs: dict[str, list[float]] | None = None,
    ) -> None:
        """Add a figure, measured since the last call of `measuring`."""
        others = self._watch.cores() if self.owns_server else None
        load = machine.load_average()
        figure = Figure(self._group, name, value, unit, aim, note, load, others, runs or {})
        self.figures.append(figure)
        print(_line(figure), flush=True)

    def close(self, path: Path = RESULTS) -> None:
        """Say how far the machine was quiet and keep the figures."""
        met = [f.aim.met(f.value) for f in self.figures if f.aim is not None]
        if met:
            print(f"\naims met: {sum(met)} of {len(met)}")
        unquiet = [f.others for f in self.figures if f.others and f.others > machine.QUIET_CORES]
        if unquiet:
            print(
                f"NOT A QUIET MACHINE: during {len(unquiet)} of {len(self.figures)} figures other "
                f"processes kept {median(unquiet):.1f} cores busy (median), up to "
                f"{max(unquiet):.1f} of {os.cpu_count()}; ratios hold better than times"
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
    """Give the median ratio of neighbours, which saw the same machine, and the spread."""
    ratios = [this / that for this, that in zip(these, those, strict=True)]
    return median(ratios), f"{min(ratios):.2f} to {max(ratios):.2f}"


def _entry(figure: Figure) -> dict[str, Any]:
    entry = asdict(figure) | {"met": figure.aim.met(figure.value) if figure.aim else None}
    if not figure.runs:
        del entry["runs"]
    return entry


def _line(figure: Figure) -> str:
    aim = ""
    if figure.aim is not None:
        aim = f"aim {figure.aim}: {'met' if figure.aim.met(figure.value) else 'MISSED'}"
    others = "" if figure.others is None else f" others {figure.others:.1f}"
    warning = " !" if figure.others and figure.others > machine.QUIET_CORES else ""
    return (
        f"  {figure.name:<46} {short(figure.value):>8} {figure.unit:<5} {aim:<20} "
        f"load {figure.load:<5.1f}{others}{warning}  {figure.note}"
    ).rstrip()


def short(value: float) -> str:
    """Write a value with three digits, or as many as it has before the point."""
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}"


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()
