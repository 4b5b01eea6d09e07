"""Parameters of FCN3: accepted and refused values, and the plan."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import numpy as np
import pytest

from workflows import FCN3Workflow, Grid
from workflows.base import MAX_UNKNOWN, SEED_BOUND, Plan
from workflows.errors import InvalidParameters
from workflows.fcn3 import VARIABLES

WORKFLOW = FCN3Workflow()


def plan(**parameters: Any) -> Plan:
    return WORKFLOW.plan(WORKFLOW.validate(parameters))  # type: ignore[arg-type]


def test_defaults_are_those_of_earth2studio() -> None:
    made = plan()
    assert made.start_time == datetime(2025, 1, 1, tzinfo=UTC)
    assert (made.n_steps, len(made.seeds), made.output_format) == (12, 4, "netcdf4")
    assert made.variables == ("t2m", "u10m", "v10m")
    assert made.input_variables == VARIABLES
    assert made.n_times == 13
    assert made.end_time() == datetime(2025, 1, 4, tzinfo=UTC)
    np.testing.assert_array_equal(made.lead_times()[:2], np.array([0, 6], "timedelta64[h]"))


@pytest.mark.parametrize(
    ("given", "utc"),
    [
        ("2025-06-01T06:00:00", datetime(2025, 6, 1, 6, tzinfo=UTC)),
        ("2025-06-01 06:00", datetime(2025, 6, 1, 6, tzinfo=UTC)),
        ("2025-06-01T06:00:00Z", datetime(2025, 6, 1, 6, tzinfo=UTC)),
        ("2025-06-01T08:00:00+02:00", datetime(2025, 6, 1, 6, tzinfo=UTC)),
        ("2025-05-31T19:00:00-05:00", datetime(2025, 6, 1, 0, tzinfo=UTC)),
    ],
)
def test_times_are_converted_to_utc(given: str, utc: datetime) -> None:
    assert plan(start_time=given).start_time == utc
    assert plan(start_time=given).start() == np.datetime64(utc.replace(tzinfo=None))


@pytest.mark.parametrize(
    ("parameters", "field", "words"),
    [
        ({"start_time": "2025-01-01"}, "start_time", "must have a date and a time"),
        ({"start_time": "2025-01-01T03:00:00"}, "start_time", "00, 06, 12 and 18 UTC"),
        ({"start_time": "2025-01-01T06:00:00+01:00"}, "start_time", "00, 06, 12 and 18 UTC"),
        ({"start_time": "2025-02-30T00:00:00"}, "start_time", "not an ISO 8601 time"),
        ({"start_time": "0001-01-01T00:00:00"}, "start_time", "between 1900 and 2199"),
        ({"start_time": 0}, "start_time", "must be ISO 8601 text"),
        ({"n_steps": 0}, "n_steps", "greater than or equal to 1"),
        ({"n_steps": 401}, "n_steps", "less than or equal to 400"),
        ({"n_steps": 10**9}, "n_steps", "less than or equal to 400"),
        ({"n_steps": True}, "n_steps", "not true or false"),
        ({"n_steps": 1.5}, "n_steps", "valid integer"),
        ({"n_steps": float("nan")}, "n_steps", "finite number"),
        ({"n_samples": 33}, "n_samples", "less than or equal to 32"),
        ({"seeds": []}, "seeds", "at least 1 item"),
        ({"seeds": list(range(33))}, "seeds", "at most 32 items"),
        ({"seeds": [-1]}, "seeds.0", "greater than or equal to 0"),
        ({"seeds": [SEED_BOUND]}, "seeds.0", "less than 4294967296"),
        ({"seeds": [1, 2], "n_samples": 3}, "", "seeds has 2 entries but n_samples is 3"),
        ({"variables": []}, "variables", "at least 1 item"),
        ({"variables": ["t2m", "t2m"]}, "variables", "repeated: t2m"),
        ({"variables": ["snow"]}, "variables", "unknown: snow; allowed are u10m"),
        ({"output_format": "grib"}, "output_format", "'zarr' or 'netcdf4'"),
        ({"nsteps": 3}, "nsteps", "n_steps"),
    ],
)
def test_invalid_values_are_refused_by_field(
    parameters: dict[str, Any], field: str, words: str
) -> None:
    with pytest.raises(InvalidParameters) as refused:
        plan(**parameters)
    [problem] = refused.value.problems
    assert problem.field == ".".join(filter(None, ["parameters", field]))
    assert words in problem.message


def test_only_some_unknown_parameters_are_reported_but_all_invalid_ones() -> None:
    many = {f"unknown{i}": i for i in range(2 * MAX_UNKNOWN)}
    with pytest.raises(InvalidParameters) as caught:
        WORKFLOW.validate({**many, "n_steps": "many", "n_samples": 0})
    kinds = [problem.kind for problem in caught.value.problems]
    assert kinds.count("extra_forbidden") == MAX_UNKNOWN
    fields = {problem.field for problem in caught.value.problems}
    assert {"parameters.n_steps", "parameters.n_samples"} <= fields


def test_the_number_of_seeds_is_the_number_of_members() -> None:
    assert plan(seeds=[5, 5, 0]).seeds == (5, 5, 0)
    assert plan(seeds=[3, 4], n_samples=2).seeds == (3, 4)


def test_drawn_seeds_are_distinct_and_differ_between_plans() -> None:
    first, second = plan(n_samples=32), plan(n_samples=32)
    assert len(set(first.seeds)) == 32
    assert first.seeds != second.seeds
    assert all(0 <= seed < SEED_BOUND for seed in first.seeds)


def test_numeric_text_is_accepted_as_by_earth2studio() -> None:
    assert plan(n_steps="3", n_samples="2").n_steps == 3


def test_null_keeps_all_variables() -> None:
    assert plan(variables=None).variables == VARIABLES


def test_a_plan_knows_the_size_of_its_result() -> None:
    large = plan(n_samples=32, n_steps=400, variables=None)
    assert large.output_bytes == 32 * 401 * 72 * 721 * 1440 * 4
    small = FCN3Workflow(Grid(n_lat=8, n_lon=16))
    assert small.plan(small.validate({"n_steps": 1, "n_samples": 1})).output_bytes == 2 * 3 * 512  # type: ignore[arg-type]


def test_a_plan_survives_json() -> None:
    made = plan(seeds=[1])
    assert Plan.model_validate_json(made.model_dump_json()) == made
