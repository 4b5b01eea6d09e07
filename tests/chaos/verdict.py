"""What came of the executions: how many are lost, doubled, wrong."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import sqlalchemy as sa
import xarray as xr

from deployments.models.fcn3_rollout import forecast
from deployments.models.messages import MemberJob
from deployments.results.zarr import chunk_content
from deployments.synthetic.fcn3 import SyntheticFCN3, SyntheticIFS
from tests.chaos.load import FORECAST, Accepted, Load
from workflows.base import Plan
from workflows.fcn3 import FCN3Workflow
from workflows.grids import Grid

Open = Callable[[str, str], xr.Dataset]
"""Gives the result of a workflow's execution."""
CLOCK_S = 0.05
"""What the clocks of two processes on one machine, and rounding, may differ."""


class Records:
    """Which members were recorded as done; looked at now and then, since records are removed.

    Parameters
    ----------
    dbos : Engine
        Database with the recorded steps.
    """

    def __init__(self, dbos: sa.Engine) -> None:
        self._dbos = dbos
        self.members: dict[str, list[float]] = {}
        """When each member of an execution was recorded, in the order of members."""

    def look(self) -> None:
        """Read what is recorded now."""
        for execution_id, ends in _recorded(self._dbos).items():
            if len(ends) >= len(self.members.get(execution_id, [])):
                self.members[execution_id] = ends


@dataclass
class Verdict:
    """How the executions of a campaign have ended."""

    accepted: int
    resumed: int = 0
    """How often a member went on from a checkpoint."""
    right: int = 0
    lost: list[str] = field(default_factory=list)
    """Never ended, or ended otherwise than as completed."""
    doubled: list[str] = field(default_factory=list)
    """A member computed again after it was recorded, or more or fewer items than one."""
    wrong: list[str] = field(default_factory=list)
    """With other values than the same members have when nobody disturbs them."""

    def __str__(self) -> str:
        counts = (
            f"{self.accepted} accepted, {self.right} ended right, {len(self.lost)} lost, "
            f"{len(self.doubled)} doubled, {len(self.wrong)} with wrong arrays; "
            f"members went on from a checkpoint {self.resumed} times"
        )
        return "\n".join([counts, *self.lost[:10], *self.doubled[:10], *self.wrong[:10]])

    @property
    def is_clean(self) -> bool:
        """Say whether all ended right, and there were some."""
        return 0 < self.right == self.accepted


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
    """Look at every accepted execution.

    Parameters
    ----------
    load : Load
        Which executions there are.
    open_result : callable
    grid : mapping
        Of the global model.
    records : Records or None
        Which steps were recorded, and when. None where nobody was killed: then no step may be
        computed twice.
    journal : Path
        What the model has computed.
    item_ids : iterable of str
        Ids of all items in the catalogue.
    reference : Dataset or None
        Result of the nowcast that nobody disturbed.
    """
    verdict = Verdict(len(load.accepted), resumed=_resumed(journal))
    computed = _computed(journal)
    if records is not None:
        records.look()
    items = list(item_ids)
    for each in load.accepted:
        said = load.ended.get(each.execution_id, {"status": "not followed to its end"})
        name = f"{each.execution_id} ({each.workflow})"
        if said["status"] != "completed":
            reason = said.get("error_message")
            verdict.lost.append(
                f"lost: {name} is {said['status']} at {said.get('stage')}: {reason}"
            )
            continue
        found = open_result(each.workflow, each.execution_id)
        again = _doubled(each, records, computed)
        if "geo_catalog_url" in each.parameters:
            n_items = sum(each.execution_id in item for item in items)
            again += [] if n_items == 1 else [f"it has {n_items} items"]
        wanted = (
            expected(each, Grid(**grid)) if each.workflow == FORECAST else _variables(reference)
        )
        differing = [
            variable
            for variable, values in wanted.items()
            if not np.array_equal(
                found[variable].values, values, equal_nan=each.workflow != FORECAST
            )
        ]
        if again:
            verdict.doubled.append(f"doubled: {name}: {'; '.join(again)}")
        if differing:
            verdict.wrong.append(f"wrong: {name}: {', '.join(differing)}")
        verdict.right += not again and not differing
    return verdict


def seeds_computed(journal: Path, pids: Collection[int]) -> set[int]:
    """Read of which seeds some processes have computed steps."""
    lines = map(str.split, journal.read_text().splitlines())
    return {int(seed) for seed, pid, _step, _at in lines if int(pid) in pids}


def _computed(journal: Path) -> dict[int, list[float]]:
    """Read when steps of each seed began."""
    began = defaultdict(list)
    for line in journal.read_text().splitlines():
        seed, _pid, _step, at = line.split()
        began[int(seed)].append(float(at))
    return began


def _resumed(journal: Path) -> int:
    """Count how often an iterator was begun in the middle of a member."""
    at: dict[tuple[str, str], int] = {}
    begun = 0
    for line in journal.read_text().splitlines():
        seed, pid, step, _at = line.split()
        begun += int(step) not in (0, at.get((seed, pid), -1) + 1)
        at[seed, pid] = int(step)
    return begun


def _recorded(dbos: sa.Engine) -> dict[str, list[float]]:
    query = sa.text(
        "SELECT workflow_uuid, completed_at_epoch_ms FROM {}operation_outputs "
        "WHERE function_name = 'forecast_member' AND error IS NULL "
        "ORDER BY workflow_uuid, function_id".format(
            "dbos." if dbos.dialect.name == "postgresql" else ""
        )
    )
    found = defaultdict(list)
    with dbos.connect() as connection:
        for execution_id, at in connection.execute(query):
            found[execution_id].append(at / 1000)
    return found


def _doubled(
    each: Accepted, records: Records | None, computed: Mapping[int, list[float]]
) -> list[str]:
    if each.workflow != FORECAST:
        return []
    seeds = each.parameters["seeds"]
    if records is None:
        # The time of the initial conditions, too.
        n_times = each.parameters["n_steps"] + 1
        return [
            f"{len(computed[seed])} steps were computed of seed {seed}, not {n_times}"
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
    """Compute a forecast here, as the server should have; shape (member, time, lat, lon) each."""
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
        steps = forecast(model, job, state)
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
