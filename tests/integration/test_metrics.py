"""Metrics as Prometheus reads them from a node, after a forecast and a nowcast."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.deployments.test_metrics import QUERIES
from tests.integration.prometheus import prometheus
from tests.integration.scraping import Scrape, scraped
from tests.integration.serving import WORKFLOW as FORECAST
from tests.integration.serving import served
from workflows.stormscope import StormScopeWorkflow

pytestmark = pytest.mark.ray

NAME = "metrics"
NOWCAST = StormScopeWorkflow.name
GRID = {"n_lat": 19, "n_lon": 36}
REGION = {"n_y": 16, "n_x": 24, "spacing_m": 2e5, "first_y_m": -1.5e6, "first_x_m": -2.3e6}
STEP_S, FIELD_S = 0.1, 0.3
"""How long StormScope takes for a step, and FCN3 for a field that conditions one."""
STEPS = 5
TIMES = STEPS + 1
SEEDS = [3, 4]
COMPLETED = {"status": "completed"}


class Seen:
    """What was done, and what the endpoint says of it."""

    def __init__(self, scrape: Scrape, took_s: float, downloaded: int) -> None:
        self.scrape = scrape
        self.took_s = took_s
        self.downloaded = downloaded

    def sum(self, name: str, **labels: str) -> float:
        return self.scrape.sum(f"ray_earth2serve_{name}", **labels)


@pytest.fixture(scope="module")
def seen(http_port: int, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Seen]:
    folder = tmp_path_factory.mktemp(NAME)
    slow: dict[str, Any] = {"step_s": STEP_S, "journal": str(folder / "journal")}
    sleeping = "benchmarks.sleeping_models"
    args = {
        "data_dir": str(folder / "var"),
        "workflows": {"exposed": [FORECAST, NOWCAST]},
        "models": {
            "fcn3": {"grid": GRID},
            "interpolation": {
                "loader": f"{sleeping}:load_interpolation",
                "options": {**slow, "step_s": FIELD_S},
            },
            "stormscope": {
                "loader": f"{sleeping}:load_stormscope",
                "options": {**slow, "grid": REGION},
                "num_gpus": 0.0,
                "grid": REGION,
            },
        },
    }
    began = time.monotonic()
    with served(args, NAME, http_port) as server:
        forecast = server.submit(
            n_steps=STEPS, seeds=SEEDS, variables=["t2m", "msl"], output_format="zarr"
        )
        nowcasts = server.calling(NOWCAST)
        nowcast = nowcasts.submit(
            start_time_fcn3="2025-06-01T12:00:00Z",
            start_time_stormscope="2025-06-01T14:00:00Z",
            n_steps=STEPS,
            seeds_fcn3=[1],
            seeds_stormscope=SEEDS,
            variables=["abi13c"],
            output_format="netcdf4",
        )
        assert server.finished(forecast)["status"] == "completed"
        assert nowcasts.finished(nowcast)["status"] == "completed"
        path = f"/v1/infer/{NOWCAST}/{nowcast}/results/results.nc"
        whole = server.http.get(path)
        part = server.http.get(path, headers={"Range": "bytes=0-99"})
        assert (whole.status_code, part.status_code) == (200, 206)
        took_s = time.monotonic() - began

        def complete(scrape: Scrape) -> bool:
            of_all = Seen(scrape, 0, 0)
            return (
                of_all.sum("executions_ended_total") >= 2
                and of_all.sum("time_steps_written_total") >= 2 * len(SEEDS) * TIMES
                and of_all.sum("model_step_seconds_count", model="stormscope") >= 2 * TIMES
                and of_all.sum("model_step_seconds_count", model="fcn3") >= 2 * TIMES + STEPS
                and of_all.sum("downloaded_bytes_total") >= len(whole.content) + 100
            )

        yield Seen(scraped(NAME, complete), took_s, len(whole.content) + 100)


def test_both_executions_completed(seen: Seen) -> None:
    for workflow in (FORECAST, NOWCAST):
        assert seen.sum("executions_ended_total", workflow=workflow, status="completed") == 1
        assert seen.sum("execution_seconds_count", workflow=workflow) == 1
        assert seen.sum("queue_wait_seconds_count", workflow=workflow) == 1
        for stage in ("initial_conditions", "inference", "package"):
            assert seen.sum("stage_seconds_count", workflow=workflow, stage=stage) == 1
    assert seen.sum("executions_ended_total") == 2
    assert seen.sum("failures_total") == 0
    assert seen.sum("stage_retries_total") == 0


def test_every_step_is_counted_once(seen: Seen) -> None:
    steps = len(SEEDS) * TIMES
    assert seen.sum("time_steps_written_total", workflow=FORECAST) == steps
    assert seen.sum("time_steps_written_total", workflow=NOWCAST) == steps
    count = "model_step_seconds_count"
    assert seen.sum(count, model="fcn3", work="forecast") == steps
    assert seen.sum(count, model="fcn3", work="conditioning") == STEPS
    assert seen.sum(count, model="stormscope", work="forecast") == steps


def test_bytes_are_those_of_the_fields_and_files(seen: Seen) -> None:
    fields = len(SEEDS) * TIMES * 4 * (2 * GRID["n_lat"] * GRID["n_lon"] + 16 * 24)
    assert seen.sum("packager_written_bytes_total", kind="step") == fields
    conditioning = STEPS * 4 * (GRID["n_lat"] - 1) * GRID["n_lon"]
    assert seen.sum("packager_written_bytes_total", kind="conditioning") == conditioning
    # The NetCDF file was downloaded, and the maps lie beside it.
    assert seen.sum("packager_written_bytes_total", kind="file") > seen.downloaded
    assert seen.sum("downloaded_bytes_total", workflow=NOWCAST) == seen.downloaded


def test_a_model_is_busy_while_it_computes_and_waits_for_fields_otherwise(seen: Seen) -> None:
    seconds = "model_seconds_total"
    computed = len(SEEDS) * STEPS * STEP_S
    busy = seen.sum(seconds, model="stormscope", state="busy", device="cpu")
    assert computed <= busy
    # The first member waits for fields: they take longer than its own steps.
    assert seen.sum(seconds, model="stormscope", state="conditioning") > 0
    assert seen.sum(seconds, model="stormscope", state="idle") > 0
    assert seen.sum(seconds, model="fcn3", state="busy") >= STEPS * FIELD_S
    for model in ("fcn3", "stormscope"):
        assert seen.sum(seconds, model=model, state="loading") > 0
        # States exclude each other: together they are the replica's time.
        assert seen.sum(seconds, model=model) < seen.took_s + 40


def test_nothing_waits_or_runs_any_more(seen: Seen) -> None:
    assert {"ray_earth2serve_queue_depth", "ray_earth2serve_queue_oldest_wait_seconds"} <= (
        seen.scrape.names
    )
    assert seen.sum("queue_depth") == seen.sum("queue_oldest_wait_seconds") == 0


def test_prometheus_answers_the_documented_queries(
    seen: Seen, free_port: int, tmp_path: Path
) -> None:
    # Whether anything failed, was tried again or was uploaded, tests before this one decide.
    perhaps = ("failures", "stage_retries", "uploaded_bytes")
    with prometheus(tmp_path, free_port) as prom:
        # Ray reports every 10 s; a rate needs two values.
        prom.wait_for('increase(ray_earth2serve_model_seconds_total{state="idle"}[5m]) > 5')
        for query in QUERIES:
            found = prom.query(query)
            assert found or any(f"ray_earth2serve_{name}_total" in query for name in perhaps), query
        [share, *_] = QUERIES
        fractions = {labels["model"]: value for labels, value in prom.query(share)}
        assert set(fractions) >= {"fcn3", "stormscope"}
        # Prometheus extrapolates either rate by itself.
        assert all(0 <= fraction < 1.2 for fraction in fractions.values()), fractions


def test_serve_measures_requests(seen: Seen) -> None:
    assert "ray_serve_num_http_requests_total" in seen.scrape.names
    assert "ray_serve_http_request_latency_ms_count" in seen.scrape.names
