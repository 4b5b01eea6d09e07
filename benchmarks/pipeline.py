"""The overlap of two models on two stand-in GPUs, one conditioning the other."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import uvloop

from benchmarks.client import Client
from benchmarks.report import Report, Target
from benchmarks.server import Server
from benchmarks.timeline import makespan, read_journal, timeline
from workflows.stormscope import StormScopeWorkflow

GRID = {"n_lat": 19, "n_lon": 36}
REGION = {"n_y": 16, "n_x": 24, "spacing_m": 200_000.0, "first_y_m": -1.5e6, "first_x_m": -2.3e6}
MEMBERS, STEPS, STEP_S = 8, 6, 0.25
TARGET = Target(1.2)


def measure_pipeline(report: Report, *, quick: bool) -> None:
    """Measure members of FCN3 that each condition one of StormScope, and print a timeline.

    Every hour of either model takes `STEP_S`, so that both have the same work.
    """
    members = 3 if quick else MEMBERS
    report.start(
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
        steps = read_journal(journal)
    print(timeline(steps, STEPS), flush=True)
    computes = {
        model: sum(s.ended - s.started for s in steps if s.model == model)
        for model in ("FCN3", "StormScope")
    }
    total = makespan(steps)
    for model, seconds in computes.items():
        report.add(f"{model} computes", seconds, "s")
    report.add("first step to last", total, "s")
    report.add("the same / one model's total", total / max(computes.values()), "x", target=TARGET)
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
