"""DBOS's messages in the Conductor's log."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest

from deployments.conductor.dbos_log import capture_dbos_log
from deployments.runtime.failures import TransientFailure
from deployments.store.conductor_view import ConductorStore
from tests.deployments.conductor.harness import (
    WORKFLOW,
    conductor_loop,
    finished,
    submit,
    until,
)
from tests.deployments.conductor.stand_ins import Journal, StandIns
from workflows import Status


@pytest.mark.usefixtures("as_json")
async def test_step_that_is_retried_logs_one_line(
    store: ConductorStore,
    store_url: str,
    journal: Journal,
    records: list[logging.LogRecord],
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    deaths = 0

    async def die_once(job: Any) -> None:
        nonlocal deaths
        deaths += 1
        if deaths == 1:
            raise TransientFailure("inference", "ActorDiedError: it died")

    execution_id = submit(store, n_samples=1)
    async with conductor_loop(store_url, StandIns(journal, before={"member": die_once})):
        assert (await until(store, execution_id, finished)).status == Status.COMPLETED
    assert journal.lines().count("begin 0") == 2
    expected = f"{execution_id} is retried at inference, attempt 2 of 6: ActorDiedError: it died"
    [warning] = [record for record in records if record.levelname == "WARNING"]
    assert (warning.getMessage(), warning.exc_info) == (expected, None)
    # The same in a file of JSON lines.
    lines = map(json.loads, (tmp_path / "replica.log").read_text().splitlines())
    [line] = [line for line in lines if line["levelname"] == "WARNING"]
    assert line["message"] == expected and "exc_text" not in line
    assert (line["execution_id"], line["workflow"]) == (execution_id, WORKFLOW.name)
    assert line["stage"] == "inference"
    # DBOS's own handler would write to stderr.
    assert "automatically retried" not in capfd.readouterr().err


async def test_other_messages_of_dbos_are_in_our_log_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    capture_dbos_log()
    capture_dbos_log()
    logging.getLogger("dbos").warning("the database is %s", "away")
    assert [(record.name, record.getMessage()) for record in caplog.records] == [
        ("ray.serve", "DBOS: the database is away")
    ]
