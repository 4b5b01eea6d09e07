"""Metrics at the endpoints of nodes, and in Prometheus, after executions succeeded and failed."""

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
from tests.integration.failures import NAME as FAILURES
from tests.integration.failures import Failures, failures
from tests.integration.prometheus import Prometheus, prometheus
from tests.integration.scrape import Scrape, scraped
from tests.integration.serving import WORKFLOW as FORECAST
from tests.integration.serving import served
from workflows.stormscope import StormScopeWorkflow

pytestmark = [pytest.mark.ray, pytest.mark.slow]

NAME = "metrics"
NOWCAST = StormScopeWorkflow.name
GRID = {"n_lat": 19, "n_lon": 36}
REGION = {"n_y": 16, "n_x": 24, "spacing_m": 2e5, "first_y_m": -1.5e6, "first_x_m": -2.3e6}
STEP_S, FIELD_S = 0.1, 0.3
"""Duration of a step of StormScope, and of a conditioning field of FCN3."""
STEPS = 5
TIMES = STEPS + 1
SEEDS = [3, 4]
DEPLOYMENTS = {"Ingress", "Conductor", "InitialConditions", "FCN3", "StormScope", "Packager"}
WITHOUT_SERIES = {"ray_node_gpus_utilization": "Ray reads it from a GPU's driver"}
"""Metrics that have no series on this machine, and why."""


class Measured:
    """The metrics of a finished forecast and nowcast.

    Parameters
    ----------
    scrape : Scrape
    lifetime_s : float
        Seconds from the start of the application to the end of both.
    downloaded : int
        Bytes of results that were downloaded.
    """

    def __init__(self, scrape: Scrape, lifetime_s: float, downloaded: int) -> None:
        self.scrape = scrape
        self.lifetime_s = lifetime_s
        self.downloaded = downloaded

    def sum(self, name: str, **labels: str) -> float:
        return own_sum(self.scrape, name, **labels)


def own_sum(scrape: Scrape, name: str, **labels: str) -> float:
    return scrape.sum(f"ray_earth2serve_{name}", **labels)


@pytest.fixture(scope="module")
def measured(http_port: int, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Measured]:
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
    started = time.monotonic()
    with served(args, NAME, http_port) as server:
        forecast = server.submit(
            n_steps=STEPS, seeds=SEEDS, variables=["t2m", "msl"], output_format="zarr"
        )
        nowcasts = server.client_of(NOWCAST)
        nowcast = nowcasts.submit(
            start_time_fcn3="2025-06-01T12:00:00Z",
            start_time_stormscope="2025-06-01T14:00:00Z",
            n_steps=STEPS,
            seeds_fcn3=[1],
            seeds_stormscope=SEEDS,
            variables=["abi13c"],
            output_format="netcdf4",
        )
        server.completed(forecast)
        nowcasts.completed(nowcast)
        path = f"/v1/infer/{NOWCAST}/{nowcast}/results/results.nc"
        whole = server.http.get(path)
        part = server.http.get(path, headers={"Range": "bytes=0-99"})
        assert (whole.status_code, part.status_code) == (200, 206)
        lifetime_s = time.monotonic() - started
        downloaded = len(whole.content) + 100

        def is_complete(scrape: Scrape) -> bool:
            fcn3, stormscope = (
                own_sum(scrape, "model_step_seconds_count", model=model)
                for model in ("fcn3", "stormscope")
            )
            return (
                own_sum(scrape, "executions_ended_total") >= 2
                and own_sum(scrape, "time_steps_written_total") >= 2 * len(SEEDS) * TIMES
                and stormscope >= 2 * TIMES
                and fcn3 >= 2 * TIMES + STEPS
                and own_sum(scrape, "downloaded_bytes_total") >= downloaded
            )

        yield Measured(scraped(NAME, is_complete), lifetime_s, downloaded)


def test_both_executions_completed(measured: Measured) -> None:
    for workflow in (FORECAST, NOWCAST):
        assert measured.sum("executions_ended_total", workflow=workflow, status="completed") == 1
        assert measured.sum("execution_seconds_count", workflow=workflow) == 1
        assert measured.sum("queue_wait_seconds_count", workflow=workflow) == 1
        for stage in ("initial_conditions", "inference", "package"):
            assert measured.sum("stage_seconds_count", workflow=workflow, stage=stage) == 1
    assert measured.sum("executions_ended_total") == 2
    assert measured.sum("failures_total") == 0
    assert measured.sum("stage_retries_total") == 0


def test_every_step_is_counted_once(measured: Measured) -> None:
    steps = len(SEEDS) * TIMES
    assert measured.sum("time_steps_written_total", workflow=FORECAST) == steps
    assert measured.sum("time_steps_written_total", workflow=NOWCAST) == steps
    count = "model_step_seconds_count"
    assert measured.sum(count, model="fcn3", work="forecast") == steps
    assert measured.sum(count, model="fcn3", work="conditioning") == STEPS
    assert measured.sum(count, model="stormscope", work="forecast") == steps


def test_bytes_are_those_of_the_fields_and_files(measured: Measured) -> None:
    fields = len(SEEDS) * TIMES * 4 * (2 * GRID["n_lat"] * GRID["n_lon"] + 16 * 24)
    assert measured.sum("packager_written_bytes_total", kind="step") == fields
    conditioning = STEPS * 4 * (GRID["n_lat"] - 1) * GRID["n_lon"]
    assert measured.sum("packager_written_bytes_total", kind="conditioning") == conditioning
    # The NetCDF file, which was downloaded, and the maps.
    assert measured.sum("packager_written_bytes_total", kind="file") > measured.downloaded
    assert measured.sum("downloaded_bytes_total", workflow=NOWCAST) == measured.downloaded


def test_model_time_is_divided_among_states(measured: Measured) -> None:
    seconds = "model_seconds_total"
    computed = len(SEEDS) * STEPS * STEP_S
    busy = measured.sum(seconds, model="stormscope", state="busy", device="cpu")
    assert computed <= busy
    # The first member waits for fields, which take longer than its own steps.
    assert measured.sum(seconds, model="stormscope", state="conditioning") > 0
    assert measured.sum(seconds, model="stormscope", state="idle") > 0
    assert measured.sum(seconds, model="fcn3", state="busy") >= STEPS * FIELD_S
    for model in ("fcn3", "stormscope"):
        assert measured.sum(seconds, model=model, state="loading") > 0
        # States exclude each other: their sum is the lifetime of the replica.
        assert measured.sum(seconds, model=model) < measured.lifetime_s + 40


def test_the_queue_is_empty(measured: Measured) -> None:
    assert {"ray_earth2serve_queue_depth", "ray_earth2serve_queue_oldest_wait_seconds"} <= (
        measured.scrape.names
    )
    assert measured.sum("queue_depth") == measured.sum("queue_oldest_wait_seconds") == 0


@pytest.fixture(scope="module")
def failed(
    azurite: Azurite, http_port: int, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Failures]:
    def is_complete(scrape: Scrape) -> bool:
        return (
            own_sum(scrape, "failures_total") >= 1
            and own_sum(scrape, "stage_retries_total") >= 1
            and own_sum(scrape, "refusals_total") >= 1
            and own_sum(scrape, "uploaded_bytes_total") > 0
            and own_sum(scrape, "registrations_total") >= 1
        )

    with failures(azurite, http_port, tmp_path_factory.mktemp(FAILURES)) as happened:
        scraped(FAILURES, is_complete)
        yield happened


@pytest.fixture(scope="module")
def prom(
    measured: Measured, failed: Failures, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Prometheus]:
    with prometheus(tmp_path_factory.mktemp("prometheus"), free_port(), RULES) as running:
        of_measured = f'application="{NAME}"'
        idle = f'increase(ray_earth2serve_model_seconds_total{{{of_measured}, state="idle"}}[5m])'
        healthy = dict(queries(NAME, "5m"))["Healthy replicas, by deployment"]
        # A rate needs two values of each series. Serve reported health over 60 s late.
        for query in (
            f"count(({healthy}) >= 1) >= {len(DEPLOYMENTS)}",
            # Processes report every 2 s: the rate of few values is not that of the heartbeats.
            f"count_over_time(ray_earth2serve_conductor_beats_total{{{of_measured}}}[5m]) >= 6",
            f"count({idle} > 5) >= 2",
            f"rate(ray_earth2serve_conductor_beats_total{{{of_measured}}}[2m]) > 0",
            f"rate(ray_serve_num_http_requests_total{{{of_measured}}}[5m])",
            f'rate(ray_earth2serve_uploaded_bytes_total{{application="{FAILURES}"}}[5m])',
        ):
            running.wait_for(query)
        yield running


def may_lack_series(query: str) -> bool:
    return any(name in query for name in WITHOUT_SERIES)


def test_prometheus_answers_the_documented_queries(prom: Prometheus) -> None:
    for query in QUERIES:
        assert may_lack_series(query) or prom.answer(query), query
    [share, *_] = QUERIES
    shares = {labels["model"]: value for labels, value in prom.answer(share)}
    # Prometheus extrapolates the two rates of the fraction separately.
    of_measured = [shares.get(model, -1.0) for model in ("fcn3", "stormscope")]
    assert all(0 <= each < 1.2 for each in of_measured), shares


def test_prometheus_answers_every_panel(prom: Prometheus) -> None:
    unanswered = [
        (title, query)
        for title, query in queries(f"{NAME}|{FAILURES}", "5m")
        if not may_lack_series(query) and not prom.answer(query)
    ]
    assert unanswered == []


def test_panels_show_completed_executions(prom: Prometheus) -> None:
    panels = dict(queries(NAME, "5m"))
    ended = prom.answer(panels["Executions ended in the last hour, by status"])
    # Both are counted although they ended before the first scrape.
    assert {labels["workflow"]: round(value) for labels, value in ended} == {
        FORECAST: 1,
        NOWCAST: 1,
    }
    states = prom.answer(panels["Model time, by state (share)"])
    for model in ("fcn3", "stormscope"):
        shares = [value for labels, value in states if labels["model"] == model]
        assert abs(sum(shares) - 1) < 1e-6
    [(_, heartbeats)] = prom.answer(panels["Conductor heartbeats (per second)"])
    assert 0 < heartbeats < 1.5
    panel = panels["Healthy replicas, by deployment"]
    prom.wait_for(f"count(({panel}) >= 1) >= {len(DEPLOYMENTS)}")
    healthy = prom.query(panel)
    assert {labels["deployment"] for labels, value in healthy if value >= 1} == DEPLOYMENTS


def test_panels_show_failures(prom: Prometheus, failed: Failures) -> None:
    def panel(title: str) -> list[tuple[dict[str, str], int]]:
        return [
            (labels, round(value))
            for each, query in queries(FAILURES, "5m")
            if each.startswith(title)
            for labels, value in prom.answer(query)
        ]

    failure = {"workflow": FORECAST, "stage": "register", "reason": "IngestionFailed"}
    assert panel("Failures in the last hour") == [(failure, 1)]
    [(retried, times)] = panel("Retried steps in the last hour")
    # More than once if the killed replica was not replaced yet.
    assert retried == {"stage": "register"} and times >= 1
    assert panel("Refused requests in the last hour") == [({"reason": "queue_full"}, 1)]
    of_forecasts = {"workflow": FORECAST}
    (uploaded, blobs), registered = panel("Delivered blobs and catalogue items")
    assert (uploaded, registered) == (of_forecasts, (of_forecasts, 1))
    # Uploads in flight when the last step is written may be sent twice.
    assert failed.blobs <= blobs <= failed.blobs + IN_FLIGHT


def test_retries_are_logged_with_the_execution(failed: Failures) -> None:
    logs = Path(ray._private.worker._global_node.get_session_dir_path()) / "logs"
    retries = [entry for entry in gather(failed.retried, [logs]) if "is retried" in str(entry)]
    assert retries
    for entry in retries:
        assert entry.level == "WARNING" and len(entry.lines) == 1
        assert f"{failed.retried} is retried at register, attempt" in str(entry)
    assert not any("is retried" in str(entry) for entry in gather(failed.failed, [logs]))


def test_the_dashboards_variable_lists_the_application(prom: Prometheus) -> None:
    [variable] = [v for v in dashboard()["templating"]["list"] if v["name"] == "application"]
    metric, label = re.fullmatch(r"label_values\((\w+), (\w+)\)", variable["query"]).groups()
    assert NAME in prom.label_values(metric, label)


def alerts_of(application: str, rule: dict[str, Any]) -> list[Any]:
    """Return the alerts of an application, or of none; other tests may cause theirs."""
    return [a for a in rule["alerts"] if a["labels"].get("application") in (application, None)]


def test_prometheus_evaluates_every_alert_and_none_fires(prom: Prometheus) -> None:
    # ConductorDown is pending until there are two values of each series.
    evaluated = prom.rules(lambda rules: not any(alerts_of(NAME, rule) for rule in rules))
    assert {rule["name"] for rule in evaluated} == {rule["alert"] for rule in alerts()}
    assert {rule["health"] for rule in evaluated} == {"ok"}
    for rule in alerts():
        for name in set(re.findall(r"\bray_\w+", rule["expr"])):
            assert prom.query(name) or may_lack_series(name), (rule["alert"], name)


def test_an_alert_fires_where_executions_fail(prom: Prometheus) -> None:
    def firing(rules: list[dict[str, Any]]) -> list[dict[str, str]]:
        return [
            alert["labels"]
            for rule in rules
            for alert in rule["alerts"]
            if rule["name"] == "ExecutionsFailing"
            and alert["labels"].get("application") == FAILURES
        ]

    [labels] = firing(prom.rules(lambda rules: bool(firing(rules))))
    assert (labels["stage"], labels["reason"]) == ("register", "IngestionFailed")


def test_serve_measures_requests(measured: Measured) -> None:
    assert "ray_serve_num_http_requests_total" in measured.scrape.names
    assert "ray_serve_http_request_latency_ms_count" in measured.scrape.names
