"""The rollout of FCN3, on a tiny synthetic model. The real wrapper is in tests/models."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deployments.models.fcn3_rollout import check_coordinates
from deployments.models.random_numbers import RandomNumbers
from deployments.models.state import internal_state
from deployments.results.checkpoint import Checkpoint
from deployments.synthetic.fcn3 import SyntheticFCN3
from tests.deployments.models.fcn3_replicas import (
    GRID,
    SEEDS,
    Floats,
    member_job,
    plain_loop,
    rollout,
    synthetic_fcn3,
)
from workflows.errors import ModelUnavailable
from workflows.fcn3 import VARIABLES


def test_equals_a_plain_loop(model: SyntheticFCN3, analysis: Path) -> None:
    job = member_job(analysis, variables=("z500", "t2m", "u10m"))
    steps = list(rollout(model, job))

    assert len(steps) == 5
    assert all(fields.dtype == np.float32 for fields in steps)
    assert np.array_equal(steps, plain_loop(job))


def test_starts_with_the_initial_conditions_of_the_requested_variables(
    model: SyntheticFCN3, analysis: Path
) -> None:
    first = next(rollout(model, member_job(analysis, variables=("z500", "t2m"))))

    state = np.load(analysis)
    assert np.array_equal(first[0], state[VARIABLES.index("z500")])
    assert np.array_equal(first[1], state[VARIABLES.index("t2m")])


def test_yielded_fields_are_not_overwritten(model: SyntheticFCN3, analysis: Path) -> None:
    steps, copies = [], []
    for fields in rollout(model, member_job(analysis)):
        steps.append(fields)
        copies.append(fields.copy())

    assert np.array_equal(steps, copies)
    assert not np.array_equal(steps[1], steps[2])


class InPlace(SyntheticFCN3):
    """Overwrites its input, as Earth2Studio's FCN3 does."""

    def create_iterator(self, x: Floats, coords: Any) -> Iterator[tuple[Floats, Any]]:
        for state, given in super().create_iterator(x.copy(), coords):
            x[:] = state
            yield x, given


def test_initial_conditions_survive_a_model_that_overwrites_its_input(analysis: Path) -> None:
    before = analysis.read_bytes()
    model = InPlace(n_lat=GRID.n_lat, n_lon=GRID.n_lon)
    first = list(rollout(model, member_job(analysis)))
    again = list(rollout(model, member_job(analysis)))

    assert np.array_equal(first, again)
    assert not np.array_equal(first[0], first[4])
    assert analysis.read_bytes() == before


def test_a_member_depends_on_its_seed_alone(model: SyntheticFCN3, analysis: Path) -> None:
    members = [list(rollout(model, member_job(analysis, member=m))) for m in range(len(SEEDS))]

    assert np.array_equal(members[0], members[2])
    assert not np.array_equal(members[0], members[1])
    assert np.array_equal(members[1], plain_loop(member_job(analysis, member=1)))


@pytest.mark.parametrize("step", [1, 3])
def test_a_resumed_member_equals_an_uninterrupted_one(analysis: Path, step: int) -> None:
    job, saved = member_job(analysis), list[Checkpoint]()
    interrupted = synthetic_fcn3()

    def save(index: int, fields: Floats, numbers: RandomNumbers) -> None:
        internal = internal_state(interrupted, numbers)
        assert internal is not None
        if index == step:
            saved.append(Checkpoint(index, "", fields.copy(), internal))

    list(rollout(interrupted, job, save=save))
    [checkpoint] = saved
    other = synthetic_fcn3()
    list(rollout(other, member_job(analysis, 1)))
    steps = list(rollout(other, job, checkpoint))
    assert np.array_equal(steps, plain_loop(job)[step + 1 :])


def test_the_time_zone_of_the_start_does_not_matter(model: SyntheticFCN3, analysis: Path) -> None:
    zone = timezone(timedelta(hours=5, minutes=30))
    local = member_job(analysis, start_time=datetime(2025, 1, 1, 11, 30, tzinfo=zone))

    assert np.array_equal(list(rollout(model, local)), list(rollout(model, member_job(analysis))))


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
        (
            {"lat": np.linspace(90, -90, 7)},
            r"7 values of lat .*configured .* 6 values of lat from 90 to -90",
        ),
        (
            {"lat": np.linspace(-90, 90, 6)},
            r"6 values of lat from -90 to 90;.*6 values of lat from 90 to -90",
        ),
        ({"lon": np.linspace(-180, 180, 8, endpoint=False)}, r"8 values of lon from -180 to 135;"),
    ],
)
def test_a_model_with_other_coordinates_is_refused(changes: Any, reason: str) -> None:
    with pytest.raises(ModelUnavailable, match=reason):
        check_coordinates(OtherCoordinates(**changes), GRID, VARIABLES)


def test_a_model_with_the_configured_coordinates_is_accepted(model: SyntheticFCN3) -> None:
    check_coordinates(model, GRID, VARIABLES)
