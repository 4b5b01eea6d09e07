"""Earth2Studio's SDK reads a result with lead times as a data source and as a model."""

from pathlib import Path

import numpy as np
import pytest

from tests.deployments.results.backends import DiskBackend
from tests.deployments.results.samples import ID, complete, expected, make_plan, open_result


@pytest.mark.models
@pytest.mark.parametrize("output_format", ["zarr", "netcdf4"])
def test_earth2studio_reads_a_result_as_data_source_and_model(
    tmp_path: Path, output_format: str
) -> None:
    from earth2studio.data import InferenceOutputSource
    from earth2studio.serve.client.e2client import InferenceOutputModel

    plan = make_plan(time_layout="lead_time", output_format=output_format, seeds=(5,))
    backend = DiskBackend(tmp_path)
    complete(backend.store(), plan)
    dataset = open_result(backend.folder(plan.workflow, ID))
    source = InferenceOutputSource(dataset)
    found = source(np.datetime64("2025-01-01T18:00"), ["z500", "t2m"])
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
