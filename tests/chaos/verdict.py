"""Judge the executions of a campaign: how many are lost, doubled or wrong."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import sqlalchemy as sa
import xarray as xr

from deployments.conductor.steps import ExecutionSteps
from deployments.models.buffer_pool import BufferPool
from deployments.models.forecast import Forecaster
from deployments.models.messages import MemberJob
from deployments.results.zarr import chunk_content
from deployments.synthetic.fcn3 import SyntheticFCN3, SyntheticIFS
from tests.chaos.load import FORECAST, Accepted, Load
from workflows.base import Plan
from workflows.fcn3 import FCN3Workflow
from workflows.grids import Grid

Open = Callable[[str, str], xr.Dataset]
"""Returns the result of a workflow's execution."""
MEMBER_STEP = ExecutionSteps.forecast_member.__name__
"""Name under which DBOS records a forecast's member."""
CLOCK_S = 0.05
"""Tolerance for the clocks of two processes on one machine, and for rounding."""


class Records:
    """Recorded members. They must be read from time to time, since records are removed.

    Parameters
    ----------
    dbos : Engine
        Database with the recorded steps.
    """

    def __init__(self, dbos: sa.Engine) -> None:
        self._dbos = dbos
        self.members: dict[str, list[float]] = {}
        """Time at which each member of an execution was recorded, in the order of members."""

    def read(self) -> None:
        """Read the current records."""
        for execution_id, ends in _recorded(self._dbos).items():
            if len(ends) >= len(self.members.get(execution_id, [])):
                self.members[execution_id] = ends


@dataclass
class Verdict:
    """The outcome of a campaign's executions."""

    accepted: int
    resumed: int = 0
    """Number of members that continued from a checkpoint."""
    right: int = 0
    lost: list[str] = field(default_factory=list)
    """Executions that did not complete."""
    doubled: list[str] = field(default_factory=list)
    """Executions with members computed again after they were recorded, or not exactly one item."""
    wrong: list[str] = field(default_factory=list)
    """Executions with arrays that differ from those without faults."""
    denied: Sequence[str] = ()
    """Answers that denied what exists."""

    def __str__(self) -> str:
        counts = (
            f"{self.accepted} accepted, {self.right} right, {len(self.lost)} lost, "
            f"{len(self.doubled)} doubled, {len(self.wrong)} with wrong arrays, "
            f"{len(self.denied)} answers that deny what exists; "
            f"{self.resumed} members continued from a checkpoint"
        )
        return "\n".join(
            [counts, *self.lost[:10], *self.doubled[:10], *self.wrong[:10], *self.denied[:10]]
        )

    @property
    def is_clean(self) -> bool:
        """Return whether there were executions, all are right, and none was denied."""
        """Return whether there were executions, all are right, and none was denied."""
        return 0 < self.right == self.accepted and not self.denied


def judge(
    load: Load,
    open_result: Open,
    *,
    grid: Mapping[str, int],
    records: Records | None,
    journal: Path,
    item_ids: Iterable[str],
    reference: xr.Dataset | None,
) -> Verdict:
    """Judge every accepted execution.

    Parameters
    ----------
    load : Load
        Its accepted executions.
    open_result : callable
    grid : mapping
        Grid of the global model.
    records : Records or None
        Times at which members were recorded. None if no process was killed: then no step may be
        computed twice.
    journal : Path
        Journal of the model.
    item_ids : iterable of str
        Ids of all items in the catalogue.
    reference : Dataset or None
        Result of the nowcast without faults.
    """
    verdict = Verdict(len(load.accepted), resumed=_resumed(journal), denied=load.denied)
    computed = _computed(journal)
    if records is not None:
        records.read()
    items = list(item_ids)
    for each in load.accepted:
        status = load.ended.get(each.execution_id, {"status": "not followed until its end"})
        name = f"{each.execution_id} ({each.workflow})"
        if status["status"] != "completed":
            reason = status.get("error_message")
            verdict.lost.append(
                f"lost: {name} is {status['status']} at {status.get('stage')}: {reason}"
            )
            continue
        result = open_result(each.workflow, each.execution_id)
        repeated = _doubled(each, records, computed)
        if "geo_catalog_url" in each.parameters:
            n_items = sum(each.execution_id in item for item in items)
            repeated += [] if n_items == 1 else [f"it has {n_items} items"]
        correct = (
            expected(each, Grid(**grid)) if each.workflow == FORECAST else _variables(reference)
        )
        differing = [
            variable
            for variable, values in correct.items()
            if not np.array_equal(
                result[variable].values, values, equal_nan=each.workflow != FORECAST
            )
        ]
        if repeated:
            verdict.doubled.append(f"doubled: {name}: {'; '.join(repeated)}")
        if differing:
            verdict.wrong.append(f"wrong: {name}: {', '.join(differing)}")
        verdict.right += not repeated and not differing
    return verdict


def seeds_computed(journal: Path, pids: Collection[int]) -> set[int]:
    """Return the seeds for which some processes have computed steps."""
    lines = map(str.split, journal.read_text().splitlines())
    return {int(seed) for seed, pid, _step, _at in lines if int(pid) in pids}


def _computed(journal: Path) -> dict[int, list[float]]:
    """Return the start times of steps, by seed."""
    started = defaultdict(list)
    for line in journal.read_text().splitlines():
        seed, _pid, _step, at = line.split()
        started[int(seed)].append(float(at))
    return started


def _resumed(journal: Path) -> int:
    """Return how often a process started in the middle of a member."""
    latest: dict[tuple[str, str], int] = {}
    resumed = 0
    for line in journal.read_text().splitlines():
        seed, pid, step, _at = line.split()
        resumed += int(step) not in (0, latest.get((seed, pid), -1) + 1)
        latest[seed, pid] = int(step)
    return resumed


def _recorded(dbos: sa.Engine) -> dict[str, list[float]]:
    query = sa.text(
        "SELECT workflow_uuid, completed_at_epoch_ms FROM {}operation_outputs "
        "WHERE function_name = :step AND error IS NULL "
        "ORDER BY workflow_uuid, function_id".format(
            "dbos." if dbos.dialect.name == "postgresql" else ""
        )
    )
    found = defaultdict(list)
    with dbos.connect() as connection:
        for execution_id, at in connection.execute(query, {"step": MEMBER_STEP}):
            found[execution_id].append(at / 1000)
    return found


def _doubled(
    each: Accepted, records: Records | None, computed: Mapping[int, list[float]]
) -> list[str]:
    if each.workflow != FORECAST:
        return []
    seeds = each.parameters["seeds"]
    if records is None:
        # The initial conditions count as a step.
        n_times = each.parameters["n_steps"] + 1
        return [
            f"{len(computed[seed])} steps of seed {seed} were computed, not {n_times}"
            for seed in seeds
            if len(computed[seed]) != n_times
        ]
    ends = records.members.get(each.execution_id, [])
    if len(ends) != len(seeds):
        return [f"{len(ends)} of {len(seeds)} members are recorded"]
    return [
        f"seed {seed} was computed {max(computed[seed]) - end:.2f} s after it was recorded"
        for seed, end in zip(seeds, ends, strict=True)
        if max(computed[seed]) > end + CLOCK_S
    ]


def expected(each: Accepted, grid: Grid) -> dict[str, np.ndarray[Any, Any]]:
    """Compute the correct arrays of a forecast, shape (member, time, lat, lon)."""
    workflow = FCN3Workflow(grid)
    plan = workflow.plan(workflow.validate(each.parameters))
    assert isinstance(plan, Plan)
    state = _analysis(grid.n_lat, grid.n_lon, str(plan.start()))
    model = SyntheticFCN3(n_lat=grid.n_lat, n_lon=grid.n_lon)
    members = []
    for member in plan.members:
        job = MemberJob(
            execution_id=each.execution_id,
            plan=plan,
            member=member,
            initial_conditions="",
            fence=0,
        )
        steps = Forecaster(model).steps(job, state, BufferPool(), lambda *_: None)
        members.append(
            [[np.array(chunk_content(plan, field)) for field in fields] for fields in steps]
        )
    values = np.array(members)
    return {name: values[:, :, index] for index, name in enumerate(plan.variables)}


@cache
def _analysis(n_lat: int, n_lon: int, start: str) -> np.ndarray[Any, Any]:
    from workflows.fcn3 import VARIABLES

    source = SyntheticIFS(n_lat=n_lat, n_lon=n_lon)
    times = np.array([start]).astype("datetime64[ns]")
    values: np.ndarray[Any, Any] = source(times, list(VARIABLES)).values[0]
    return values


def _variables(dataset: xr.Dataset | None) -> dict[str, np.ndarray[Any, Any]]:
    assert dataset is not None
    return {str(name): each.values for name, each in dataset.data_vars.items() if each.ndim >= 3}
