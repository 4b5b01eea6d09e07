"""The peer's SDK turns a result with lead times into a data source and a model."""

from pathlib import Path

import numpy as np
import pytest
import xarray as xr

from deployments.results.disk import DiskStorage
from deployments.results.store import ResultsStore
from tests.deployments.results.results import PROVENANCE, expected, fields, make_plan

ID = "exec_1_00000000"


@pytest.mark.models
@pytest.mark.parametrize("output_format", ["zarr", "netcdf4"])
def test_earth2studio_reads_a_result_as_data_source_and_model(
    tmp_path: Path, output_format: str
) -> None:
    from earth2studio.data import InferenceOutputSource
    from earth2studio.serve.client.e2client import InferenceOutputModel

    plan = make_plan(time_layout="lead_time", output_format=output_format, seeds=(5,))
    store = ResultsStore(DiskStorage(tmp_path / "results", tmp_path / "work"))
    store.create(plan, ID, PROVENANCE, 1)
    for time_index in range(plan.n_times):
        store.write_step(ID, 1, 0, time_index, fields(plan, 0, time_index))
    folder = tmp_path / "results" / plan.workflow / ID
    if output_format == "netcdf4":
        store.export_netcdf(ID, 1)
        dataset = xr.open_dataset(folder / "results.nc", engine="netcdf4")
    else:
        dataset = xr.open_zarr(folder / "results.zarr", consolidated=True)
    source = InferenceOutputSource(dataset)
    moment = np.datetime64("2025-01-01T18:00")
    found = source(moment, ["z500", "t2m"])
    for variable in plan.variables:
        np.testing.assert_array_equal(
            found.sel(variable=variable, ensemble=0).squeeze("time"),
            expected(plan, variable)[0, 2],
        )
    model = InferenceOutputModel(InferenceOutputSource(dataset, filter_dict={"ensemble": 0}))
    steps = list(model.create_iterator(None, None))
    assert len(steps) == plan.n_times
    for time_index, (x, coords) in enumerate(steps):
        assert coords["lead_time"] == plan.lead_times()[time_index]
        t2m = x.squeeze().numpy()[list(coords["variable"]).index("t2m")]
        np.testing.assert_array_equal(t2m, expected(plan, "t2m")[0, time_index])
