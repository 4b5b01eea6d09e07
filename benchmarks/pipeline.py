"""How far two models on two stand-in GPUs, one conditioning the other, work at once."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import uvloop

from benchmarks.client import Client
from benchmarks.report import Aim, Report
from benchmarks.server import Server
from workflows.stormscope import StormScopeWorkflow

GRID = {"n_lat": 19, "n_lon": 36}
REGION = {"n_y": 16, "n_x": 24, "spacing_m": 200_000.0, "first_y_m": -1.5e6, "first_x_m": -2.3e6}
MEMBERS, STEPS, STEP_S = 8, 6, 0.25
AIM = Aim(1.2)
CELL_S = 0.25


@dataclass(frozen=True)
class Step:
    """One step of a model."""

    model: str
    process: int
    began: float
    ended: float


def measure_pipeline(report: Report, *, quick: bool) -> None:
    """Have as many members of FCN3 each condition one of StormScope, and print a timeline.

    Every hour of either model takes `STEP_S`, so both have the same work to do.
    """
    members = 3 if quick else MEMBERS
    report.begin(
        f"{members} members of FCN3 each condition one of StormScope, {STEPS} hours of {STEP_S:g} "
        "s, two stand-in GPUs"
    )
    with tempfile.TemporaryDirectory(prefix="e2s-bench-") as folder:
        journal = Path(folder, "journal")
        slow = {"step_s": STEP_S, "journal": str(journal)}
        settings = {
            "workflows": {"exposed": [StormScopeWorkflow.name]},
            "models": {
                "fcn3": {"loader": "synthetic", "grid": GRID, "num_gpus": 1.0},
                "interpolation": {
                    "loader": "benchmarks.sleeping_models:load_interpolation",
                    "options": slow,
                },
                "stormscope": {
                    "loader": "benchmarks.sleeping_models:load_stormscope",
                    "options": {**slow, "grid": REGION},
                    "grid": REGION,
                },
            },
        }
        gpus = {"RAY_OVERRIDE_RESOURCES": json.dumps({"GPU": 2})}
        with Server("two models", settings, environment=gpus) as server:
            total_s = uvloop.run(_run(server.base, members))
        steps = _read(journal)
    print(timeline(steps), flush=True)
    busy = {
        model: sum(s.ended - s.began for s in steps if s.model == model)
        for model in ("FCN3", "StormScope")
    }
    makespan = max(s.ended for s in steps) - min(s.began for s in steps)
    for model, seconds in busy.items():
        report.add(f"{model} computes", seconds, "s")
    report.add("first step to last", makespan, "s")
    report.add("the same / one model's total", makespan / max(busy.values()), "x", aim=AIM)
    report.add("submit to completed", total_s, "s")


async def _run(base: str, members: int) -> float:
    parameters = {
        "n_steps": STEPS,
        "n_samples_fcn3": members,
        "n_samples_stormscope": members,
        "output_format": "zarr",
    }
    async with Client.connected(base, f"/v1/infer/{StormScopeWorkflow.name}") as client:
        return (await client.run_job(parameters)).seconds


def _read(journal: Path) -> list[Step]:
    lines = [line.split() for line in journal.read_text().splitlines()]
    return [Step(model, int(pid), float(b), float(e)) for model, pid, b, e in lines]


def timeline(steps: Sequence[Step]) -> str:
    """Draw when each replica computed which of its members, a character for `CELL_S`."""
    start, end = min(s.began for s in steps), max(s.ended for s in steps)
    rows = []
    for replica in dict.fromkeys((s.model, s.process) for s in steps):
        cells = [" "] * (int((end - start) / CELL_S) + 1)
        own = [s for s in steps if (s.model, s.process) == replica]
        for number, step in enumerate(own):
            first, last = ((at - start) / CELL_S for at in (step.began, step.ended))
            for cell in range(round(first), max(round(last), round(first) + 1)):
                cells[min(cell, len(cells) - 1)] = str(number // STEPS % 10)
        rows.append(f"  {replica[0]:<11}|{''.join(cells)}|")
    return "\n".join([*rows, f"  a character is {CELL_S:g} s, its digit counts members"])
