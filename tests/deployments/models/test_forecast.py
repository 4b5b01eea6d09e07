"""Members by Earth2Studio's own models, compared with Earth2Studio's own loops."""

from __future__ import annotations

from collections import OrderedDict
from datetime import UTC, datetime
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from deployments.models.buffer_pool import BufferPool
from deployments.models.description import check_plan, describe_model
from deployments.models.forecast import Forecaster
from deployments.models.messages import MemberJob
from deployments.models.random_numbers import RandomNumbers
from deployments.models.state import internal_state
from deployments.results.checkpoint import Checkpoint
from tests.deployments.results.samples import make_plan
from tests.models.earth2studio_models import (
    VARIABLES,
    drawing,
    persistence,
    random_source,
)
from workflows.errors import ModelUnavailable, StageFailed
from workflows.grids import Grid, LatLonGrid

START = datetime(2025, 1, 1, tzinfo=UTC)
SEEDS = (3, 14, 15)
Floats = NDArray[np.float32]


def job_of(model: Any, member: int = 0, **changes: Any) -> MemberJob:
    described = describe_model(model)
    plan = make_plan(
        seeds=SEEDS,
        n_steps=5,
        **{
            "variables": ("u10m", "t2m"),
            "grid": described.grid,
            "start_time": START,
            **changes,
        },
    )
    own = {
        "input_variables": described.input_variables,
        "history_hours": described.history_hours,
        "step_hours": described.step_hours,
    }
    return MemberJob(
        execution_id="exec_1",
        plan=plan.model_copy(update=own),
        member=member,
        initial_conditions="",
        fence=1,
    )


def state_of(job: MemberJob) -> Floats:
    times = [job.plan.start() + np.timedelta64(hour, "h") for hour in job.plan.history_hours]
    fields: Floats = random_source()(np.array(times), list(job.plan.input_variables)).values
    return fields.astype(np.float32)


def members(model: Any, job: MemberJob, **parts: Any) -> Floats:
    """Return the steps of a member, shape (time, variable, lat, lon)."""
    steps = Forecaster(model, **parts).steps(job, state_of(job), BufferPool(), lambda *_: None)
    return np.array([step.copy() for step in steps])


@pytest.mark.parametrize(("history", "step_hours"), [(1, 6), (2, 6), (1, 24), (2, 24)])
def test_equals_earth2studios_own_loop(history: int, step_hours: int) -> None:
    from earth2studio.io import KVBackend
    from earth2studio.run import deterministic

    model = persistence(history, step_hours)
    job = job_of(model)
    io = deterministic(
        [START.replace(tzinfo=None)], 5, model, random_source(), KVBackend(), verbose=False
    )
    own = members(model, job)
    assert own.shape == (6, 2, 19, 36)
    for number, name in enumerate(job.plan.variables):
        assert np.array_equal(own[:, number], np.asarray(io[name])[0])


def test_a_perturbed_member_equals_a_plain_loop_with_its_seed() -> None:
    from earth2studio.perturbation import Gaussian

    model = persistence()
    found = []
    for member, seed in enumerate(SEEDS):
        job = job_of(model, member)
        x = torch.from_numpy(state_of(job)[None])
        coords = model.input_coords()
        del coords["batch"]
        coords = OrderedDict(time=np.array([job.plan.start()]), **coords)
        x, _ = Gaussian(0.5, seed=seed)(x, coords)
        expected = x[0, 0, [VARIABLES.index(name) for name in job.plan.variables]].numpy()
        own = members(model, job, perturbation=partial(Gaussian, 0.5))
        assert np.array_equal(own[0], expected)
        found.append(own)
    assert not np.array_equal(found[0], found[1])


def test_other_draws_change_neither_a_member_nor_are_changed_by_it() -> None:
    model, job = drawing(), job_of(drawing())
    undisturbed = members(model, job)
    assert not np.array_equal(undisturbed[1], undisturbed[2])

    torch.manual_seed(1)
    np.random.seed(1)
    outside = torch.rand(6), np.random.random(6)
    torch.manual_seed(1)
    np.random.seed(1)
    disturbed, drawn = [], []
    steps = Forecaster(model).steps(job, state_of(job), BufferPool(), lambda *_: None)
    for step in steps:
        disturbed.append(step.copy())
        drawn.append((torch.rand(1).item(), np.random.random()))
    assert np.array_equal(disturbed, undisturbed)
    assert [each for each, _ in drawn] == pytest.approx(outside[0].tolist())
    assert [each for _, each in drawn] == pytest.approx(outside[1].tolist())


@pytest.mark.parametrize("load", [drawing, persistence])
def test_a_resumed_member_equals_an_uninterrupted_one(load: Any) -> None:
    model = load()
    job = job_of(model, 1)
    saved: list[Checkpoint] = []

    def save(step: int, fields: Any, numbers: RandomNumbers) -> None:
        if step == 2:
            internal = internal_state(model, numbers)
            assert internal is not None
            saved.append(Checkpoint(step, "", fields.numpy().copy(), internal))

    expected = members(model, job)
    list(Forecaster(model).steps(job, state_of(job), BufferPool(), save))
    members(model, job_of(model, 2))
    resumed = Forecaster(load()).steps(job, saved[0], BufferPool(), lambda *_: None)
    assert np.array_equal([step.copy() for step in resumed], expected[3:])


def test_variables_of_diagnostics_are_selectable() -> None:
    from earth2studio.models.dx import DerivedWS

    model, diagnostic = persistence(), DerivedWS(levels=[500])
    job = job_of(model, variables=("ws500", "t2m"))
    own = members(model, job, diagnostics=[diagnostic])
    state = state_of(job)[0]
    u, v = state[VARIABLES.index("u500")], state[VARIABLES.index("v500")]
    assert np.allclose(own[3, 0], np.hypot(u, v), rtol=1e-6)
    assert np.array_equal(own[3, 1], state[VARIABLES.index("t2m")])


def test_a_model_describes_itself() -> None:
    from earth2studio.models.dx import DerivedWS

    described = describe_model(persistence(2, 24), {"windy": [DerivedWS(levels=[500])]})
    assert described.history_hours == (-24, 0)
    assert described.step_hours == 24
    assert described.grid == described.input_grid == Grid(n_lat=19, n_lon=36)
    assert not described.is_stochastic
    assert described.variables("windy") == (*VARIABLES, "ws500")
    assert described.variables("other") == tuple(VARIABLES)


def test_a_diagnostic_whose_inputs_are_missing_is_named() -> None:
    from earth2studio.models.dx import DerivedWS

    with pytest.raises(ModelUnavailable, match="DerivedWS needs u850, v850, which it does not"):
        describe_model(persistence(), {"windy": [DerivedWS(levels=[850])]})


class Changed:
    """A model with other coordinates."""

    def __init__(self, **changes: Any) -> None:
        self._coords = persistence().input_coords() | changes

    def input_coords(self) -> Any:
        return self._coords

    def output_coords(self, coords: Any) -> Any:
        return coords | {"lead_time": coords["lead_time"] + np.timedelta64(6, "h")}


def test_a_grid_without_the_south_pole_is_described() -> None:
    model = Changed(lat=np.linspace(90.0, -90.0, 18, endpoint=False))
    expected = LatLonGrid(n_lat=18, n_lon=36, first_lat=90.0, last_lat=-80.0, first_lon=0.0)
    assert describe_model(model).grid == expected


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"lat": np.array([90.0, 45.0, 44.0, -90.0])}, "the latitudes are not evenly spaced"),
        ({"lead_time": np.array([np.timedelta64(10, "m")])}, "lead times of|10 minutes is not"),
        ({"lat": np.empty(0), "lon": np.empty(0)}, "no latitudes and longitudes"),
    ],
)
def test_a_model_whose_results_cannot_be_stored_is_unusable(
    changes: dict[str, Any], reason: str
) -> None:
    with pytest.raises(ModelUnavailable, match=reason):
        describe_model(Changed(**changes))


class WithHistoryFirst:
    """Yields all its input times first, as DLESyM does; draws from what its ``set_rng`` sets."""

    numpy_native = False

    def __init__(self, step_hours: int = 6, variables: list[str] = VARIABLES) -> None:
        self._like = persistence(2, 6)
        self._step = np.timedelta64(step_hours, "h")
        self._variables = variables
        self.seeds: list[int] = []

    def input_coords(self) -> Any:
        return self._like.input_coords()

    def output_coords(self, coords: Any) -> Any:
        return self._like.output_coords(coords)

    def set_rng(self, seed: int) -> None:
        self.seeds.append(seed)

    def create_iterator(self, x: Any, coords: Any) -> Any:
        yield x, coords
        coords = coords | {"lead_time": coords["lead_time"][-1:]}
        for step in range(1, 100):
            lead = np.array([step * self._step])
            names = {"variable": np.array(self._variables)}
            yield x[:, -1:, : len(self._variables)] + step, coords | {"lead_time": lead} | names


def test_the_history_that_a_model_yields_is_not_part_of_the_forecast() -> None:
    model = WithHistoryFirst()
    job = job_of(model)
    own = members(model, job)
    now = state_of(job)[1, [VARIABLES.index(name) for name in job.plan.variables]]
    assert np.array_equal(own, [now + np.float32(step) for step in range(6)])
    assert model.seeds == [SEEDS[0]]


def test_a_step_of_another_length_is_refused() -> None:
    model = WithHistoryFirst(step_hours=24)
    with pytest.raises(StageFailed, match="computed 24 h after the start, not 6 h"):
        members(model, job_of(model))


def test_a_variable_that_is_not_computed_is_no_missing_value() -> None:
    model = WithHistoryFirst(variables=VARIABLES[:1])
    with pytest.raises(StageFailed, match="the model computed no u10m"):
        members(model, job_of(model))


@pytest.mark.parametrize(
    ("changes", "difference"),
    [
        ({"step_hours": 24}, "it differs in step"),
        ({"grid": Grid(n_lat=19, n_lon=38)}, "it differs in grid"),
        ({"input_variables": ("t2m",)}, "it differs in input variables"),
        ({"variables": ("t2m", "ws500")}, "it differs in ws500, which it no longer has"),
    ],
)
def test_a_plan_for_another_model_is_refused(changes: dict[str, Any], difference: str) -> None:
    model = persistence()
    plan = job_of(model).plan
    check_plan(plan, describe_model(model))
    with pytest.raises(StageFailed, match=difference):
        check_plan(plan.model_copy(update=changes), describe_model(model))


def test_an_own_seed_of_a_perturbation_does_not_make_all_members_equal() -> None:
    from earth2studio.perturbation import Gaussian

    seeded = partial(Gaussian, 0.5, seed=7)
    model = persistence()
    first, second = (members(model, job_of(model, m), perturbation=seeded) for m in (0, 1))
    assert not np.array_equal(first, second)
