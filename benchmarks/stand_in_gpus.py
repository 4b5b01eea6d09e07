"""A server with FCN3 on stand-in GPUs: every step takes a set time, and is noted."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

from benchmarks.server import Server
from benchmarks.timeline import Step, read_journal
from benchmarks.workloads import FCN3

SMALL_GRID = {"n_lat": 8, "n_lon": 16}
BUSY = "ray_earth2serve_model_seconds_total"
FULL_GRID = {"n_lat": 721, "n_lon": 1440}
VARIABLES = ("t2m", "u10m", "v10m", "msl", "tcwv", "z500", "t850", "u850")
"""Eight, as many as a forecast may well keep."""


def forecast(steps: int, output_format: str) -> dict[str, object]:
    """Give the parameters of a forecast of one member with these variables."""
    return {
        "start_time": "2025-01-01T00:00:00Z",
        "n_steps": steps,
        "n_samples": 1,
        "variables": list(VARIABLES),
        "output_format": output_format,
    }


def size_on_full_grid(steps: int) -> str:
    """Say how much such a forecast writes."""
    megabytes = (steps + 1) * len(VARIABLES) * 721 * 1440 * 4 / 1e6
    return f"{len(VARIABLES)} variables x 721 x 1440 ({megabytes:,.0f} MB)"


class SleepingServer:
    """A server whose FCN3 sleeps.

    Parameters
    ----------
    server : Server
    journal : Path
        What model and data source write down.
    """

    def __init__(self, server: Server, journal: Path) -> None:
        self.base = server.base
        self._server = server
        self._journal = journal

    def forget(self) -> None:
        """Begin an empty journal."""
        self._journal.write_text("")

    def busy_s(self) -> float:
        """Read in Ray's metrics how many seconds FCN3 has computed."""
        wanted = {("model", "fcn3"), ("state", "busy")}
        return sum(
            sample.value
            for text in self._server.metrics()
            for family in text_string_to_metric_families(text)
            for sample in family.samples
            if sample.name == BUSY and sample.labels.items() >= wanted
        )

    def steps(self, model: str = "FCN3") -> list[Step]:
        """Read what the model, or the data source ``IFS``, has done."""
        return [step for step in read_journal(self._journal) if step.model == model]


@contextmanager
def sleeping_server(
    name: str,
    *,
    step_s: float,
    gpus: int = 1,
    grid: dict[str, int] = SMALL_GRID,
    delay_s: float = 0.0,
    loader: str = "benchmarks.sleeping_models:load_fcn3",
    azure: dict[str, Any] | None = None,
) -> Iterator[SleepingServer]:
    """Serve FCN3 with a replica on each of some stand-in GPUs.

    Parameters
    ----------
    step_s, delay_s : float
        What a step takes, and initial conditions.
    loader : str
        Gives FCN3.
    azure : dict, optional
        Where results are delivered to, as in the settings.
    """
    with tempfile.TemporaryDirectory(prefix="e2s-bench-") as folder:
        journal = Path(folder, "journal")
        journal.touch()
        here = "benchmarks.sleeping_models"
        noted = {"grid": grid, "journal": str(journal)}
        settings: dict[str, Any] = {
            "workflows": {"exposed": [FCN3.workflow]},
            "queue": {"max_size": 1000},
            "models": {
                "fcn3": {
                    "loader": loader,
                    "options": {"step_s": step_s, **noted},
                    "grid": grid,
                    "replicas": gpus,
                }
            },
            "data_sources": {
                "ifs": {"loader": f"{here}:load_ifs", "options": {"delay_s": delay_s, **noted}}
            },
            **({} if azure is None else {"azure": azure}),
        }
        # Replicas that sleep need no core of their own.
        stand_ins = {"RAY_OVERRIDE_RESOURCES": json.dumps({"GPU": gpus, "CPU": 2 + gpus})}
        with Server(name, settings, environment=stand_ins) as server:
            yield SleepingServer(server, journal)
