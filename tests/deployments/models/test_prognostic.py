"""The deployment of any model, outside of Serve."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deployments.models.messages import MemberJob
from deployments.models.options import ModelOptions
from deployments.models.prognostic import Prognostic
from deployments.runtime.import_path import LoaderOptions
from tests.deployments.conductor.stand_ins import Handle
from tests.deployments.models.fcn3_replicas import Packager, outcome
from tests.deployments.results.samples import make_plan
from tests.models.earth2studio_models import VARIABLES, drawing, random_source
from workflows.base import Component
from workflows.grids import Grid
from workflows.readiness import NotReady, Ready

GRID = Grid(n_lat=19, n_lon=36)
MOVES: list[str] = []
LEFT = threading.Event()
"""Set when the model has been moved a third time: loaded, used, left."""


def load_recording() -> Any:
    """Return a model that records where it is moved."""
    model = drawing()
    move = model.to

    def record(device: str) -> Any:
        MOVES.append(device)
        if len(MOVES) == 3:
            LEFT.set()
        return move(device)

    model.to = record
    return model


async def replica_of(packager: Packager, **changes: Any) -> Any:
    loader = LoaderOptions(name="mine", loader="tests.models.earth2studio_models:persistence")
    options = ModelOptions(**{"loader": loader, "window_steps": 2, **changes})
    deployment = Prognostic.func_or_class  # type: ignore[attr-defined]
    replica = deployment.__new__(deployment)
    await replica.__init__(options, Handle(packager))
    return replica


@pytest.fixture
async def replica(packager: Packager) -> AsyncIterator[Any]:
    yield await replica_of(packager)


@pytest.fixture
def job(tmp_path: Path) -> MemberJob:
    plan = make_plan(seeds=(3, 4), n_steps=3, grid=GRID, variables=("t2m",)).model_copy(
        update={"input_variables": tuple(VARIABLES)}
    )
    fields = random_source()(np.array([plan.start()]), VARIABLES).values
    np.save(tmp_path / "state.npy", fields[0].astype(np.float32))
    path = str(tmp_path / "state.npy")
    return MemberJob(execution_id="exec_1", plan=plan, member=0, initial_conditions=path, fence=1)


async def test_a_model_reports_its_origin_and_describes_itself(replica: Any) -> None:
    status = await replica.check_readiness()
    assert isinstance(status, Ready)
    assert status.origin.loader == "tests.models.earth2studio_models:persistence"
    assert status.description is not None and status.description.kind == "model"


async def test_a_member_is_written_step_by_step(
    replica: Any, packager: Packager, job: MemberJob
) -> None:
    assert (await outcome(replica.forecast_member(job)))[-1] == 4
    assert packager.steps.keys() == {(0, step) for step in range(4)}
    assert all(np.array_equal(packager.steps[0, 0], each) for each in packager.steps.values())


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        (
            {
                "diagnostics": {
                    "windy": (
                        LoaderOptions(
                            name="",
                            loader="earth2studio.models.dx:DerivedWS",
                            options={"levels": [850]},
                        ),
                    )
                }
            },
            "DerivedWS needs u850, v850",
        ),
        (
            {"perturbations": (Component(loader="earth2studio.perturbation:Nothing"),)},
            "has no attribute 'Nothing'",
        ),
        ({"loader": LoaderOptions(name="mine", loader="no_such_module:load")}, "no_such_module"),
    ],
)
async def test_what_cannot_work_is_not_ready_with_the_reason(
    packager: Packager, changes: dict[str, Any], reason: str
) -> None:
    status = await (await replica_of(packager, **changes)).check_readiness()
    assert isinstance(status, NotReady)
    assert reason in status.reason


async def test_a_model_leaves_the_gpu_when_it_is_idle_and_comes_back(
    packager: Packager, job: MemberJob
) -> None:
    MOVES.clear()
    loader = LoaderOptions(name="mine", loader=f"{__name__}:load_recording")
    replica = await replica_of(packager, loader=loader, idle_unload_s=0.2)
    assert MOVES == ["cpu"]
    await outcome(replica.forecast_member(job))
    assert len(MOVES) == 2
    assert await asyncio.to_thread(LEFT.wait, 20)
    first = dict(packager.steps)
    assert (await outcome(replica.forecast_member(job)))[-1] == 4
    assert len(MOVES) == 4
    assert all(np.array_equal(first[key], packager.steps[key]) for key in first)
