"""A server with FCN3 on stand-in GPUs: every step takes a set time, and is recorded."""

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
"""Of the forecasts: eight, a realistic number."""


def forecast(steps: int, output_format: str) -> dict[str, object]:
    """Return the parameters of a forecast of one member with these variables."""
    return {
        "start_time": "2025-01-01T00:00:00Z",
        "n_steps": steps,
        "n_samples": 1,
        "variables": list(VARIABLES),
        "output_format": output_format,
    }


def size_on_full_grid(steps: int) -> str:
    """Return a description of the size of such a forecast."""
    megabytes = (steps + 1) * len(VARIABLES) * 721 * 1440 * 4 / 1e6
    return f"{len(VARIABLES)} variables x 721 x 1440 ({megabytes:,.0f} MB)"


class SleepingServer:
    """A server whose FCN3 sleeps.

    Parameters
    ----------
    server : Server
    journal : Path
        Written by model and data source.
    """

    def __init__(self, server: Server, journal: Path) -> None:
        self.base = server.base
        self._server = server
        self._journal = journal

    def clear_journal(self) -> None:
        """Empty the journal."""
        self._journal.write_text("")

    def busy_s(self) -> float:
        """Return the seconds that FCN3 has computed, according to Ray's metrics."""
        labels = {("model", "fcn3"), ("state", "busy")}
        return sum(
            sample.value
            for text in self._server.metrics()
            for family in text_string_to_metric_families(text)
            for sample in family.samples
            if sample.name == BUSY and sample.labels.items() >= labels
        )

    def steps(self, model: str = "FCN3") -> list[Step]:
        """Return the steps of the model, or of the data source ``IFS``."""
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
    """Serve FCN3 with one replica on each stand-in GPU.

    Parameters
    ----------
    step_s, delay_s : float
        Seconds of a step, and of fetching initial conditions.
    loader : str
        Loader of FCN3.
    azure : dict, optional
        Destination of the results, as in the settings.
    """
    with tempfile.TemporaryDirectory(prefix="e2s-bench-") as folder:
        journal = Path(folder, "journal")
        journal.touch()
        module = "benchmarks.sleeping_models"
        options = {"grid": grid, "journal": str(journal)}
        settings: dict[str, Any] = {
            "workflows": {"exposed": [FCN3.workflow]},
            "queue": {"max_size": 1000},
            "models": {
                "fcn3": {
                    "loader": loader,
                    "options": {"step_s": step_s, **options},
                    "grid": grid,
                    "replicas": gpus,
                }
            },
            "data_sources": {
                "ifs": {"loader": f"{module}:load_ifs", "options": {"delay_s": delay_s, **options}}
            },
            **({} if azure is None else {"azure": azure}),
        }
        # Sleeping replicas need no core of their own.
        stand_ins = {"RAY_OVERRIDE_RESOURCES": json.dumps({"GPU": gpus, "CPU": 2 + gpus})}
        with Server(name, settings, environment=stand_ins) as server:
            yield SleepingServer(server, journal)
