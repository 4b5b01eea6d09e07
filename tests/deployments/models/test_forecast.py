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
from deployments.models.description import describe_model
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
from workflows.errors import ModelUnavailable
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
