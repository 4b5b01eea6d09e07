"""Initial conditions from a shared disk, or from a deployment on another machine."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deployments.initial_conditions.client import READ, InitialConditionsClient, source_grid
from deployments.runtime.failures import TransientFailure
from tests.deployments.conductor.stand_ins import Handle
from tests.deployments.results.samples import make_plan
from workflows.errors import StageFailed

PLAN = make_plan()
FIELDS = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
POINTS = np.zeros((2, 3, 4))


class Source:
    """Stands in for InitialConditions on another machine."""

    def __init__(self, *errors: Exception) -> None:
        self.errors = list(errors)
        self.asked: list[str] = []

    async def read(self, plan: Any, execution_id: str) -> Any:
        self.asked.append(execution_id)
        if self.errors:
            raise self.errors.pop(0)
        return FIELDS, POINTS


async def test_opens_files_on_the_disk(tmp_path: Path) -> None:
    path = tmp_path / "goes16.npy"
    np.save(path, FIELDS)
    source = Source()
    client = InitialConditionsClient(Handle(source))  # type: ignore[arg-type]
    found = await client.find(str(path), PLAN, "exec_1")
    assert found.points is None
    np.save(source_grid(path), POINTS)
    with_points = await client.find(str(path), PLAN, "exec_1")
    # Open files survive their removal.
    path.unlink()
    np.testing.assert_array_equal(found.fields, FIELDS)
    np.testing.assert_array_equal(with_points.points, POINTS)
    assert source.asked == []


async def test_reads_a_missing_file_from_the_deployment_once(tmp_path: Path) -> None:
    source = Source()
    client = InitialConditionsClient(Handle(source))  # type: ignore[arg-type]
    elsewhere = [str(tmp_path / name) for name in ("1.npy", "1.npy", "2.npy", "1.npy")]
    members = (client.find(path, PLAN, Path(path).stem) for path in elsewhere[:2])
    states = await asyncio.gather(*members)
    assert source.asked == ["1"]
    assert all(each.fields is FIELDS and each.points is POINTS for each in states)
    # Only the latest is kept: states are large.
    for path in elsewhere[2:]:
        await client.find(path, PLAN, Path(path).stem)
    assert source.asked == ["1", "2", "1"]


async def test_without_a_deployment_a_missing_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        await InitialConditionsClient(None).find(str(tmp_path / "ifs.npy"), PLAN, "exec_1")


@pytest.mark.parametrize(
    ("errors", "raised"),
    [
        ([ConnectionError("lost")], None),
        ([StageFailed("initial_conditions", "ifs returned no data")], StageFailed),
        ([TransientFailure("initial_conditions", "busy")] * 5, TransientFailure),
        ([KeyError("a")], StageFailed),
    ],
)
async def test_transient_errors_are_retried(
    tmp_path: Path, errors: list[Exception], raised: type[Exception] | None
) -> None:
    source = Source(*errors)
    client = InitialConditionsClient(Handle(source), retries=replace(READ, initial_delay_s=0))  # type: ignore[arg-type]
    found = client.find(str(tmp_path / "ifs.npy"), PLAN, "exec_1")
    if raised is None:
        assert (await found).fields is FIELDS
    else:
        with pytest.raises(raised):
            await found
    assert source.errors == []
