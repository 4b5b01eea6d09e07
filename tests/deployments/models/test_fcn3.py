"""What the FCN3 deployment does with a model, on a tiny synthetic one.

The real wrapper is in tests/models.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import aclosing
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from ray.exceptions import ActorDiedError

from deployments.models.fcn3 import FCN3
from deployments.models.fcn3_rollout import check_coordinates, forecast
from deployments.models.messages import MemberJob
from deployments.models.options import FCN3Options
from deployments.models.state import internal_state
from deployments.results.checkpoint import Checkpoint
from deployments.runtime.failures import TransientFailure
from deployments.runtime.import_path import LoaderOptions
from deployments.synthetic.fcn3 import SyntheticFCN3, SyntheticIFS
from tests.deployments.conductor.conducting_process import Handle
from tests.deployments.results.results import make_plan
from workflows.errors import ModelUnavailable, StageFailed, StaleConductor
from workflows.fcn3 import VARIABLES
from workflows.grids import Grid

GRID = Grid(n_lat=6, n_lon=8)
SEEDS = (11, 5, 11)
Floats = NDArray[np.float32]


@pytest.fixture
def model() -> SyntheticFCN3:
    return SyntheticFCN3(n_lat=GRID.n_lat, n_lon=GRID.n_lon)


@pytest.fixture
def analysis(tmp_path: Path) -> Path:
    """Initial conditions as InitialConditions leaves them."""
    source = SyntheticIFS(n_lat=GRID.n_lat, n_lon=GRID.n_lon)
    fields = source(np.array(["2025-01-01T06"], "datetime64[ns]"), list(VARIABLES)).values[0]
    path = tmp_path / "ifs.npy"
    np.save(path, fields)
    return path


def member_job(analysis: Path, member: int = 0, fence: int = 1, **changes: Any) -> MemberJob:
    plan = make_plan(seeds=SEEDS, grid=GRID, **{"n_steps": 4, **changes})
    return MemberJob(
        execution_id="exec_1",
        plan=plan.model_copy(update={"input_variables": VARIABLES}),
        member=member,
        initial_conditions=str(analysis),
        fence=fence,
    )


def plain_loop(job: MemberJob) -> Floats:
    """Run a model of its own, as one would by hand; shape (time, variable, lat, lon)."""
    plan = job.plan
    own = SyntheticFCN3(n_lat=GRID.n_lat, n_lon=GRID.n_lon)
    own.set_rng(seed=plan.seeds[job.member], reset=True)
    coords = own.input_coords()
    del coords["batch"]
    coords["time"] = np.array([plan.start()]).astype("datetime64[ns]")
    steps = own.create_iterator(np.load(job.initial_conditions)[None, None], coords)
    chosen = [VARIABLES.index(name) for name in plan.variables]
    return np.array([next(steps)[0][0, 0, chosen].copy() for _ in range(plan.n_times)])


def test_gives_what_a_plain_loop_gives(model: SyntheticFCN3, analysis: Path) -> None:
    job = member_job(analysis, variables=("z500", "t2m", "u10m"))
    given = list(forecast(model, job))

    assert len(given) == 5
    assert all(fields.dtype == np.float32 for fields in given)
    assert np.array_equal(given, plain_loop(job))


def test_starts_with_the_initial_conditions_of_the_variables_asked_for(
    model: SyntheticFCN3, analysis: Path
) -> None:
    first = next(forecast(model, member_job(analysis, variables=("z500", "t2m"))))

    known = np.load(analysis)
    assert np.array_equal(first[0], known[VARIABLES.index("z500")])
    assert np.array_equal(first[1], known[VARIABLES.index("t2m")])


def test_what_it_gave_stays_as_it_was(model: SyntheticFCN3, analysis: Path) -> None:
    given, then = [], []
    for fields in forecast(model, member_job(analysis)):
        given.append(fields)
        then.append(fields.copy())

    assert np.array_equal(given, then)
    assert not np.array_equal(given[1], given[2])


class InPlace(SyntheticFCN3):
    """Overwrites what it was given, as Earth2Studio's FCN3 does."""

    def create_iterator(self, x: Floats, coords: Any) -> Iterator[tuple[Floats, Any]]:
        yield x, coords
        for state, given in super().create_iterator(x.copy(), coords):
            x[:] = state
            yield x, given


def test_the_initial_conditions_are_the_same_for_the_next_member(analysis: Path) -> None:
    before = analysis.read_bytes()
    model = InPlace(n_lat=GRID.n_lat, n_lon=GRID.n_lon)
    first = list(forecast(model, member_job(analysis)))
    again = list(forecast(model, member_job(analysis)))

    assert np.array_equal(first, again)
    assert not np.array_equal(first[0], first[4])
    assert analysis.read_bytes() == before


def test_a_member_is_its_seed_whatever_ran_before(model: SyntheticFCN3, analysis: Path) -> None:
    members = [list(forecast(model, member_job(analysis, member=m))) for m in range(len(SEEDS))]

    assert np.array_equal(members[0], members[2])
    assert not np.array_equal(members[0], members[1])
    assert np.array_equal(members[1], plain_loop(member_job(analysis, member=1)))


@pytest.mark.parametrize("step", [1, 3])
def test_goes_on_from_a_checkpoint_as_if_nothing_had_been(analysis: Path, step: int) -> None:
    job, found = member_job(analysis), list[Checkpoint]()
    stopped = SyntheticFCN3(n_lat=GRID.n_lat, n_lon=GRID.n_lon)

    def keep(index: int, fields: Floats) -> None:
        internal = internal_state(stopped)
        assert internal is not None
        if index == step:
            found.append(Checkpoint(index, "", fields.copy(), internal))

    list(forecast(stopped, job, keep=keep))
    [checkpoint] = found
    other = SyntheticFCN3(n_lat=GRID.n_lat, n_lon=GRID.n_lon)
    list(forecast(other, member_job(analysis, 1)))
    given = list(forecast(other, job, checkpoint=checkpoint))
    assert np.array_equal(given, plain_loop(job)[step + 1 :])


def test_a_start_in_another_zone_is_the_same_start(model: SyntheticFCN3, analysis: Path) -> None:
    zone = timezone(timedelta(hours=5, minutes=30))
    local = member_job(analysis, start_time=datetime(2025, 1, 1, 11, 30, tzinfo=zone))

    assert np.array_equal(list(forecast(model, local)), list(forecast(model, member_job(analysis))))


def options(grid: Grid = GRID, **changes: Any) -> FCN3Options:
    return FCN3Options(
        grid=grid,
        **{
            "loader": LoaderOptions(
                name="fcn3",
                loader="deployments.synthetic.fcn3:load_fcn3",
                options=GRID.model_dump(),
            ),
            "input_variables": VARIABLES,
            "window_steps": 2,
            **changes,
        },
    )


class WithoutState(SyntheticFCN3):
    def internal_state(self) -> dict[str, NDArray[Any]]:
        raise AttributeError("another makani")


def load_without_state(device: str, **grid: int) -> WithoutState:
    return WithoutState(device, **grid)


class OtherCoordinates(SyntheticFCN3):
    def __init__(self, **changes: Any) -> None:
        super().__init__(n_lat=GRID.n_lat, n_lon=GRID.n_lon)
        self._changes = changes

    def input_coords(self) -> OrderedDict[str, Any]:
        coords = super().input_coords()
        coords.update(self._changes)
        return coords


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"variable": np.array([*VARIABLES[1:], "d2m"])}, r"variables differ: \['d2m', 'u10m'\]"),
        ({"variable": np.array(VARIABLES[::-1])}, "variables differ: in another order"),
        ({"lat": np.linspace(90, -90, 7)}, r"7 values of lat .*configured .* 6 from 90 to -90"),
        ({"lat": np.linspace(-90, 90, 6)}, r"6 values of lat from -90 to 90;.*6 from 90 to -90"),
        ({"lon": np.linspace(-180, 180, 8, endpoint=False)}, r"8 values of lon from -180 to 135;"),
    ],
)
def test_a_model_with_other_coordinates_is_refused(changes: Any, reason: str) -> None:
    with pytest.raises(ModelUnavailable, match=reason):
        check_coordinates(OtherCoordinates(**changes), GRID, VARIABLES)


def test_a_model_with_the_configured_coordinates_is_taken(model: SyntheticFCN3) -> None:
    check_coordinates(model, GRID, VARIABLES)


class Packager:
    """Keeps steps in memory; `before` is awaited with member and time index."""

    def __init__(self) -> None:
        self.steps: dict[tuple[int, int], Floats] = {}
        self.checkpoints: dict[int, Checkpoint] = {}
        self.no_checkpoints: Exception | None = None
        self.unread: list[Exception] = []
        self.undropped: Exception | None = None
        self.gate = asyncio.Event()
        self.gate.set()
        self.refusal: Exception | None = None

    async def write_step(
        self, execution_id: str, fence: int, member: int, time_index: int, fields: Floats
    ) -> None:
        await self.gate.wait()
        if self.refusal is not None:
            raise self.refusal
        # What is written is used again for the next step.
        self.steps[member, time_index] = fields.copy()

    async def write_checkpoint(
        self, execution_id: str, fence: int, member: int, checkpoint: Checkpoint
    ) -> None:
        if self.no_checkpoints is not None:
            raise self.no_checkpoints
        assert {(member, step) for step in range(checkpoint.step + 1)} <= self.steps.keys()
        self.checkpoints[member] = replace(checkpoint, state=checkpoint.state.copy())

    async def read_checkpoint(self, execution_id: str, member: int) -> Checkpoint | None:
        if self.unread:
            raise self.unread.pop()
        return self.checkpoints.get(member)

    async def drop_checkpoints(self, execution_id: str, fence: int, member: int) -> None:
        if self.undropped is not None:
            raise self.undropped
        self.checkpoints.pop(member, None)


@pytest.fixture
def packager() -> Packager:
    return Packager()


@pytest.fixture
async def replica(packager: Packager) -> Any:
    deployment = FCN3.func_or_class  # type: ignore[attr-defined]
    made = deployment.__new__(deployment)
    await made.__init__(options(), Handle(packager))
    return made


async def outcome(told: Any) -> list[int]:
    return [progress.written async for progress in told]


async def test_jobs_at_once_do_not_disturb_each_other(
    replica: Any, packager: Packager, analysis: Path
) -> None:
    jobs = [member_job(analysis, member) for member in range(len(SEEDS))]
    told = await asyncio.gather(*(outcome(replica.forecast_member(job)) for job in jobs))

    assert [written[-1] for written in told] == [5, 5, 5]
    for job in jobs:
        given = [packager.steps[job.member, time] for time in range(5)]
        assert np.array_equal(given, plain_loop(job))


async def replica_with(packager: Packager, **changes: Any) -> Any:
    deployment = FCN3.func_or_class  # type: ignore[attr-defined]
    made = deployment.__new__(deployment)
    await made.__init__(options(**changes), Handle(packager))
    return made


async def interrupted(packager: Packager, analysis: Path) -> None:
    """Compute member 1 until there is a checkpoint of it, and stop there."""
    replica = await replica_with(packager, checkpoint_steps=2)
    told = replica.forecast_member(member_job(analysis, member=1, n_steps=3000))
    async with aclosing(told):
        async for _ in told:
            if packager.checkpoints:
                break
    assert packager.checkpoints[1].step % 2 == 0


async def test_an_interrupted_member_goes_on_in_another_replica(
    packager: Packager, analysis: Path
) -> None:
    await interrupted(packager, analysis)
    at = packager.checkpoints[1].step
    packager.steps.clear()
    job = member_job(analysis, member=1, n_steps=at + 5)
    another = await replica_with(packager, checkpoint_steps=2)
    assert (await outcome(another.forecast_member(job)))[-1] == at + 6
    assert packager.steps.keys() == {(1, step) for step in range(at + 1, at + 6)}
    given = [packager.steps[1, step] for step in range(at + 1, at + 6)]
    assert np.array_equal(given, plain_loop(job)[at + 1 :])
    assert not packager.checkpoints


@pytest.mark.parametrize(("member", "changes"), [(1, {"origin": "another model"}), (2, {})])
async def test_a_checkpoint_of_another_model_or_member_is_left_alone(
    packager: Packager,
    analysis: Path,
    caplog: pytest.LogCaptureFixture,
    member: int,
    changes: dict[str, Any],
) -> None:
    await interrupted(packager, analysis)
    packager.checkpoints[member] = replace(packager.checkpoints.pop(1), **changes)
    packager.steps.clear()
    another = await replica_with(packager, checkpoint_steps=2)
    job = member_job(analysis, member=member)
    assert (await outcome(another.forecast_member(job)))[-1] == 5
    assert np.array_equal([packager.steps[member, step] for step in range(5)], plain_loop(job))
    assert "begins anew: its checkpoint is of another model" in caplog.text


async def test_no_member_fails_for_want_of_a_checkpoint(
    packager: Packager, analysis: Path, caplog: pytest.LogCaptureFixture
) -> None:
    packager.no_checkpoints = StageFailed("package", "no space left on the disk")
    replica = await replica_with(packager, checkpoint_steps=2)
    job = member_job(analysis)
    assert (await outcome(replica.forecast_member(job)))[-1] == 5
    assert np.array_equal([packager.steps[0, step] for step in range(5)], plain_loop(job))
    assert "no checkpoint at step 2" in caplog.text


async def test_a_member_goes_on_although_the_packager_died_as_it_was_asked(
    packager: Packager, analysis: Path
) -> None:
    """As an error of this replica's that would be no death, and not be tried again."""
    await interrupted(packager, analysis)
    at = packager.checkpoints[1].step
    packager.steps.clear()
    packager.unread = [ActorDiedError()]
    another = await replica_with(packager, checkpoint_steps=2)
    job = member_job(analysis, member=1, n_steps=at + 5)
    assert (await outcome(another.forecast_member(job)))[-1] == at + 6
    assert packager.steps.keys() == {(1, step) for step in range(at + 1, at + 6)}


async def test_a_checkpoint_that_cannot_be_read_or_removed_costs_no_member(
    packager: Packager, analysis: Path, caplog: pytest.LogCaptureFixture
) -> None:
    await interrupted(packager, analysis)
    packager.steps.clear()
    packager.unread = [OSError(5, "Input/output error")]
    packager.undropped = ActorDiedError()
    another = await replica_with(packager, checkpoint_steps=2)
    job = member_job(analysis, member=1)
    assert (await outcome(another.forecast_member(job)))[-1] == 5
    assert np.array_equal([packager.steps[1, step] for step in range(5)], plain_loop(job))
    assert "begins anew: no checkpoint read" in caplog.text
    assert "checkpoints of member 1 stay for now" in caplog.text


async def test_a_checkpoint_that_the_model_does_not_take_is_removed(
    packager: Packager, analysis: Path
) -> None:
    """Or a retry would end like every attempt before."""
    await interrupted(packager, analysis)
    packager.steps.clear()
    packager.checkpoints[1] = replace(packager.checkpoints[1], internal={})
    another = await replica_with(packager, checkpoint_steps=2)
    job = member_job(analysis, member=1)
    with pytest.raises(TransientFailure, match="member 1 begins anew"):
        await outcome(another.forecast_member(job))
    assert not packager.checkpoints
    assert (await outcome(another.forecast_member(job)))[-1] == 5
    assert np.array_equal([packager.steps[1, step] for step in range(5)], plain_loop(job))


async def test_a_model_that_does_not_give_its_state_fails_no_member(
    packager: Packager,
    analysis: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    loader = LoaderOptions(
        name="fcn3", loader=f"{__name__}:load_without_state", options=GRID.model_dump()
    )
    replica = await replica_with(packager, checkpoint_steps=2, loader=loader)
    job = member_job(analysis)
    assert (await outcome(replica.forecast_member(job)))[-1] == 5
    assert "no checkpoint at step 2" in caplog.text


async def test_says_which_model_it_is(replica: Any) -> None:
    assert await replica.describe() == {
        "name": "fcn3",
        "loader": "deployments.synthetic.fcn3:load_fcn3",
        "synthetic": True,
        "weights": "none (synthetic)",
    }


@pytest.mark.parametrize("how", ["cancelled", "closed"])
async def test_a_caller_that_goes_away_frees_the_model_though_nothing_can_be_written(
    replica: Any, packager: Packager, analysis: Path, how: str
) -> None:
    packager.gate.clear()
    told = replica.forecast_member(member_job(analysis, n_steps=300))
    if how == "cancelled":
        waiting = asyncio.create_task(outcome(told))
        await asyncio.sleep(0.3)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
    else:
        assert (await anext(told)).written == 0
        await told.aclose()
    # Nothing of it is written any more, and the model is free.
    packager.gate.set()
    assert (await outcome(replica.forecast_member(member_job(analysis, member=1))))[-1] == 5
    assert {member for member, _ in packager.steps} == {1}


async def test_a_step_that_is_refused_ends_the_member_with_the_reason(
    replica: Any, packager: Packager, analysis: Path
) -> None:
    packager.refusal = StageFailed("package", "no space left on the disk")
    with pytest.raises(StageFailed, match="no space left on the disk"):
        await outcome(replica.forecast_member(member_job(analysis, n_steps=300)))
    packager.refusal = None
    assert (await outcome(replica.forecast_member(member_job(analysis))))[-1] == 5


async def test_an_older_conductor_is_refused(replica: Any, analysis: Path) -> None:
    await outcome(replica.forecast_member(member_job(analysis, fence=2)))
    with pytest.raises(StaleConductor):
        await outcome(replica.forecast_member(member_job(analysis, fence=1)))


async def test_a_model_that_does_not_fit_is_a_reason_not_a_crash(
    packager: Packager, analysis: Path
) -> None:
    deployment = FCN3.func_or_class  # type: ignore[attr-defined]
    replica = deployment.__new__(deployment)
    await replica.__init__(options(grid=Grid(n_lat=7, n_lon=8)), Handle(packager))

    with pytest.raises(ModelUnavailable, match="6 values of lat"):
        await replica.describe()
    with pytest.raises(ModelUnavailable, match="6 values of lat"):
        await outcome(replica.forecast_member(member_job(analysis)))


async def test_initial_conditions_of_another_machine_come_by_handle(
    packager: Packager, analysis: Path, tmp_path: Path
) -> None:
    class Source:
        async def read(self, plan: Any, execution_id: str) -> Any:
            state = np.load(analysis)
            # As they come out of Ray's object store.
            state.flags.writeable = False
            return state, None

    deployment = FCN3.func_or_class  # type: ignore[attr-defined]
    replica = deployment.__new__(deployment)
    await replica.__init__(options(), Handle(packager), Handle(Source()))
    job = member_job(tmp_path / "elsewhere" / "ifs.npy")
    assert (await outcome(replica.forecast_member(job)))[-1] == 5
    given = [packager.steps[0, time] for time in range(5)]
    assert np.array_equal(given, plain_loop(member_job(analysis)))
