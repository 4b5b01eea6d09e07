"""The lines about an execution in the log files of real replicas, in JSON and in text."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import ray

from serve_app.logs import gather, log_files
from tests.integration.serving import WORKFLOW, served
from tests.integration.verbose_models import MESSAGES

pytestmark = [pytest.mark.ray, pytest.mark.slow]

GRID = {"n_lat": 8, "n_lon": 16}
MODELS = "tests.integration.verbose_models"


class Logs(NamedTuple):
    """Two executions, and the log files of one application."""

    failed: str
    completed: str
    folder: Path
    name: str

    def lines(self, deployment: str) -> list[str]:
        return [
            line
            for path in log_files(self.folder)
            if f"_{self.name}_{deployment}_" in path.name
            for line in path.read_text().splitlines()
        ]


JSON, TEXT = "JSON", "TEXT"
in_json, in_text, in_both = (
    pytest.mark.parametrize("logs", encodings, indirect=True)
    for encodings in ([JSON], [TEXT], [JSON, TEXT])
)


@pytest.fixture(scope="module")
def logs(
    request: pytest.FixtureRequest, http_port: int, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Logs]:
    name = f"logs{request.param.lower()}"
    args = {
        "data_dir": str(tmp_path_factory.mktemp(name)),
        "models": {
            "fcn3": {
                "loader": f"{MODELS}:load_model",
                "options": GRID,
                "grid": GRID,
                "num_gpus": 0.0,
            }
        },
        "data_sources": {"ifs": {"loader": f"{MODELS}:load_source", "options": GRID}},
    }
    logging_config = {"encoding": request.param, "enable_access_log": False}
    with served(args, name, http_port, logging_config=logging_config) as server:
        completed = server.submit(n_steps=1, seeds=[1], output_format="zarr")
        server.completed(completed)
        failed = server.submit(n_steps=3, seeds=[1], output_format="zarr")
        assert server.finished(failed)["status"] == "failed"
        session = ray._private.worker._global_node.get_session_dir_path()
        yield Logs(failed, completed, Path(session) / "logs", name)


def parsed(lines: list[str]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in lines]


@in_json
def test_every_line_of_a_computation_names_execution_workflow_and_stage(logs: Logs) -> None:
    for deployment, source, stage in (
        ("FCN3", "the model", "inference"),
        ("InitialConditions", "the source", "initial_conditions"),
    ):
        lines = parsed(logs.lines(deployment))
        of_failed = [line for line in lines if line.get("execution_id") == logs.failed]
        assert {(line["workflow"], line["stage"]) for line in of_failed} == {(WORKFLOW, stage)}
        messages = [line["message"] for line in of_failed]
        assert {f"{source} {message}" for message in MESSAGES} <= set(messages)
        assert any(f"UserWarning: {source} uses warnings" in message for message in messages)
        for line in lines:
            if source in line["message"]:
                assert line.get("execution_id") in {logs.failed, logs.completed}


@in_json
def test_serves_own_traceback_names_the_execution_and_levels_are_kept(logs: Logs) -> None:
    lines = parsed(logs.lines("FCN3"))
    raised = [line for line in lines if "the model breaks" in json.dumps(line)]
    assert raised
    assert {line.get("execution_id") for line in raised} == {logs.failed}
    levels = {line["message"]: line["levelname"] for line in lines}
    assert levels["the model uses logging"] == "WARNING"
    assert levels["the model uses loguru"] == "INFO"


@in_json
def test_lines_of_conductor_and_ingress_name_the_execution(logs: Logs) -> None:
    of_conductor = [
        line for line in parsed(logs.lines("Conductor")) if logs.failed in line["message"]
    ]
    assert of_conductor
    for line in of_conductor:
        named = (line["execution_id"], line["workflow"], line["stage"])
        assert named == (logs.failed, WORKFLOW, "inference")
    (queued,) = [
        line
        for line in parsed(logs.lines("Ingress"))
        if line["message"] == f"queued {logs.failed} of {WORKFLOW}"
    ]
    assert (queued["execution_id"], queued["workflow"]) == (logs.failed, WORKFLOW)


@in_text
def test_lines_of_text_name_the_execution_once(logs: Logs) -> None:
    lines = logs.lines("FCN3")
    for message in MESSAGES:
        (line,) = [line for line in lines if f"the model {message}" in line]
        assert line.endswith(f"-- {logs.failed}: the model {message}")
    for line in logs.lines("Conductor"):
        assert line.count(logs.failed) <= 1


@in_both
def test_lines_of_one_execution_are_gathered_in_order(logs: Logs) -> None:
    entries = gather(logs.failed, [logs.folder])
    assert [entry.time for entry in entries] == sorted(entry.time for entry in entries)
    text = "\n".join(map(str, entries))
    expected = [
        f"queued {logs.failed}",
        "the source uses logging",
        "the source prints",
        "the model uses loguru",
        "the model logs from a thread",
        "RuntimeError: the model breaks",
        f"{logs.failed} failed at inference",
    ]
    positions = [text.index(each) for each in expected]
    assert positions == sorted(positions)
    assert logs.completed not in text
    of_completed = "\n".join(map(str, gather(logs.completed, [logs.folder])))
    assert f"{logs.completed} completed in" in of_completed
    assert logs.failed not in of_completed
