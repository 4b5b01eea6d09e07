"""What a real replica's log file says of an execution, in JSON and in text."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import ray

from serve_app.logs import gather, log_files
from tests.integration.serving import WORKFLOW, served

pytestmark = pytest.mark.ray

GRID = {"n_lat": 8, "n_lon": 16}
TALKING = "tests.integration.talking_model"
SAID = {"warns by logging", "tells loguru", "prints", "at 100 %", "warns from a thread"}
"""What model and source say, each in its own way; and a warning, whose line has its place, too."""


class Told(NamedTuple):
    """A failed execution, one that completed, and the lines of all replicas."""

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


in_json, in_text, in_both = (
    pytest.mark.parametrize("told", encodings, indirect=True)
    for encodings in (["JSON"], ["TEXT"], ["JSON", "TEXT"])
)


@pytest.fixture(scope="module")
def told(
    request: pytest.FixtureRequest, http_port: int, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Told]:
    name = f"logs{request.param.lower()}"
    args = {
        "data_dir": str(tmp_path_factory.mktemp(name)),
        "models": {
            "fcn3": {"loader": f"{TALKING}:load_model", "options": GRID, "grid": GRID}
            | {"num_gpus": 0.0}
        },
        "data_sources": {"ifs": {"loader": f"{TALKING}:load_source", "options": GRID}},
    }
    logging_config = {"encoding": request.param, "enable_access_log": False}
    with served(args, name, http_port, logging_config=logging_config) as server:
        completed = server.submit(n_steps=1, seeds=[1], output_format="zarr")
        assert server.finished(completed)["status"] == "completed"
        failed = server.submit(n_steps=3, seeds=[1], output_format="zarr")
        assert server.finished(failed)["status"] == "failed"
        session = ray._private.worker._global_node.get_session_dir_path()
        yield Told(failed, completed, Path(session) / "logs", name)


def parsed(lines: list[str]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in lines]


@in_json
def test_every_line_of_the_computation_names_execution_workflow_and_stage(told: Told) -> None:
    for deployment, who, stage in (
        ("FCN3", "the model", "inference"),
        ("InitialConditions", "the source", "initial_conditions"),
    ):
        lines = parsed(told.lines(deployment))
        of_it = [line for line in lines if line.get("execution_id") == told.failed]
        assert {(line["workflow"], line["stage"]) for line in of_it} == {(WORKFLOW, stage)}
        words = [line["message"] for line in of_it]
        assert {f"{who} {said}" for said in SAID} <= set(words)
        assert any(f"UserWarning: {who} warns of itself" in word for word in words)
        # Nothing that was said while it ran is of nobody, or of the other one.
        for line in lines:
            if who in line["message"]:
                assert line.get("execution_id") in {told.failed, told.completed}


@in_json
def test_so_does_serves_own_traceback_and_the_level_stays(told: Told) -> None:
    lines = parsed(told.lines("FCN3"))
    raised = [line for line in lines if "the model breaks" in json.dumps(line)]
    assert raised
    assert {line.get("execution_id") for line in raised} == {told.failed}
    levels = {line["message"]: line["levelname"] for line in lines}
    assert levels["the model warns by logging"] == "WARNING"
    assert levels["the model tells loguru"] == "INFO"


@in_json
def test_conductor_and_ingress_name_it_as_well(told: Told) -> None:
    of_conductor = [
        line for line in parsed(told.lines("Conductor")) if told.failed in line["message"]
    ]
    assert of_conductor
    for line in of_conductor:
        named = (line["execution_id"], line["workflow"], line["stage"])
        assert named == (told.failed, WORKFLOW, "inference")
    (queued,) = [
        line
        for line in parsed(told.lines("Ingress"))
        if line["message"] == f"queued {told.failed} of {WORKFLOW}"
    ]
    assert (queued["execution_id"], queued["workflow"]) == (told.failed, WORKFLOW)


@in_text
def test_text_stays_readable_and_names_it_once(told: Told) -> None:
    lines = told.lines("FCN3")
    for said in SAID:
        found = [line for line in lines if f"the model {said}" in line]
        assert len(found) == 1
        assert found[0].endswith(f"-- {told.failed}: the model {said}")
    for line in told.lines("Conductor"):
        assert line.count(told.failed) <= 1


@in_both
def test_what_was_logged_of_one_is_gathered_in_order(told: Told) -> None:
    found = gather(told.failed, [told.folder])
    assert [entry.time for entry in found] == sorted(entry.time for entry in found)
    text = "\n".join(map(str, found))
    order = [
        f"queued {told.failed}",
        "the source warns by logging",
        "the source prints",
        "the model tells loguru",
        "the model warns from a thread",
        "RuntimeError: the model breaks",
        f"{told.failed} failed at inference",
    ]
    places = [text.index(words) for words in order]
    assert places == sorted(places)
    assert told.completed not in text
    of_completed = "\n".join(map(str, gather(told.completed, [told.folder])))
    assert f"{told.completed} completed in" in of_completed
    assert told.failed not in of_completed
