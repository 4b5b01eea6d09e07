"""Parameters of StormScope: accepted and refused values, and the plan."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import numpy as np
import pytest

from workflows import FCN3Workflow, Grid, StormScopeWorkflow
from workflows.base import SEED_BOUND, Conditioning, Plan
from workflows.errors import InvalidParameters
from workflows.fcn3 import VARIABLES as FCN3_VARIABLES
from workflows.fcn3 import FCN3Parameters
from workflows.grids import LambertGrid
from workflows.stormscope import VARIABLES, StormScopeParameters

WORKFLOW = StormScopeWorkflow()


def validated(**parameters: Any) -> StormScopeParameters:
    return WORKFLOW.validate(parameters)  # type: ignore[return-value]


def plan(**parameters: Any) -> Plan:
    return WORKFLOW.plan(validated(**parameters))


def conditioning(made: Plan) -> Conditioning:
    assert made.conditioning is not None
    return made.conditioning


def test_defaults_are_those_of_earth2studio() -> None:
    made = plan()
    assert made.start_time == datetime(2025, 1, 1, 18, tzinfo=UTC)
    assert (made.n_steps, made.step_hours, made.output_format) == (12, 1, "netcdf4")
    assert (len(made.seeds), len(conditioning(made).seeds)) == (1, 1)
    assert made.variables == ("abi01c", "abi02c", "abi03c")
    assert made.n_times == 13
    assert made.end_time() == datetime(2025, 1, 2, 6, tzinfo=UTC)
    np.testing.assert_array_equal(made.lead_times()[:3], np.array([0, 1, 2], "timedelta64[h]"))


def test_a_plan_names_models_and_variables() -> None:
    made = plan()
    assert (made.workflow, made.model, made.data_source) == (WORKFLOW.name, "stormscope", "goes16")
    assert made.input_variables == VARIABLES
    assert made.grid == LambertGrid()
    fcn3 = conditioning(made)
    assert (fcn3.model, fcn3.interpolation, fcn3.data_source) == ("fcn3", "interpolation", "ifs")
    assert fcn3.start_time == datetime(2025, 1, 1, 18, tzinfo=UTC)
    assert fcn3.input_variables == FCN3_VARIABLES
    assert fcn3.variable == "z500"
    assert fcn3.grid == Grid()
    assert {made.model, fcn3.model, fcn3.interpolation} == set(WORKFLOW.models)
    assert {made.data_source, fcn3.data_source} < set(WORKFLOW.data_sources)


@pytest.mark.parametrize(
    ("given", "utc"),
    [
        ("2025-01-01T20:00:00", datetime(2025, 1, 1, 20, tzinfo=UTC)),
        ("2025-01-01 20:00", datetime(2025, 1, 1, 20, tzinfo=UTC)),
        ("2025-01-01T20:00:00Z", datetime(2025, 1, 1, 20, tzinfo=UTC)),
        ("2025-01-01T15:00:00-05:00", datetime(2025, 1, 1, 20, tzinfo=UTC)),
        ("2025-01-02T01:30:00+05:30", datetime(2025, 1, 1, 20, tzinfo=UTC)),
    ],
)
def test_times_are_converted_to_utc(given: str, utc: datetime) -> None:
    assert plan(start_time_stormscope=given).start_time == utc
    assert plan(start_time_stormscope=given).start() == np.datetime64(utc.replace(tzinfo=None))


def test_fcn3s_start_is_converted_to_utc() -> None:
    made = plan(start_time_fcn3="2025-01-01T19:00:00+01:00")
    assert conditioning(made).start_time == datetime(2025, 1, 1, 18, tzinfo=UTC)
    assert conditioning(made).start() == np.datetime64("2025-01-01T18")


@pytest.mark.parametrize(
    "start", ["2025-01-01T18:00:00", "2025-01-02T06:00:00", "2025-01-02T01:00:00-05:00"]
)
def test_the_nowcast_may_start_up_to_12_hours_after_fcn3(start: str) -> None:
    assert plan(start_time_stormscope=start).n_steps == 12


@pytest.mark.parametrize(
    ("parameters", "field", "words"),
    [
        ({"start_time_fcn3": "2025-01-01"}, "start_time_fcn3", "must have a date and a time"),
        ({"start_time_fcn3": "2025-01-01T15:00:00"}, "start_time_fcn3", "00, 06, 12 and 18 UTC"),
        ({"start_time_fcn3": "2025-01-01T18:30:00"}, "start_time_fcn3", "00, 06, 12 and 18 UTC"),
        (
            {"start_time_fcn3": "2025-01-01T18:00:00+01:00"},
            "start_time_fcn3",
            "00, 06, 12 and 18 UTC",
        ),
        ({"start_time_fcn3": 0}, "start_time_fcn3", "must be ISO 8601 text"),
        (
            {"start_time_stormscope": "2025-01-01"},
            "start_time_stormscope",
            "must have a date and a time",
        ),
        (
            {"start_time_stormscope": "2025-01-01T18:30:00"},
            "start_time_stormscope",
            "must be a full hour",
        ),
        (
            {"start_time_stormscope": "2025-01-01T18:00:01"},
            "start_time_stormscope",
            "must be a full hour",
        ),
        (
            {"start_time_stormscope": "2025-01-01T18:00:00.000001"},
            "start_time_stormscope",
            "must be a full hour",
        ),
        (
            {"start_time_stormscope": "2025-01-01T18:00:00+05:30"},
            "start_time_stormscope",
            "must be a full hour",
        ),
        (
            {"start_time_stormscope": "2200-01-01T18:00:00"},
            "start_time_stormscope",
            "between 1900 and 2199",
        ),
        (
            {"start_time_stormscope": "2025-01-01T16:00:00"},
            "",
            "start_time_stormscope must be between start_time_fcn3 and 12 h after it; it is "
            "2 h before it",
        ),
        ({"start_time_stormscope": "2025-01-02T07:00:00"}, "", "it is 13 h after it"),
        ({"start_time_stormscope": "2025-01-02T02:00:00-05:00"}, "", "it is 13 h after it"),
        # The other start time keeps its default.
        ({"start_time_fcn3": "2025-01-02T00:00:00"}, "", "it is 6 h before it"),
        ({"n_steps": 0}, "n_steps", "greater than or equal to 1"),
        ({"n_steps": 33}, "n_steps", "less than or equal to 32"),
        ({"n_steps": True}, "n_steps", "not true or false"),
        ({"n_steps": 1.5}, "n_steps", "valid integer"),
        ({"n_steps": float("nan")}, "n_steps", "finite number"),
        ({"n_samples_fcn3": 0}, "n_samples_fcn3", "greater than or equal to 1"),
        ({"n_samples_fcn3": 33}, "n_samples_fcn3", "less than or equal to 32"),
        ({"n_samples_fcn3": True}, "n_samples_fcn3", "not true or false"),
        ({"n_samples_stormscope": 0}, "n_samples_stormscope", "greater than or equal to 1"),
        ({"n_samples_stormscope": 33}, "n_samples_stormscope", "less than or equal to 32"),
        ({"n_samples_stormscope": False}, "n_samples_stormscope", "not true or false"),
        ({"seeds_fcn3": []}, "seeds_fcn3", "at least 1 item"),
        ({"seeds_fcn3": list(range(33))}, "seeds_fcn3", "at most 32 items"),
        ({"seeds_fcn3": [-1]}, "seeds_fcn3.0", "greater than or equal to 0"),
        ({"seeds_fcn3": [0, SEED_BOUND]}, "seeds_fcn3.1", "less than 4294967296"),
        ({"seeds_fcn3": [True]}, "seeds_fcn3.0", "not true or false"),
        ({"seeds_stormscope": []}, "seeds_stormscope", "at least 1 item"),
        ({"seeds_stormscope": list(range(33))}, "seeds_stormscope", "at most 32 items"),
        ({"seeds_stormscope": [-1]}, "seeds_stormscope.0", "greater than or equal to 0"),
        ({"seeds_stormscope": [0, SEED_BOUND]}, "seeds_stormscope.1", "less than 4294967296"),
        ({"seeds_stormscope": [True]}, "seeds_stormscope.0", "not true or false"),
        (
            {"seeds_fcn3": [1, 2], "n_samples_fcn3": 1},
            "",
            "seeds_fcn3 has 2 entries but n_samples_fcn3 is 1; omit one of them, or make "
            "them agree",
        ),
        (
            {"seeds_stormscope": [1, 2], "n_samples_stormscope": 3},
            "",
            "seeds_stormscope has 2 entries but n_samples_stormscope is 3; omit one of them",
        ),
        (
            {"n_samples_fcn3": 2, "n_samples_stormscope": 3},
            "",
            "StormScope's 3 members cannot be distributed evenly among FCN3's 2: "
            "n_samples_stormscope (or the number of seeds_stormscope) must be a multiple of "
            "n_samples_fcn3 (or the number of seeds_fcn3)",
        ),
        (
            {"n_samples_fcn3": 4, "n_samples_stormscope": 2},
            "",
            "StormScope's 2 members cannot be distributed evenly among FCN3's 4",
        ),
        # The default of n_samples_fcn3 does not conflict with seeds.
        (
            {"n_samples_fcn3": 2, "n_samples_stormscope": 1},
            "",
            "StormScope's 1 members cannot be distributed evenly among FCN3's 2",
        ),
        (
            {"seeds_fcn3": [1, 2], "seeds_stormscope": [1, 2, 3]},
            "",
            "StormScope's 3 members cannot be distributed evenly among FCN3's 2",
        ),
        (
            {"n_samples_fcn3": 3, "seeds_stormscope": [1, 2, 3, 4]},
            "",
            "StormScope's 4 members cannot be distributed evenly among FCN3's 3",
        ),
        (
            {"seeds_fcn3": [1, 2, 3], "n_samples_stormscope": 4},
            "",
            "StormScope's 4 members cannot be distributed evenly among FCN3's 3",
        ),
        ({"variables": []}, "variables", "at least 1 item"),
        ({"variables": ["abi01c"] * 9}, "variables", "at most 8 items"),
        ({"variables": ["abi01c", "abi13c", "abi01c"]}, "variables", "repeated: abi01c"),
        (
            {"variables": ["abi01c", "abi04c", "t2m"]},
            "variables",
            "unknown: abi04c, t2m; allowed are abi01c, abi02c, abi03c, abi07c, abi08c, abi09c, "
            "abi10c, abi13c",
        ),
        ({"output_format": "grib"}, "output_format", "'zarr' or 'netcdf4'"),
        ({"start_time": "2025-01-01T18:00:00"}, "start_time", "start_time_fcn3, start_time_storm"),
        ({"time_layout": "lead_time"}, "time_layout", "unknown; there are"),
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


@pytest.mark.parametrize(
    ("start", "satellite"),
    [
        ("2025-04-06T23:00:00Z", "goes16"),
        ("2025-04-07T00:00:00Z", "goes19"),
        ("2025-04-06T20:00:00-04:00", "goes19"),
        ("2025-04-07T01:00:00+02:00", "goes16"),
    ],
)
def test_the_image_comes_from_the_satellite_that_was_goes_east(start: str, satellite: str) -> None:
    made = plan(start_time_fcn3="2025-04-06T18:00:00Z", start_time_stormscope=start)
    assert made.data_source == satellite


@pytest.mark.parametrize(
    ("start", "n_steps", "hours"),
    [
        ("2025-01-01T18:00:00", 1, range(1)),
        ("2025-01-01T18:00:00", 12, range(12)),
        ("2025-01-01T23:00:00", 3, range(5, 8)),
        ("2025-01-02T06:00:00", 32, range(12, 44)),
    ],
)
def test_each_step_is_conditioned_on_the_hour_at_which_it_starts(
    start: str, n_steps: int, hours: range
) -> None:
    assert plan(start_time_stormscope=start, n_steps=n_steps).conditioning_hours == hours


def test_each_member_of_fcn3_conditions_consecutive_members() -> None:
    made = plan(n_samples_fcn3=2, n_samples_stormscope=6)
    assert conditioning(made).members == range(2)
    assert [made.conditioned_by(member) for member in made.members] == [0, 0, 0, 1, 1, 1]
    alone = plan(n_samples_fcn3=3, n_samples_stormscope=3)
    assert [alone.conditioned_by(member) for member in alone.members] == [0, 1, 2]


def test_a_forecast_of_fcn3_is_not_conditioned() -> None:
    made = FCN3Workflow().plan(FCN3Parameters())
    assert made.conditioning is None
    assert made.conditioning_hours == range(0)
    with pytest.raises(ValueError, match="foundry_fcn3_workflow is not conditioned"):
        made.conditioned_by(0)


@pytest.mark.parametrize(
    ("parameters", "fcn3", "stormscope"),
    [
        ({"n_samples_fcn3": 3}, 3, 3),
        ({"n_samples_stormscope": 3}, 1, 3),
        ({"n_samples_fcn3": 2, "n_samples_stormscope": 4}, 2, 4),
        ({"seeds_fcn3": [5, 5]}, 2, 2),
        ({"seeds_stormscope": [5, 5, 0]}, 1, 3),
        ({"seeds_fcn3": [1, 2], "n_samples_stormscope": 4}, 2, 4),
        ({"n_samples_fcn3": 2, "seeds_stormscope": [1, 2]}, 2, 2),
        ({"n_samples_fcn3": 32}, 32, 32),
        ({"n_samples_fcn3": "2", "n_samples_stormscope": "4"}, 2, 4),
    ],
)
def test_counts_and_seeds_determine_the_number_of_members(
    parameters: dict[str, Any], fcn3: int, stormscope: int
) -> None:
    made = plan(**parameters)
    assert (len(conditioning(made).seeds), len(made.seeds)) == (fcn3, stormscope)


def test_given_seeds_keep_their_order() -> None:
    made = plan(
        **{"seeds_fcn3": [9, 3], "n_samples_fcn3": 2},
        **{"seeds_stormscope": [4, 1, 1, 0], "n_samples_stormscope": 4},
    )
    assert conditioning(made).seeds == (9, 3)
    assert made.seeds == (4, 1, 1, 0)


def test_drawn_seeds_are_distinct_and_differ_between_plans() -> None:
    first, second = plan(n_samples_fcn3=32), plan(n_samples_fcn3=32)
    for seeds in (first.seeds, conditioning(first).seeds):
        assert len(set(seeds)) == 32
        assert all(0 <= seed < SEED_BOUND for seed in seeds)
    assert first.seeds != second.seeds
    assert conditioning(first).seeds != conditioning(second).seeds


def test_drawn_parameters_lead_to_the_same_plan() -> None:
    made = plan(seeds_fcn3=[9, 3], n_samples_stormscope=4)
    drawn = WORKFLOW.drawn_parameters(made)
    assert drawn == {
        "seeds_fcn3": [9, 3],
        "n_samples_fcn3": 2,
        "seeds_stormscope": list(made.seeds),
        "n_samples_stormscope": 4,
    }
    assert plan(**drawn) == made


def test_null_keeps_all_variables() -> None:
    assert plan(variables=None).variables == VARIABLES


def test_variables_keep_their_order() -> None:
    assert plan(variables=["abi13c", "abi01c"]).variables == ("abi13c", "abi01c")


def test_a_plan_knows_the_size_of_its_result() -> None:
    large = plan(n_samples_stormscope=32, n_steps=32, variables=None)
    assert large.output_bytes == 32 * 33 * 8 * 512 * 896 * 4


def test_the_grids_are_those_of_the_served_models() -> None:
    served = StormScopeWorkflow(Grid(n_lat=8, n_lon=16), LambertGrid(n_y=4, n_x=6))
    made = served.plan(validated(n_steps=1))
    assert made.grid == LambertGrid(n_y=4, n_x=6)
    assert conditioning(made).grid == Grid(n_lat=8, n_lon=16)
    assert made.output_bytes == 2 * 3 * 4 * 6 * 4


def test_a_plan_survives_json() -> None:
    made = plan(n_samples_fcn3=2, n_samples_stormscope=4)
    assert Plan.model_validate_json(made.model_dump_json()) == made
