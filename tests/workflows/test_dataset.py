"""The description of a result: dimensions, coordinates, CF attributes, provenance."""

import numpy as np
import pytest

from tests.deployments.results.samples import PROVENANCE, make_nowcast_plan, make_plan
from workflows.base import Plan
from workflows.dataset import (
    Dataset,
    Origin,
    Provenance,
    describe,
    field_index,
    variable_attributes,
)
from workflows.fcn3 import VARIABLES, FCN3Parameters, FCN3Workflow
from workflows.stormscope import VARIABLES as CHANNELS


def described(plan: Plan, **provenance: object) -> Dataset:
    return describe(
        plan, "exec_1", Provenance.model_validate({**PROVENANCE.model_dump(), **provenance})
    )


def coordinate(dataset: Dataset, name: str) -> np.ndarray:
    (values,) = [v.values for v in dataset.coordinates if v.name == name]
    return np.asarray(values)


def test_every_fcn3_variable_has_names_and_units() -> None:
    for name in VARIABLES:
        assert set(variable_attributes(name)) == {"standard_name", "long_name", "units"}, name
    assert variable_attributes("z500") == {
        "standard_name": "geopotential",
        "long_name": "Geopotential at 500 hPa",
        "units": "m2 s-2",
    }
    assert variable_attributes("t2m")["units"] == "K"


def test_every_channel_has_names_and_units() -> None:
    for name in CHANNELS:
        assert set(variable_attributes(name)) == {"standard_name", "long_name", "units"}, name
    assert variable_attributes("abi01c") == {
        "standard_name": "toa_bidirectional_reflectance",
        "long_name": "GOES ABI band 1, reflectance at 0.47 um",
        "units": "1",
    }
    assert variable_attributes("abi13c")["units"] == "K"


@pytest.mark.parametrize("name", ["abi04c", "w500", "t", "500", "t5a"])
def test_attributes_of_unknown_variables_are_not_guessed(name: str) -> None:
    assert variable_attributes(name) == {"long_name": name}


def test_time_layout_has_hours_since_start() -> None:
    plan = make_plan()
    dataset = described(plan)
    assert dict(dataset.dims) == {"ensemble": 2, "time": 3, "lat": 5, "lon": 8}
    assert coordinate(dataset, "time").tolist() == [0, 6, 12]
    (time,) = [v for v in dataset.coordinates if v.name == "time"]
    assert time.attributes["units"] == "hours since 2025-01-01 06:00:00"
    assert field_index(plan, 1, 2) == (1, 2)


def test_lead_time_layout_has_one_time() -> None:
    plan = make_plan(time_layout="lead_time")
    dataset = described(plan)
    assert list(dataset.dims) == ["ensemble", "time", "lead_time", "lat", "lon"]
    assert dataset.field_shape == (2, 1, 3, 5, 8)
    assert coordinate(dataset, "time").tolist() == [0]
    assert coordinate(dataset, "lead_time").tolist() == [0, 6, 12]
    assert field_index(plan, 1, 2) == (1, 0, 2)


def test_a_result_with_one_time_keeps_both_dimensions() -> None:
    dataset = described(make_plan(time_layout="lead_time", n_steps=0))
    assert dataset.field_shape == (2, 1, 1, 5, 8)


def test_latitudes_run_southwards_and_longitudes_from_minus_180() -> None:
    dataset = described(make_plan())
    assert coordinate(dataset, "lat").tolist() == [90, 45, 0, -45, -90]
    assert coordinate(dataset, "lon").tolist() == [-180, -135, -90, -45, 0, 45, 90, 135]


def test_seeds_are_exact() -> None:
    seeds = (0, 2**31, 2**32 - 1)
    stored = coordinate(described(make_plan(seeds=seeds)), "seed")
    assert tuple(int(seed) for seed in stored) == seeds


def test_attributes_name_the_origins_of_the_result() -> None:
    attributes = described(make_plan(), created="2025-01-02T03:04:05+01:00").attributes
    assert attributes["execution_id"] == attributes["id"] == "exec_1"
    assert attributes["earth2serve_version"] == "0.1.0"
    assert attributes["model"] == "fcn3"
    assert attributes["weights"] == "none"
    assert attributes["data_source_loader"] == "some.module:Source"
    assert attributes["software_versions"] == "earth2serve 0.1.0, numpy 2.0.0"
    assert attributes["date_created"] == "2025-01-02T02:04:05Z"
    assert attributes["time_coverage_start"] == "2025-01-01T06:00:00Z"
    assert attributes["time_coverage_end"] == "2025-01-01T18:00:00Z"


@pytest.mark.parametrize(
    ("model", "data_source", "synthetic"),
    [
        (True, False, "true"),
        (False, True, "true"),
        (True, None, "true"),
        (False, False, "false"),
        (False, None, "unknown"),
    ],
)
def test_any_stand_in_makes_the_result_synthetic(
    model: bool, data_source: bool | None, synthetic: str
) -> None:
    attributes = described(
        make_plan(),
        model=Origin(name="fcn3", synthetic=model),
        data_source=Origin(name="ifs", synthetic=data_source),
    ).attributes
    assert attributes["synthetic"] == synthetic
    assert str(attributes["title"]).startswith("Synthetic") == (synthetic == "true")
    assert ("comment" in attributes) == (synthetic == "true")


def test_the_request_selects_the_layout() -> None:
    workflow = FCN3Workflow()
    assert workflow.plan(FCN3Parameters()).time_layout == "time"
    assert workflow.plan(FCN3Parameters(time_layout="lead_time")).time_layout == "lead_time"


# Nowcasts: on a Lambert grid, and conditioned.

CONDITIONED_ON = (
    {"name": "fcn3", "loader": "some.module:load", "synthetic": False, "weights": "ngc://fcn3"},
    {"name": "interpolation", "loader": "synthetic", "synthetic": False},
    {"name": "ifs", "loader": "some.module:Source", "synthetic": False},
)


def nowcast(**provenance: object) -> Dataset:
    return described(
        make_nowcast_plan(),
        **{
            "model": Origin(name="stormscope", loader="some.module:nowcast", synthetic=False),
            "data_source": Origin(name="goes16", synthetic=False),
            "conditioned_on": CONDITIONED_ON,
            **provenance,
        },
    )


def test_a_lambert_grid_has_its_own_dimensions() -> None:
    dataset = nowcast()
    assert dict(dataset.dims) == {"ensemble": 4, "time": 3, "y": 3, "x": 4}
    assert list(dataset.dims) == ["ensemble", "time", "y", "x"]
    assert dataset.field_shape == (4, 3, 3, 4)
    assert [field.name for field in dataset.fields] == ["abi01c", "abi13c"]
    for coordinate in dataset.coordinates:
        assert np.shape(coordinate.values) == dataset.shape(coordinate), coordinate.name


def test_fields_name_their_auxiliary_coordinates() -> None:
    for field in nowcast().fields:
        assert field.dims == ("ensemble", "time", "y", "x")
        assert field.attributes["coordinates"] == "seed_fcn3 seed_stormscope latitude longitude"
        assert field.attributes["grid_mapping"] == "crs"
    (t2m, _) = described(make_plan()).fields
    assert t2m.attributes["coordinates"] == "seed"


def test_each_member_of_a_nowcast_has_the_seed_that_conditions_it() -> None:
    dataset = nowcast()
    assert coordinate(dataset, "seed_fcn3").tolist() == [7, 7, 2**32 - 1, 2**32 - 1]
    assert coordinate(dataset, "seed_stormscope").tolist() == [1, 2, 3, 4]


def test_attributes_describe_the_conditioning_of_a_nowcast() -> None:
    attributes = nowcast().attributes
    assert attributes["model"] == "stormscope"
    assert attributes["data_source"] == "goes16"
    assert attributes["conditioned_on"] == (
        "fcn3 (weights: ngc://fcn3, loader: some.module:load), "
        "interpolation (weights: none, loader: synthetic), "
        "ifs (weights: none, loader: some.module:Source)"
    )
    assert attributes["conditioning_variable"] == "z500"
    assert attributes["conditioning_reference_time"] == "2025-01-01T06:00:00Z"
    assert attributes["time_coverage_start"] == "2025-01-01T08:00:00Z"
    assert attributes["time_coverage_end"] == "2025-01-01T10:00:00Z"
    assert attributes["time_coverage_resolution"] == "PT1H"
    assert not [name for name in described(make_plan()).attributes if name.startswith("condition")]


def test_attributes_describe_the_extent_of_a_nowcast() -> None:
    grid, attributes = make_nowcast_plan().grid, nowcast().attributes
    assert attributes["geospatial_lat_min"] == grid.latitudes().min()
    assert attributes["geospatial_lat_max"] == grid.latitudes().max()
    assert attributes["geospatial_lon_min"] == grid.longitudes().min()
    assert attributes["geospatial_lon_max"] == grid.longitudes().max()


@pytest.mark.parametrize(
    ("changed", "said", "synthetic"),
    [
        (None, None, "false"),
        (0, True, "true"),
        (1, True, "true"),
        (2, True, "true"),
        (1, None, "unknown"),
    ],
)
def test_a_conditioning_stand_in_makes_the_result_synthetic(
    changed: int | None, said: bool | None, synthetic: str
) -> None:
    origins = [
        {**each, "synthetic": said} if index == changed else each
        for index, each in enumerate(CONDITIONED_ON)
    ]
    attributes = nowcast(conditioned_on=origins).attributes
    assert attributes["synthetic"] == synthetic
    assert str(attributes["title"]).startswith("Synthetic") == (synthetic == "true")
    assert ("comment" in attributes) == (synthetic == "true")
