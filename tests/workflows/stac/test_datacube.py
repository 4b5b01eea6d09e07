"""The data cube is described as it is stored."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

from deployments.results.disk import DiskStorage
from deployments.results.store import ResultsStore
from tests.deployments.results.samples import (
    make_plan,
)
from tests.workflows.stac.items import EVERY_PLAN, ID, SYNTHETIC, make_item
from workflows.base import Plan


def test_times_in_other_zones_become_utc() -> None:
    plan = make_plan(start_time=datetime(2025, 1, 1, 2, tzinfo=timezone(timedelta(hours=2))))
    dimension = make_item(plan)["properties"]["cube:dimensions"]["time"]
    assert dimension["extent"] == ["2025-01-01T00:00:00Z", "2025-01-01T12:00:00Z"]


@EVERY_PLAN
def test_the_cube_matches_the_stored_dataset(plan: Plan, tmp_path: Path) -> None:
    store = ResultsStore(DiskStorage(tmp_path, tmp_path / "work"))
    plan = plan.model_copy(update={"output_format": "zarr"})
    store.create(plan, ID, SYNTHETIC, 1)
    item = make_item(plan)
    properties, data = item["properties"], item["assets"]["data"]
    path = tmp_path / plan.workflow / ID / data["href"]
    with xr.open_dataset(path, **data["xarray:open_kwargs"]) as dataset:
        dimensions, variables = properties["cube:dimensions"], properties["cube:variables"]
        assert set(variables) == {*dataset.variables} - {*dataset.dims, "crs"}
        assert not set(variables) & set(dimensions)
        for name, variable in variables.items():
            assert tuple(variable["dimensions"]) == dataset[name].dims
            assert variable["type"] == ("data" if name in plan.variables else "auxiliary")
            assert variable["unit"] == dataset[name].attrs["units"]
            assert variable["data_type"] == dataset[name].dtype
        assert list(dimensions) == list(dataset[plan.variables[0]].dims)
        for name, dimension in dimensions.items():
            values = dataset[name].values
            low, high = dimension["extent"]
            if dimension["type"] == "temporal":
                values = np.datetime_as_string(values.astype("M8[s]"), timezone="UTC").tolist()
            elif name == "lead_time":
                values = values / np.timedelta64(1, dimension["unit"])
            assert (low, high) == (min(values), max(values))
            if name not in ("time", "ensemble"):
                assert dimension["step"] == pytest.approx(values[1] - values[0])


def test_lead_times_are_a_dimension_if_the_plan_asks_for_them() -> None:
    dimensions = make_item(make_plan(time_layout="lead_time"))["properties"]["cube:dimensions"]
    assert dimensions["time"]["values"] == ["2025-01-01T06:00:00Z"]
    assert (dimensions["lead_time"]["extent"], dimensions["lead_time"]["step"]) == ([0, 12], 6)
