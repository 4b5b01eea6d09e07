"""A tiny synthetic FCN3: its initial conditions, jobs, replicas and Packager."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable, Generator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deployments.models.buffer_pool import BufferPool
from deployments.models.fcn3 import FCN3
from deployments.models.forecast import Forecaster, Save
from deployments.models.messages import MemberJob, MemberProgress
from deployments.models.options import FCN3Options
from deployments.results.checkpoint import Checkpoint
from deployments.runtime.import_path import LoaderOptions
from deployments.synthetic.fcn3 import SyntheticFCN3, SyntheticIFS
from tests.deployments.conductor.stand_ins import Handle
from tests.deployments.results.samples import make_plan
from workflows.fcn3 import VARIABLES
from workflows.grids import Grid

GRID = Grid(n_lat=6, n_lon=8)
SEEDS = (11, 5, 11)
Floats = NDArray[np.float32]


def synthetic_fcn3() -> SyntheticFCN3:
    return SyntheticFCN3(n_lat=GRID.n_lat, n_lon=GRID.n_lon)


def write_analysis(path: Path) -> None:
    """Write initial conditions as InitialConditions does."""
    source = SyntheticIFS(n_lat=GRID.n_lat, n_lon=GRID.n_lon)
    fields = source(np.array(["2025-01-01T06"], "datetime64[ns]"), list(VARIABLES)).values[0]
    np.save(path, fields)


def member_job(analysis: Path, member: int = 0, fence: int = 1, **changes: Any) -> MemberJob:
    plan = make_plan(seeds=SEEDS, grid=GRID, **{"n_steps": 4, **changes})
    return MemberJob(
        execution_id="exec_1",
        plan=plan.model_copy(update={"input_variables": VARIABLES}),
        member=member,
        initial_conditions=str(analysis),
        fence=fence,
    )


def rollout(
    model: Any,
    job: MemberJob,
    checkpoint: Checkpoint | None = None,
    save: Save = lambda *_: None,
) -> Generator[Floats]:
    """Forecast from the job's initial conditions, or from a checkpoint."""
    start = checkpoint or np.load(job.initial_conditions, mmap_mode="r")
    return Forecaster(model).steps(job, start, BufferPool(), save)


def plain_loop(job: MemberJob) -> Floats:
    """Return the steps of a model in a plain loop, shape (time, variable, lat, lon)."""
    plan = job.plan
    own = synthetic_fcn3()
    own.set_rng(seed=plan.seeds[job.member], reset=True)
    coords = own.input_coords()
    del coords["batch"]
    coords["time"] = np.array([plan.start()]).astype("datetime64[ns]")
    steps = own.create_iterator(np.load(job.initial_conditions)[None, None], coords)
    chosen = [VARIABLES.index(name) for name in plan.variables]
    return np.array([next(steps)[0][0, 0, chosen].copy() for _ in range(plan.n_times)])


def options(grid: Grid = GRID, **changes: Any) -> FCN3Options:
    return FCN3Options(
        grid=grid,
        **{
            "loader": LoaderOptions(
                name="fcn3",
                loader="deployments.synthetic.fcn3:load_fcn3",
                options=GRID.model_dump(),
            ),
            "window_steps": 2,
            "checkpoint_steps": None,
            **changes,
        },
    )


class Packager:
    """Keeps steps and checkpoints in memory, and fails as a test configures."""

    def __init__(self) -> None:
        self.steps: dict[tuple[int, int], Floats] = {}
        self.checkpoints: dict[int, Checkpoint] = {}
        self.write_failure: Exception | None = None
        self.read_failures: list[Exception] = []
        self.remove_failure: Exception | None = None
        self.gate = asyncio.Event()
        self.gate.set()
        self.step_failure: Exception | None = None

    async def write_step(
        self, execution_id: str, fence: int, member: int, time_index: int, fields: Floats
    ) -> None:
        await self.gate.wait()
        if self.step_failure is not None:
            raise self.step_failure
        # The replica reuses the memory of a written step.
        self.steps[member, time_index] = fields.copy()

    async def write_checkpoint(
        self, execution_id: str, fence: int, member: int, checkpoint: Checkpoint
    ) -> None:
        if self.write_failure is not None:
            raise self.write_failure
        assert {(member, step) for step in range(checkpoint.step + 1)} <= self.steps.keys()
        self.checkpoints[member] = replace(checkpoint, state=checkpoint.state.copy())

    async def read_checkpoint(self, execution_id: str, member: int) -> Checkpoint | None:
        if self.read_failures:
            raise self.read_failures.pop()
        return self.checkpoints.get(member)

    async def remove_checkpoints(self, execution_id: str, fence: int, member: int) -> None:
        if self.remove_failure is not None:
            raise self.remove_failure
        self.checkpoints.pop(member, None)


async def make_replica(packager: Packager, initial_conditions: Any = None, **changes: Any) -> Any:
    """Return an FCN3 deployment outside of Serve."""
    deployment = FCN3.func_or_class  # type: ignore[attr-defined]
    replica = deployment.__new__(deployment)
    handles = [Handle(packager)]
    if initial_conditions is not None:
        handles.append(Handle(initial_conditions))
    await replica.__init__(options(**changes), *handles)
    return replica


async def outcome(updates: AsyncIterable[MemberProgress]) -> list[int]:
    """Return how many steps were written at each update."""
    return [progress.written async for progress in updates]
