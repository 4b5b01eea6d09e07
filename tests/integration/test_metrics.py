"""Metrics as Prometheus reads them from a node, after a forecast, a nowcast, and mishaps."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray

from deployments.blob_uploader.upload_ahead import IN_FLIGHT
from serve_app.logs import gather
from serve_app.ports import free_port
from tests.config.queries import RULES, alerts, dashboard, queries
from tests.deployments.runtime.test_metrics import QUERIES
from tests.emulators.azurite import Azurite
from tests.integration.mishaps import NAME as MISHAPS
from tests.integration.mishaps import Mishaps, mishaps
from tests.integration.prometheus import Prometheus, prometheus
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
MAY_BE_MISSING = {"ray_node_gpus_utilization": "Ray asks the driver of a GPU, and there is none"}
"""Metrics that have no series here, and why."""


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


@pytest.fixture(scope="module")
def gone_wrong(
    azurite: Azurite, http_port: int, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Mishaps]:
    def complete(scrape: Scrape) -> bool:
        of_all = Seen(scrape, 0, 0)
        return (
            of_all.sum("failures_total") >= 1
            and of_all.sum("stage_retries_total") >= 1
            and of_all.sum("refusals_total") >= 1
            and of_all.sum("uploaded_bytes_total") > 0
            and of_all.sum("registrations_total") >= 1
        )

    with mishaps(azurite, http_port, tmp_path_factory.mktemp(MISHAPS)) as happened:
        scraped(MISHAPS, complete)
        yield happened


@pytest.fixture(scope="module")
def prom(
    seen: Seen, gone_wrong: Mishaps, tmp_path_factory: pytest.TempPathFactory, http_port: int
) -> Iterator[Prometheus]:
    with prometheus(tmp_path_factory.mktemp("prometheus"), free_port(), RULES) as running:
        ours = f'application="{NAME}"'
        # Ray reports every 10 s; a rate needs two values.
        for each in (
            f'count(increase(ray_earth2serve_model_seconds_total{{{ours}, state="idle"}}[5m]) > 5)'
            " >= 2",
            f"rate(ray_earth2serve_conductor_beats_total{{{ours}}}[2m]) > 0",
            f"rate(ray_serve_num_http_requests_total{{{ours}}}[5m])",
            f'rate(ray_earth2serve_uploaded_bytes_total{{application="{MISHAPS}"}}[5m])',
        ):
            running.wait_for(each)
        yield running


def may_have_no_series(query: str) -> bool:
    """Say whether a query asks only for what need not have happened here."""
    return any(name in query for name in MAY_BE_MISSING)


def test_prometheus_answers_the_documented_queries(prom: Prometheus) -> None:
    for query in QUERIES:
        assert prom.query(query) or may_have_no_series(query), query
    [share, *_] = QUERIES
    fractions = {labels["model"]: value for labels, value in prom.query(share)}
    # Models of tests before this one are gone, and have no rate. Prometheus extrapolates either
    # rate by itself.
    ours = [fractions.get(model, -1.0) for model in ("fcn3", "stormscope")]
    assert all(0 <= fraction < 1.2 for fraction in ours), fractions


def test_prometheus_answers_every_panel(prom: Prometheus) -> None:
    silent = [
        (title, query)
        for title, query in queries(f"{NAME}|{MISHAPS}", "5m")
        if not prom.query(query) and not may_have_no_series(query)
    ]
    assert silent == []


def test_panels_tell_what_was_done(prom: Prometheus) -> None:
    asked = dict(queries(NAME, "5m"))
    ended = prom.query(asked["Executions ended in the last hour, by status"])
    # Counted although both ended before the first scrape.
    assert {labels["workflow"]: round(value) for labels, value in ended} == {
        FORECAST: 1,
        NOWCAST: 1,
    }
    states = prom.query(asked["Model time, by state (share)"])
    for model in ("fcn3", "stormscope"):
        shares = [value for labels, value in states if labels["model"] == model]
        assert abs(sum(shares) - 1) < 1e-6
    [(_, beats)] = prom.query(asked["Conductor heartbeats (per second)"])
    assert 0 < beats < 1.5
    healthy = prom.query(asked["Healthy replicas, by deployment"])
    assert {labels["deployment"] for labels, value in healthy if value >= 1} == {
        *("Ingress", "Conductor", "InitialConditions", "FCN3", "StormScope", "Packager")
    }


def test_panels_tell_what_went_wrong(prom: Prometheus, gone_wrong: Mishaps) -> None:
    def asked(panel: str) -> list[tuple[dict[str, str], int]]:
        return [
            (labels, round(value))
            for title, query in queries(MISHAPS, "5m")
            for labels, value in prom.query(query)
            if title.startswith(panel)
        ]

    failure = {"workflow": FORECAST, "stage": "register", "reason": "IngestionFailed"}
    assert asked("Failures in the last hour") == [(failure, 1)]
    [(retried, times)] = asked("Retried steps in the last hour")
    # Once more if the replica was not there yet that came in the place of the dead one.
    assert retried == {"stage": "register"} and times >= 1
    assert asked("Refused requests in the last hour") == [({"reason": "queue_full"}, 1)]
    of_forecasts = {"workflow": FORECAST}
    (uploaded, blobs), registered = asked("Delivered blobs and catalogue items")
    assert (uploaded, registered) == (of_forecasts, (of_forecasts, 1))
    # What is under way, ahead, as the last step is written may be sent once more.
    assert gone_wrong.blobs <= blobs <= gone_wrong.blobs + IN_FLIGHT


def test_what_was_tried_again_is_told_in_the_log_of_the_execution(gone_wrong: Mishaps) -> None:
    session = ray._private.worker._global_node.get_session_dir_path()
    logs = Path(session) / "logs"
    told = gather(gone_wrong.retried, [logs])
    again = [entry for entry in told if "is retried" in str(entry)]
    assert again
    for entry in again:
        assert entry.level == "WARNING" and len(entry.lines) == 1
        assert f"{gone_wrong.retried} is retried at register, attempt" in str(entry)
    assert not any("is retried" in str(e) for e in gather(gone_wrong.failed, [logs]))


def test_the_variable_of_the_dashboard_lists_the_application(prom: Prometheus) -> None:
    [variable] = [v for v in dashboard()["templating"]["list"] if v["name"] == "application"]
    metric, label = re.fullmatch(r"label_values\((\w+), (\w+)\)", variable["query"]).groups()
    assert NAME in prom.label_values(metric, label)


def about_us(rule: dict[str, Any]) -> list[Any]:
    """Give alerts of our application, or of none; other tests may have left theirs."""
    return [a for a in rule["alerts"] if a["labels"].get("application") in (NAME, None)]


def test_prometheus_evaluates_every_alert_and_none_fires(prom: Prometheus) -> None:
    # Before there were two values of each, ConductorDown was about to fire.
    evaluated = prom.rules(lambda rules: not any(about_us(rule) for rule in rules))
    assert {rule["name"] for rule in evaluated} == {rule["alert"] for rule in alerts()}
    assert {rule["health"] for rule in evaluated} == {"ok"}
    # Each part of an expression, up to what it is compared with, is answered as well.
    for rule in alerts():
        for name in set(re.findall(r"\bray_\w+", rule["expr"])):
            assert prom.query(name) or may_have_no_series(name), (rule["alert"], name)


def test_an_alert_fires_where_executions_fail(prom: Prometheus) -> None:
    def of_mishaps(rules: list[dict[str, Any]]) -> list[dict[str, str]]:
        return [
            alert["labels"]
            for rule in rules
            for alert in rule["alerts"]
            if rule["name"] == "ExecutionsFailing" and alert["labels"].get("application") == MISHAPS
        ]

    [labels] = of_mishaps(prom.rules(lambda rules: bool(of_mishaps(rules))))
    assert (labels["stage"], labels["reason"]) == ("register", "IngestionFailed")


def test_serve_measures_requests(seen: Seen) -> None:
    assert "ray_serve_num_http_requests_total" in seen.scrape.names
    assert "ray_serve_http_request_latency_ms_count" in seen.scrape.names
